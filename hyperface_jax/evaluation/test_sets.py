"""Opens a test set by what a config or a command line says."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from hyperface_jax.data import bin_set, loose_crops, prepared, sources
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.evaluation.ijb import read_ijb
from hyperface_jax.evaluation.ijb_agreement import check_agreement


def open_all(items: Sequence[str], others: Sequence[str] = ()) -> list[EvaluationSet]:
    """Several test sets.

    Args:
      items: see `open_test`.
      others: names that are taken already.

    Raises:
      ValueError: two have one name, under which one would hide the other's results.
    """
    found = [open_test(item) for item in items]
    names = [*others, *(test.name for test in found)]
    if len(set(names)) < len(names):
        raise ValueError(f"two test sets have one name, found {names}; use NAME=...")
    return found


def open_test(item: str) -> EvaluationSet:
    """A test set.

    Args:
      item: a .bin file; "PATH;PAIRS", whatever `sources.open_path` opens with an LFW
        pairs file; a folder with `meta/` and `loose_crop/` of IJB-B or IJB-C; or any
        faces with identities (1:N with distractors; of a prepared set also its own
        pairs, gallery and probes). "NAME=" before it names it.

    Raises:
      ValueError: none of them.
    """
    name, equals, where = item.partition("=")
    if "/" in name or epath.Path(item.partition(";")[0]).exists():
        name, equals, where = "", "", item  # the sign belongs to the path
    elif not equals:
        name, where = "", item
    path, semicolon, pairs_path = where.partition(";")
    folder = epath.Path(path)
    if semicolon:
        faces = sources.open_path(path, pairs_path=pairs_path)
        found = dataclasses.replace(
            EvaluationSet.of_pairs(folder.name.split(".")[0], faces),
            open_set_rows=faces.rows,
        )
    elif path.endswith(".bin"):
        found = bin_set.open_bin(path)
    elif (folder / "meta").is_dir():
        found = _open_ijb(folder)
    else:
        faces = sources.open_path(path)
        found = EvaluationSet(
            name=_name_of(folder),
            faces=faces,
            pairs=faces.pairs,
            open_set_rows=faces.rows,
            gallery=faces.gallery,
            probes=faces.probes,
        )
    return dataclasses.replace(found, name=name) if equals else found


def _name_of(folder: epath.Path) -> str:
    """The folder's name; of a prepared one, which is called 1.0.0, name_config."""
    if prepared.is_prepared(folder) and len(folder.parts) > 3:
        return "_".join(folder.parts[-3:-1])
    return folder.name.split(".")[0]


def _open_ijb(folder: epath.Path) -> EvaluationSet:
    """IJB-B or IJB-C; images are cut out of the loose crops when they are read."""
    meta = read_ijb(folder / "meta")
    check_agreement(meta, folder.name)
    faces = loose_crops.open_loose_crops(
        folder / "loose_crop", meta.image_names, np.asarray(meta.landmarks)
    )
    return EvaluationSet(name=folder.name, faces=faces, pairs=None, templates=meta)
