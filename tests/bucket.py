"""A bucket in memory behind `s3://`: objects, whole or absent, and no appending."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects in this process; every test begins with an empty one."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("s3://").strip("/")

    def _open(self, path, mode="rb", **options):
        if "a" in mode or "+" in mode:
            raise OSError("objects of a bucket cannot be appended to")
        return super()._open(path, mode, **options)


def mount():
    """Registers the bucket, empty; a path such as s3://bucket/x then leads to it."""
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    fsspec.register_implementation("s3", Bucket, clobber=True)
    Bucket.clear_instance_cache()


def upload(folder, target: str) -> str:
    """Copies a local folder."""
    files = fsspec.filesystem("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            where = f"{target}/{path.relative_to(folder).as_posix()}"
            files.makedirs(where.rsplit("/", 1)[0], exist_ok=True)
            files.pipe_file(where, path.read_bytes())
    return target
