"""Folders and tars of identities, NAME/xxx.jpg, read as they are."""

import itertools
import os
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax.data.face_set import FaceSet, fingerprint_of, sample_of
from hyperface_jax.data.recordio import open_local
from hyperface_jax.data.records import ImageSource

_PADDED = 10240  # bytes; tar's blocking factor of 20

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class FolderReader:
    """Files below a folder.

    Args:
      root: the folder.
      files: path of each below it.
    """

    def __init__(self, root: epath.PathLike, files: Sequence[str]):
        self._root = epath.Path(root)
        self._files = files

    def __call__(self, row: int) -> bytes:
        """Contents of a file."""
        return (self._root / self._files[row]).read_bytes()

    def take(self, rows: np.ndarray) -> "FolderReader":
        """The given files only."""
        return FolderReader(self._root, [self._files[int(row)] for row in rows])


class TarReader:
    """Members of an uncompressed tar on a local disk, in any order and thread.

    Args:
      path: the tar.
      offsets: int64 [N], first byte of each member.
      sizes: int64 [N], bytes of each.
    """

    def __init__(self, path: epath.PathLike, offsets: np.ndarray, sizes: np.ndarray):
        self._path = os.fspath(path)
        self._offsets = offsets
        self._sizes = sizes
        self._file = open_local(self._path)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = open_local(self._path)

    def __del__(self):
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)

    def __call__(self, row: int) -> bytes:
        """Contents of a member; fewer bytes where the tar is cut off."""
        return os.pread(self._file, int(self._sizes[row]), int(self._offsets[row]))

    def take(self, rows: np.ndarray) -> "TarReader":
        """The given members only."""
        return TarReader(self._path, self._offsets[rows], self._sizes[rows])


def open_images(path: epath.PathLike) -> FaceSet:
    """All images below a folder, or in a tar, sorted by identity and name.

    Args:
      path: folder or tar of NAME/xxx.jpg (in a tar: any depth above NAME).

    Raises:
      ValueError: the path is missing or holds no NAME/image.
    """
    where = epath.Path(path)
    if not where.exists():
        raise ValueError(f"{path}: not found, expected a folder or a tar")
    names, sizes, reader = _in_folder(where) if where.is_dir() else _in_tar(where)
    if not names:
        raise ValueError(
            f"{path}: no images found, expected NAME/xxx.jpg ({', '.join(SUFFIXES)})"
        )
    return face_set_of_files(where.name.split(".")[0], names, sizes, reader)


def face_set_of_files(
    name: str, names: Sequence[tuple[str, str]], sizes: np.ndarray, reader: Any
) -> FaceSet:
    """A FaceSet of files that are sorted by identity.

    Args:
      name: for messages.
      names: identity and file name of each.
      sizes: int64 [N], bytes of each, for the fingerprint.
      reader: ByteReader in the same order.
    """
    identities, labels = np.unique(
        [identity for identity, _ in names], return_inverse=True
    )
    labels = labels.astype(np.int32)
    ids = [f"{identity}/{file.rsplit('.', 1)[0]}" for identity, file in names]
    if len(set(ids)) < len(ids):  # 1.jpg beside 1.png
        ids = [f"{identity}/{file}" for identity, file in names]
    return FaceSet(
        name=name,
        source=ImageSource(reader, labels, ids),
        rows=np.arange(len(names)),
        labels=labels,
        source_labels=labels,
        identities=tuple(identities.tolist()),
        fingerprint=fingerprint_of("files", ids, sizes, sample_of(reader, len(names))),
    )


def is_image(name: str) -> bool:
    """True for a file name that an image may have."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _in_folder(folder: epath.Path):
    found = sorted(
        # A link to nowhere has no size and is reported when it is read; a pipe is
        # no file at all and would be waited for.
        (person.name, file.name, file.stat().length if file.exists() else -1)
        for person in folder.iterdir()
        if person.is_dir()
        for file in person.iterdir()
        if is_image(file.name) and (_is_regular(file) or not file.exists())
    )
    names = [(person, file) for person, file, _ in found]
    files = [f"{person}/{file}" for person, file in names]
    return names, np.array([f[2] for f in found]), FolderReader(folder, files)


def _is_regular(file: epath.Path) -> bool:
    """Not a folder or a pipe; etils takes a pipe for a file."""
    local = "://" not in os.fspath(file)
    return os.path.isfile(file) if local else file.is_file()


def _in_tar(path: epath.Path):
    try:
        with tarfile.open(os.fspath(path), "r:") as archive:
            # Of a hard link the data lies with the member that it points to.
            members = [
                (m, archive.getmember(m.linkname) if m.islnk() else m)
                for m in archive.getmembers()
            ]
    except (tarfile.TarError, OSError, KeyError) as error:
        raise ValueError(
            f"{path}: not a readable tar ({error}); a compressed one must be "
            "unpacked first"
        ) from None
    found = []
    for member, data in members:
        parts = member.name.split("/")
        if not is_image(parts[-1]) or len(parts) < 2:
            continue
        if data.isfile():
            found.append((parts[-2], parts[-1], data.offset_data, data.size))
        elif member.issym():
            raise ValueError(
                f"{path}: {member.name} is a symbolic link, expected files "
                "(tar --dereference)"
            )
    ends = (m.offset_data + m.isreg() * -(-m.size // 512) * 512 for m, _ in members)
    _check_end(path, max(ends, default=0))
    found.sort()
    for one, next_ in itertools.pairwise(found):
        if one[:2] == next_[:2]:
            raise ValueError(f"{path}: {one[0]}/{one[1]} is in it twice, expected once")
    offsets = np.array([f[2] for f in found], np.int64)
    sizes = np.array([f[3] for f in found], np.int64)
    names = [(person, file) for person, file, _, _ in found]
    return names, sizes, TarReader(path, offsets, sizes)


def _check_end(path: epath.Path, end: int) -> None:
    """Refuses a tar that was cut off, overwritten with zeros, or has another behind it.

    Args:
      path: the tar.
      end: first byte after the last member that was found. Two blocks of zeros mark the
        end; most programs fill the last `_PADDED` bytes with more of them.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(end)
        rest = file.read(_PADDED + 1024)
    if any(rest):
        raise ValueError(
            f"{path}: not a readable tar (more follows after byte {end}: it is "
            "damaged, or several were joined)"
        )
    if size not in (end + 1024, -(-(end + 1024) // _PADDED) * _PADDED):
        raise ValueError(
            f"{path}: not a readable tar ({size:,} bytes, the last file ends at "
            f"{end:,}: it is cut off, or its end was never written; or pack it with "
            "tar -b 20)"
        )
