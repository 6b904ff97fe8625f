"""Images without identities: files of a folder at any depth, or a list of paths."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from etils import epath

from hyperface_jax.data import insightface, prepared, sources
from hyperface_jax.data.face_set import FaceSet, fingerprint_of, sample_of
from hyperface_jax.data.image_names import is_image
from hyperface_jax.data.records import ImageSource


class FileReader:
    """Row -> content of a file."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths

    def __call__(self, row: int) -> bytes:
        """The file's bytes; an OSError where it cannot be read."""
        return self._paths[row].read_bytes()

    def take(self, rows: np.ndarray) -> "FileReader":
        """The given files only."""
        return FileReader([self._paths[int(row)] for row in rows])


def open_any(path: str, lines: Iterable[str] = ()) -> FaceSet:
    """Images to embed, identities or not.

    Args:
      path: "-" for the paths in `lines`; an image; a folder of images at any depth, or
        whatever `sources.open_path` reads.
      lines: paths of images, one each.

    Raises:
      ValueError: nothing is there, or no image among it.
    """
    if path == "-":
        listed = [Path(line.strip()) for line in lines if line.strip()]
        if not listed:
            raise ValueError("standard input: no path in it, expected one a line")
        return of_files("standard input", listed, [str(p) for p in listed])
    where = epath.Path(path)
    if is_image(path) and where.is_file():
        return of_files(where.name, [Path(path)], [where.stem])
    known = where.is_dir() and (
        insightface.is_insightface(where) or prepared.is_prepared(where)
    )
    if not where.is_dir() or known:
        return sources.open_path(path)
    root = Path(path)
    # As paths are compared, name by name, but 20 times as fast.
    found = sorted(_images_below(root), key=lambda p: os.fspath(p).replace("/", "\0"))
    if not found:
        raise ValueError(f"{path}: no images in it, at any depth")
    names = [p.relative_to(root).with_suffix("").as_posix() for p in found]
    if len(set(names)) < len(names):  # 1.jpg beside 1.png
        names = [p.relative_to(root).as_posix() for p in found]
    return of_files(root.name, found, names)


def _images_below(root: Path) -> Iterator[Path]:
    """Images at any depth; links to folders are followed, but not in circles."""
    visited = set()
    for folder, below, files in os.walk(root, onerror=_fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        # One order on every disk; of a folder and a link to it beside it, the folder.
        below.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        for name in files:
            path = Path(folder, name)
            if is_image(name) and path.is_file():
                yield path


def _fail(error: OSError) -> NoReturn:
    """A folder that cannot be read is not an empty one."""
    raise error


def of_files(name: str, paths: Sequence[Path], ids: Sequence[str]) -> FaceSet:
    """A FaceSet of one nameless identity; a missing file is an unreadable record."""
    labels = np.zeros(len(paths), np.int32)
    reader = FileReader(paths)
    sizes = [p.stat().st_size if p.exists() else -1 for p in paths]
    return FaceSet(
        name=name,
        source=ImageSource(reader, labels, ids),
        rows=np.arange(len(paths)),
        labels=labels,
        source_labels=labels,
        identities=("",),
        fingerprint=fingerprint_of(
            list(ids), np.asarray(sizes), sample_of(reader, len(paths))
        ),
    )
