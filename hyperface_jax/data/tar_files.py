"""Uncompressed tars of images, read in place: any member, in any order and thread."""

import os
import tarfile
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax.data.image_names import by_person, is_image
from hyperface_jax.data.recordio import open_local

_BLOCKING = (*range(1, 21), 64, 126, 128, 256, 512, 1024, 2048)
"""Blocks of 512 bytes that tars are written in; 20 by default."""


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

    def __del__(self, close=os.close):  # when Python ends, `os` may be gone before us
        if (file := getattr(self, "_file", None)) is not None:
            close(file)

    def __call__(self, row: int) -> bytes:
        """Contents of a member; fewer bytes where the tar is cut off."""
        return os.pread(self._file, int(self._sizes[row]), int(self._offsets[row]))

    def take(self, rows: np.ndarray) -> "TarReader":
        """The given members only."""
        return TarReader(self._path, self._offsets[rows], self._sizes[rows])


def read_tar(
    path: epath.Path,
) -> tuple[list[tuple[str, str]], np.ndarray, TarReader]:
    """Names (identity, file), sizes and a reader of the images, sorted by name.

    Of two members with one path the last counts, as when the tar is unpacked.

    Raises:
      ValueError: it cannot be read, is cut off or damaged, or holds links or sparse
        files, or two images of one name.
    """
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
    found: dict[tuple[str, str], tarfile.TarInfo] = {}
    origin: dict[tuple[str, str], str] = {}
    for member, data in members:
        parts = member.name.split("/")
        if not is_image(parts[-1]) or len(parts) < 2:
            continue
        if member.issym() or data.issparse():
            kind = "a symbolic link" if member.issym() else "stored as a sparse file"
            raise ValueError(
                f"{path}: {member.name} is {kind}, expected files (tar --dereference)"
            )
        name = parts[-2], parts[-1]
        if origin.setdefault(name, member.name) != member.name:
            raise ValueError(
                f"{path}: {origin[name]} and {member.name} have one name, expected "
                "NAME/xxx of each image once"
            )
        if data.isfile():
            found[name] = data
    ends = (m.offset_data + m.isreg() * -(-m.size // 512) * 512 for m, _ in members)
    _check_end(path, max(ends, default=0))
    names = by_person(found)
    offsets = np.array([found[name].offset_data for name in names], np.int64)
    sizes = np.array([found[name].size for name in names], np.int64)
    return names, sizes, TarReader(path, offsets, sizes)


def _check_end(path: epath.Path, end: int) -> None:
    """Refuses a tar that was cut off, overwritten with zeros, or has another behind it.

    Args:
      path: the tar.
      end: first byte after the last member that was found. Two blocks of zeros mark the
        end, and more of them fill the last record of `_BLOCKING` blocks.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(end)
        rest = file.read(512 * _BLOCKING[-1] + 1024)
    if any(rest):
        raise ValueError(
            f"{path}: not a readable tar (more follows after byte {end}: it is "
            "damaged, or several were joined)"
        )
    if all(size != -(-(end + 1024) // (512 * b)) * 512 * b for b in _BLOCKING):
        raise ValueError(
            f"{path}: not a readable tar ({size:,} bytes, the last file ends at "
            f"{end:,}: it is cut off, or its end was never written)"
        )
