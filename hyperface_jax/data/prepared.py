"""Prepared datasets: a TFDS folder of array_record shards, with lists beside it.

Beside what TFDS writes (dataset_info.json, features.json, shards) lie

    labels.npy       int32 [N], label of each record in the order of the shards
    identities.txt   name of each label, one a line
    rejected.tsv     id, reason
    card.md          what is in it, for people

A folder without labels.npy and without counts in its metadata (TFDS's own, Beam's) is
read through once for its labels.
"""

import os
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
    facts = (builder.info.metadata or {}).get("splits", {}).get(split, {})
    info = builder.info.splits[split]
    source = ShardSource([os.fspath(path) for path in info.filepaths])
    source.check_lengths(info.shard_lengths)
    labels, identities = _labels(folder, split, facts, source)
    if len(labels) != len(source):
        raise ValueError(
            f"{folder}: split {split} has {len(source)} records, its labels are "
            f"{len(labels)}; delete the folder to prepare it anew"
        )
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
        pairs=Pairs.from_json(facts["pairs"]) if "pairs" in facts else None,
        gallery=np.asarray(facts.get("gallery", []), int),
        probes=np.asarray(facts.get("probes", []), int),
        licence=_licence(folder) or getattr(builder, "LICENCE", ""),
    )
    # Pairs, gallery and probes are rows of the source: they do not move.
    return drop_empty(faces)


def _licence(folder: epath.Path) -> str:
    """What the card says; "" without a card, or where nobody stated one."""
    if not (folder / CARD).exists():
        return ""
    for line in (folder / CARD).read_text().splitlines():
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
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{folder / LABELS}: {error}") from None
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
