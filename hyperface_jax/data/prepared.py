"""Prepared datasets: a TFDS folder of array_record shards, with lists beside it.

Beside what TFDS writes (dataset_info.json, features.json, shards) lie

    labels.npy       int32 [N], label of each record in the order of the shards
    identities.txt   name of each label, one a line
    ids.txt          id of each record, one a line
    rejected.tsv     id, reason
    duplicates.tsv   images with equal bytes, as a list for --exclude
    metadata.json    fingerprint; pairs, gallery and probes as rows
    card.md          what is in it, for people

A folder without labels.npy and without counts in its metadata (TFDS's own, Beam's) is
read through once for its labels.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from hyperface_jax.data.face_set import FaceSet, drop_empty, fingerprint_of
from hyperface_jax.data.name_lists import read_names
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import BadRecordError
from hyperface_jax.data.shard_source import ShardSource

LABELS = "labels.npy"
IDENTITIES = "identities.txt"
IDS = "ids.txt"
REJECTED = "rejected.tsv"
CARD = "card.md"
LICENCE_LINE = "- Licence: "
NO_LICENCE = "not stated by whoever prepared it"


def features() -> tfds.features.FeaturesDict:
    """What every record of a prepared dataset holds."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": np.int64,
            "id": tfds.features.Text(),
        }
    )


def open_split(builder: Any, split: str) -> FaceSet:
    """A split of a prepared builder as a FaceSet, in the order of its records.

    Args:
      builder: of TFDS, prepared.
      split: e.g. "train".

    Raises:
      ValueError: there is no such split, or it holds other records than promised.
    """
    if split not in builder.info.splits:
        raise ValueError(
            f"split {split!r} is not in {builder.info.name}: "
            f"{', '.join(builder.info.splits)}"
        )
    folder = epath.Path(builder.data_path)
    metadata = dict(builder.info.metadata or {})
    if (folder / LABELS).exists() and "splits" not in metadata:
        raise ValueError(
            f"{folder}: no facts about its splits in metadata.json, which say whose "
            "images are for tests; prepare it anew"
        )
    facts = metadata.get("splits", {}).get(split, {})
    info = builder.info.splits[split]
    ids = folder / IDS if split == "train" and (folder / IDS).exists() else ""
    files = [os.fspath(path) for path in info.filepaths]
    source = ShardSource(files, os.fspath(ids))
    source.check_lengths(info.shard_lengths)
    labels, identities = _labels(folder, split, facts, source)
    if len(labels) != len(source):
        raise ValueError(
            f"{folder}: split {split} has {len(source)} records, its labels are "
            f"{len(labels)}; delete the folder to prepare it anew"
        )
    tests = _tests(folder, facts, len(source))
    faces = FaceSet(
        name="/".join(folder.parts[-3:]),  # name/config/version, or what it is now
        source=source,
        rows=np.arange(len(source)),
        labels=labels,
        source_labels=labels,
        identities=identities,
        fingerprint=facts.get("fingerprint")
        or fingerprint_of(
            builder.info.name,
            str(builder.info.version),
            identities,
            labels,
            info.num_bytes,
        ),
        pairs=tests.get("pairs"),
        gallery=tests["gallery"],
        probes=tests["probes"],
        licence=_licence(folder) or getattr(builder, "LICENCE", ""),
    )
    # Pairs, gallery and probes are rows of the source: they do not move.
    return drop_empty(faces)


def _tests(folder: epath.Path, facts: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Pairs, gallery and probes, whose rows are all among `count` records."""
    try:
        found: dict[str, Any] = {
            name: np.asarray(facts.get(name, []), int) for name in ("gallery", "probes")
        }
        rows = list(found.values())
        if "pairs" in facts:
            found["pairs"] = Pairs.from_json(facts["pairs"])
            rows += [found["pairs"].first, found["pairs"].second]
        rows = np.concatenate(rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}: damaged metadata.json ({error})") from None
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError(
            f"{folder}: metadata.json has rows {rows.min()} to {rows.max()} for tests, "
            f"expected 0 to {count - 1}"
        )
    return found


def _licence(folder: epath.Path) -> str:
    """What the card says; "" without a card, or where nobody stated one."""
    if not (folder / CARD).exists():
        return ""
    for line in (folder / CARD).read_bytes().decode(errors="replace").splitlines():
        if line.startswith(LICENCE_LINE):
            stated = line.removeprefix(LICENCE_LINE)
            return "" if stated == NO_LICENCE else stated
    return ""


def _labels(
    folder: epath.Path, split: str, facts: dict[str, Any], source: ShardSource
) -> tuple[np.ndarray, tuple[str, ...]]:
    if "counts" in facts:
        counts = np.asarray(facts["counts"])
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return labels, tuple(facts["identities"])
    if (folder / LABELS).exists() and split == "train":
        names = tuple(row[0] for row in read_names(folder / IDENTITIES))
        try:
            with (folder / LABELS).open("rb") as file:
                labels = np.load(file)
            whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
        except Exception as error:  # a damaged header may fail anyhow
            raise ValueError(f"{folder / LABELS}: {error!s:.160}") from None
        if not whole:
            raise ValueError(
                f"{folder / LABELS}: {labels.dtype} {list(labels.shape)}, expected "
                "whole numbers [N]"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(
                f"{folder / LABELS}: labels {labels.min()} to {labels.max()} for "
                f"{len(names)} identities"
            )
        return labels, names
    labels = np.zeros(len(source), np.int32)
    for start in tqdm(range(0, len(source), 1024), "labels", disable=len(source) < 1e5):
        rows = range(start, min(start + 1024, len(source)))
        for row, record in zip(rows, source.__getitems__(rows), strict=True):
            if isinstance(record, BadRecordError):
                raise ValueError(f"{folder}: {record}")
            labels[row] = record["label"]
    return labels, tuple(map(str, range(int(labels.max(initial=-1)) + 1)))


def open_folder(path: epath.PathLike) -> FaceSet:
    """The training split, or the only one, of a prepared folder."""
    try:
        builder = tfds.builder_from_directory(os.fspath(path))
    except Exception as error:  # whatever a damaged JSON file makes protobuf raise
        why = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: not a prepared dataset ({why})") from None
    splits = list(builder.info.splits)
    return open_split(builder, "train" if "train" in splits else splits[0])


def is_prepared(path: epath.PathLike) -> bool:
    """True for a folder that TFDS can read."""
    return (epath.Path(path) / "dataset_info.json").exists()
