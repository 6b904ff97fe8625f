"""Folders and tars of identities, NAME/xxx.jpg, read as they are."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax.data import tar_files
from hyperface_jax.data.face_set import FaceSet, fingerprint_of, sample_of
from hyperface_jax.data.image_names import SUFFIXES, by_person, is_image
from hyperface_jax.data.records import ImageSource


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
    read = _in_folder if where.is_dir() else tar_files.read_tar
    names, sizes, reader = read(where)
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
    number = {p: k for k, p in enumerate(dict.fromkeys(p for p, _ in names))}
    labels = np.fromiter((number[p] for p, _ in names), np.int32, len(names))
    ids = [f"{identity}/{file.rsplit('.', 1)[0]}" for identity, file in names]
    if len(set(ids)) < len(ids):  # 1.jpg beside 1.png
        ids = [f"{identity}/{file}" for identity, file in names]
    return FaceSet(
        name=name,
        source=ImageSource(reader, labels, ids),
        rows=np.arange(len(names)),
        labels=labels,
        source_labels=labels,
        identities=tuple(number),
        fingerprint=fingerprint_of("files", ids, sizes, sample_of(reader, len(names))),
    )


def _in_folder(folder: epath.Path):
    size_of = {
        # A link to nowhere has no size and is reported when it is read; a pipe is
        # no file at all and would be waited for.
        (person.name, file.name): file.stat().length if file.exists() else -1
        for person in folder.iterdir()
        if person.is_dir()
        for file in person.iterdir()
        if is_image(file.name) and (_is_regular(file) or not file.exists())
    }
    names = by_person(size_of)
    files = [f"{person}/{file}" for person, file in names]
    return names, np.array([size_of[n] for n in names]), FolderReader(folder, files)


def _is_regular(file: epath.Path) -> bool:
    """Not a folder or a pipe; etils takes a pipe for a file."""
    local = "://" not in os.fspath(file)
    return os.path.isfile(file) if local else file.is_file()
