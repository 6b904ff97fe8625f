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
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (  # pyright: ignore[reportMissingModuleSource, reportAttributeAccessIssue]
    ArrayRecordReader,
)
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from hyperface_jax.data.face_set import FaceSet, drop_empty, fingerprint_of
from hyperface_jax.data.name_lists import read_names
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import BadRecordError, Record

LABELS = "labels.npy"
IDENTITIES = "identities.txt"
REJECTED = "rejected.tsv"
CARD = "card.md"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access

# Generated code, which no type checker can follow.
_Example: Any = getattr(tf_example_pb2, "Example")  # noqa: B009


class ShardSource:
    """Records of array_record shards.

    Parsed without TFDS's checks, which turn each field into an array of its declared
    dtype, and read without the thread pool a shard of array_record's own data source:
    that takes longer than reading a face does (benchmarks/reading.py).

    Args:
      files: shards in order.
    """

    def __init__(self, files: Sequence[str]):
        self._files = list(files)
        self._readers = [ArrayRecordReader(f, _READER_OPTIONS) for f in self._files]
        counts = [reader.num_records() for reader in self._readers]
        self._starts = np.cumsum([0, *counts])

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_files"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check_lengths(self, promised: Sequence[int]) -> None:
        """A damaged shard seems to be empty.

        Raises:
          ValueError: a shard does not hold as many records as promised.
        """
        for file, found, count in zip(
            self._files, np.diff(self._starts), promised, strict=True
        ):
            if found != count:
                raise ValueError(f"{file}: {found} records found, expected {count}")

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records; one in a damaged part of a shard is an error."""
        wanted = np.asarray(rows, np.int64)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[Record] = [BadRecordError("not read")] * len(wanted)
        for k in np.unique(owner):
            places = np.flatnonzero(owner == k)
            records = self._read(int(k), (wanted[places] - self._starts[k]).tolist())
            for place, record in zip(places.tolist(), records, strict=True):
                found[place] = record
        return found

    def _read(self, shard: int, positions: list[int]) -> list[Record]:
        reader = self._readers[shard]
        try:
            return [parse(data) for data in reader.read(positions)]
        except (RuntimeError, ValueError, IndexError) as error:
            if len(positions) == 1:
                why = " ".join(str(error).split())[:160]
                where = f"{self._files[shard]}, record {positions[0]}"
                return [BadRecordError(f"{where}: {why}")]
            # A reader that met damage stays in that state: go on with a new one.
            self._readers[shard] = ArrayRecordReader(
                self._files[shard], _READER_OPTIONS
            )
            return [record for p in positions for record in self._read(shard, [p])]

    def take(self, rows: np.ndarray) -> "TakenRows":
        """The given rows as a source of their own."""
        return TakenRows(self, rows)


class TakenRows:
    """Some rows of a source that is cheap to open again.

    Args:
      source: any.
      rows: int [n].
    """

    def __init__(self, source: ShardSource, rows: np.ndarray):
        self._source = source
        self._rows = np.asarray(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records of the given rows of this source."""
        return self._source.__getitems__([int(self._rows[row]) for row in rows])

    def take(self, rows: np.ndarray) -> "TakenRows":
        """The given rows as a source of their own."""
        return TakenRows(self._source, self._rows[rows])


def parse(data: bytes) -> Record:
    """A serialised tf.train.Example with image, label and id."""
    try:
        example = _Example.FromString(data)
        feature = example.features.feature
        return {
            "image": feature["image"].bytes_list.value[0],
            "label": feature["label"].int64_list.value[0],
            "id": feature["id"].bytes_list.value[0].decode(errors="replace")
            if "id" in feature
            else "",
        }
    except Exception as error:  # protobuf has its own, and IndexError is a lost field
        return BadRecordError(f"not an example with image and label ({error})"[:160])


def serialise(image: bytes, label: int, id_: str) -> bytes:
    """Inverse of `parse`; what TFDS writes for the same features."""
    example = _Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(id_.encode("utf-8", "backslashreplace"))
    feature["image"].bytes_list.value.append(image)
    feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


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
        name=f"{builder.info.full_name} {split}",
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
    )
    # Pairs, gallery and probes are rows of the source: they do not move.
    return drop_empty(faces)


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
