"""Embeddings in files: opens what this package or somebody else wrote, and writes one.

.npz      embeddings [N, D], perhaps ids [N]; of ours also the network, and which
          images could not be read
.parquet  the same, see `parquet`
.npy      [N, D] or [N, V, D]; ids may stand in a .txt of the same name beside it
folder    see `stored`

Whatever it is becomes a `Stored`.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax import workdir
from hyperface_jax.data.name_lists import read_names
from hyperface_jax.evaluation import nearest, parquet
from hyperface_jax.evaluation.stored import EmbeddingStore, Stored, network_name

SUFFIXES = (".npz", ".parquet")
"""Of files that are written."""


class Sums:
    """`Stored.embeddings` in float32, added as they are read: all may not fit."""

    def __init__(self, views: np.ndarray):
        self._views = views
        self.shape = (views.shape[0], views.shape[2])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return nearest.read(self._views, rows).astype(np.float32)


def write_embeddings(path: Path, found: Stored, about: Mapping[str, str]) -> None:
    """Writes one file of raw sums of the views, [N, D] float32, whole or not at all.

    Args:
      path: ends in one of `SUFFIXES`.
      found: embeddings with ids.
      about: "model" and "mirror_image_added", which `open_embeddings` compares.
    """
    ids, sums = found.ids or (), Sums(found.views)
    # Text, because keys of JSON are.
    lost = json.dumps({str(row): why for row, why in found.unreadable.items()})
    facts: dict[str, Any] = dict(about) | {"unreadable": lost}
    if path.suffix == ".parquet":
        parquet.write_parquet(path, ids, sums, facts)
        return
    with (
        workdir.whole_file(epath.Path(path), "wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, value in (facts | {"ids": ids}).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asarray(value), allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as part:
            header = {"descr": "<f4", "fortran_order": False, "shape": sums.shape}
            np.lib.format.write_array_header_1_0(part, header)
            for start in range(0, sums.shape[0], parquet.ROWS):
                block = sums[start : start + parquet.ROWS]
                part.write(block.astype("<f4").tobytes())


def open_embeddings(path: str | os.PathLike) -> Stored:
    """Opens embeddings of any of the forms above.

    Raises:
      ValueError: unfinished, damaged or of another shape.
    """
    try:
        found = _open(Path(path))
    except Exception as error:  # a damaged zip or header may fail anyhow
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        why = f"{type(error).__name__}: {error}"[:160]
        raise ValueError(f"{path}: damaged embeddings ({why})") from None
    views, ids = found.views, found.ids
    if views.ndim != 3 or not np.issubdtype(views.dtype, np.floating):
        raise ValueError(
            f"{path}: {views.dtype} {list(views.shape)}, expected floats [N, D] or "
            "[N, views, D]"
        )
    if views.shape[1] not in (1, 2) or not views.shape[2]:
        raise ValueError(
            f"{path}: {list(views.shape)}, expected 1 or 2 views of 1 number or more"
        )
    if views.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        found = dataclasses.replace(found, views=np.asarray(views, np.float64))
    elif not views.dtype.isnative:
        native = views.dtype.newbyteorder("=")
        found = dataclasses.replace(found, views=np.asarray(views, native))
    if ids is not None and len(ids) != len(views):
        raise ValueError(f"{path}: {len(ids)} ids for {len(views)} embeddings")
    if ids is not None and len(set(ids)) < len(ids):
        raise ValueError(f"{path}: {len(ids) - len(set(ids))} ids occur twice")
    return found


def _open(where: Path) -> Stored:
    if where.is_dir():
        return EmbeddingStore.open(where).read()
    if not where.exists():
        raise ValueError(
            f"{where}: not found, expected embeddings (.npy, .npz, .parquet, folder)"
        )
    if where.suffix == ".parquet":
        ids, embeddings, facts = parquet.read_parquet(where)
        return _with_facts(embeddings, ids, facts)
    try:
        loaded = np.load(where, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy's own advice, to allow pickles, is bad advice
        raise ValueError(f"{where}: not a .npy or .npz of numbers") from None
    if isinstance(loaded, np.ndarray):
        beside = where.with_suffix(".txt")
        ids = [row[0] for row in read_names(beside)] if beside.exists() else None
        return _with_facts(loaded, ids, {})
    if "embeddings" not in loaded.files:
        raise ValueError(f"{where}: holds {loaded.files}, expected 'embeddings'")
    views, ids = loaded["embeddings"], None
    if "ids" in loaded.files:
        names = loaded["ids"]
        if names.ndim != 1:
            raise ValueError(f"{where}: ids are {list(names.shape)}, expected [N]")
        ids = [i.decode() if isinstance(i, bytes) else str(i) for i in names.tolist()]
    names = ("model", "mirror_image_added", "unreadable")
    return _with_facts(
        views, ids, {name: str(loaded[name]) for name in names if name in loaded.files}
    )


def _with_facts(views: np.ndarray, ids: Any, facts: Mapping[str, Any]) -> Stored:
    lost, network, summed = {}, "", False
    # Somebody else's file may have an "unreadable" of its own.
    if isinstance(facts, dict) and {"model", "mirror_image_added"} <= facts.keys():
        network = network_name(facts["model"], facts["mirror_image_added"])
        summed = views.ndim == 2 and str(facts["mirror_image_added"]) == "True"
        lost = json.loads(facts.get("unreadable", "{}"))
    return Stored(
        views[:, None] if views.ndim == 2 else views,
        None if ids is None else tuple(ids),
        {int(row): str(why) for row, why in lost.items() if int(row) < len(views)},
        network,
        summed,
    )
