"""Opens whatever face-recognition people have at a path, as it is.

A new format is one function that returns a FaceSet and a line in `open_path`.
"""

import dataclasses
from collections.abc import Sequence

from etils import epath

from hyperface_jax.data import (
    bin_set,
    image_files,
    image_list,
    insightface,
    pairs,
    prepared,
)
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet, concatenate
from hyperface_jax.data.records import ids_of


def split_paths(paths: str | Sequence[str]) -> tuple[str, ...]:
    """Paths of a config value: a sequence, or one string with commas between."""
    if not isinstance(paths, str):
        return tuple(paths)
    return tuple(part.strip() for part in paths.split(",") if part.strip())


def open_path(
    path: str, *, pairs_path: str = "", list_root: str = "", list_format: str = "auto"
) -> FaceSet:
    """The faces at a path.

    Args:
      path: an InsightFace folder (train.rec), a prepared TFDS folder, a folder or tar
        of identities, or a list of images (.lst, .list, .txt, .tsv).
      pairs_path: verification pairs in LFW's format, by image id; or "".
      list_root: folder that a list's paths are relative to; default: the list's.
      list_format: of `image_list.LISTS`, or "auto".

    Raises:
      ValueError: nothing is there, or nothing that can be read.
    """
    where = epath.Path(path)
    if not where.exists():
        raise ValueError(
            f"{path}: not found, expected a folder with train.rec, a folder or tar of "
            "identities, a prepared folder, or a list of images"
        )
    if where.is_dir() and insightface.is_insightface(where):
        faces = insightface.open_insightface(where)
    elif where.is_dir() and prepared.is_prepared(where):
        faces = prepared.open_folder(where)
    elif not where.is_dir() and where.name.endswith(image_list.SUFFIXES):
        faces = image_list.open_list(where, root=list_root, kind=list_format)
    else:
        faces = image_files.open_images(where)
    if not pairs_path:
        return faces
    found = pairs.read_lfw_pairs(pairs_path, ids_of(faces.source))
    return dataclasses.replace(faces, pairs=found)


def open_paths(
    paths: str | Sequence[str], *, pairs_path: str = "", list_root: str = ""
) -> FaceSet:
    """Several paths as one set, labels shifted; pairs only with a single path.

    Raises:
      ValueError: no path, or pairs with several.
    """
    names = split_paths(paths)
    if not names:
        raise ValueError("data.path is empty, expected a folder, tar, list or .rec")
    if pairs_path and len(names) > 1:
        raise ValueError(
            f"data.pairs_path is given with {len(names)} paths, expected one path"
        )
    return concatenate(
        [open_path(name, pairs_path=pairs_path, list_root=list_root) for name in names]
    )


def validation_sets(paths: str | Sequence[str]) -> list[EvaluationSet]:
    """Every .bin file beside the records of InsightFace folders, by name."""
    found: dict[str, EvaluationSet] = {}
    for path in split_paths(paths):
        folder = epath.Path(path)
        if folder.is_dir() and insightface.is_insightface(folder):
            for file in sorted(folder.glob("*.bin")):
                test = bin_set.open_bin(file)
                found.setdefault(test.name, test)
    return list(found.values())
