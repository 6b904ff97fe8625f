"""Random access to the records of array_record shards."""

import functools
import os
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import (  # pyright: ignore[reportMissingModuleSource, reportAttributeAccessIssue]
    ArrayRecordReader,
)
from tensorflow_datasets.proto import tf_example_pb2

from hyperface_jax.data.name_lists import read_names
from hyperface_jax.data.records import BadRecordError, Record

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
      ids_path: list of all their ids, or ""; it is read when somebody asks.
    """

    def __init__(self, files: Sequence[str], ids_path: str = ""):
        self._files = list(files)
        self._ids_path = ids_path
        _allow_open_files(len(self._files))
        self._readers = [ArrayRecordReader(f, _READER_OPTIONS) for f in self._files]
        counts = [reader.num_records() for reader in self._readers]
        self._starts = np.cumsum([0, *counts])

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_ids_path": self._ids_path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_files"], state["_ids_path"])

    @functools.cached_property
    def ids(self) -> Sequence[str] | None:
        """Id of each record; None where only the records themselves say it.

        Raises:
          ValueError: their list is damaged.
        """
        if not self._ids_path:
            return None
        ids = [row[0] for row in read_names(self._ids_path)]
        if len(ids) != len(self):
            raise ValueError(
                f"{self._ids_path}: {len(ids)} ids for {len(self)} records; without "
                "this file they are read from the records"
            )
        return ids

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
        """The given rows as a source of their own, of the shards that hold them."""
        rows = np.asarray(rows)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        used = np.unique(owner)
        if len(used) > len(self._files) // 2:
            return TakenRows(self, rows)
        part = ShardSource([self._files[k] for k in used])
        moved = part._starts[np.searchsorted(used, owner)] - self._starts[owner]
        return TakenRows(part, rows + moved, named_by=(self, rows))


class TakenRows:
    """Some rows of a source that is cheap to open again.

    Args:
      source: any.
      rows: int [n].
      named_by: source and rows that know the ids, where it is another. It is not sent
        to other processes.
    """

    def __init__(
        self,
        source: ShardSource,
        rows: np.ndarray,
        *,
        named_by: tuple[ShardSource, np.ndarray] | None = None,
    ):
        self._source = source
        self._rows = np.asarray(rows)
        self._named_by = named_by

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_named_by": None}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> Sequence[str] | None:
        """See `ShardSource.ids`."""
        source, rows = self._named_by or (self._source, self._rows)
        ids = source.ids
        return None if ids is None else [ids[int(row)] for row in rows]

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records of the given rows of this source."""
        return self._source.__getitems__([int(self._rows[row]) for row in rows])

    def take(self, rows: np.ndarray) -> "TakenRows":
        """The given rows as a source of their own."""
        named_by = self._named_by
        if named_by is not None:
            named_by = named_by[0], named_by[1][rows]
        return TakenRows(self._source, self._rows[rows], named_by=named_by)


def _allow_open_files(files: int) -> None:
    """WebFace42M has 2 600 shards of our size; most systems begin at 1 024 files.

    Raises:
      ValueError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 64
    wanted = in_use + files + 256  # and some for everything else
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(
            f"{files} shards are to be open at once, the system allows {hard} files: "
            f"raise ulimit -n to {wanted}, or prepare with larger --images_per_shard"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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


def stored_text(id_: str) -> str:
    """An id as it reads in a record: UTF-8 has no lone surrogates."""
    return id_.encode("utf-8", "backslashreplace").decode()


def serialise(image: bytes, label: int, id_: str) -> bytes:
    """Inverse of `parse`; what TFDS writes for the same features."""
    example = _Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(stored_text(id_).encode())
    feature["image"].bytes_list.value.append(image)
    feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)
