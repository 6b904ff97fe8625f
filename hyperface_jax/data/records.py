"""What a source of images is, and the errors of a single record."""

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np


class BadRecordError(ValueError):
    """A record that cannot be used; the message says why."""


NOT_THERE = os.strerror(errno.ENOENT)
"""How the message of a record ends whose file is missing."""


class UnreadableFileError(BadRecordError):
    """The file system did not give a file that is there: it may the next time."""


Record = dict[str, Any] | BadRecordError
"""`image` (encoded bytes, or pixels uint8 [H, W, 3]), `label` (int) and `id` (str); or
why there is none."""


class RecordSource(Protocol):
    """Random access to records.

    One bad record does not spoil its neighbours: in its place stands the error.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records of the given rows, in that order."""
        ...

    def take(self, rows: np.ndarray) -> "RecordSource":
        """The given rows as a source of their own, which can be pickled."""
        ...


class ByteReader(Protocol):
    """Random access to the bytes of image files."""

    def __call__(self, row: int) -> bytes:
        """Contents of file `row`.

        Raises:
          OSError: it cannot be read.
        """
        ...

    def take(self, rows: np.ndarray) -> "ByteReader":
        """A reader of the given files only."""
        ...


class ImageSource:
    """Records whose images are read one by one, with labels and ids known before.

    Args:
      read: row -> encoded image.
      labels: int32 [N].
      ids: str [N].
      threads: that wait for the file system at the same time.
    """

    def __init__(
        self,
        read: ByteReader,
        labels: np.ndarray,
        ids: Sequence[str],
        *,
        threads: int = 8,
    ):
        self._read = read
        self._labels = labels
        self._ids = ids
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pool": None}

    @property
    def ids(self) -> Sequence[str]:
        """Name of each record."""
        return self._ids

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records; a file that cannot be read is an error in its place."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        return list(self._pool.map(self._record, rows))

    def _record(self, row: int) -> Record:
        try:
            image = self._read(row)
        except OSError as error:
            return file_error(self._ids[row], error)
        except ValueError as error:  # a path may hold a NUL
            return BadRecordError(f"{self._ids[row]}: {error}")
        return {"image": image, "label": int(self._labels[row]), "id": self._ids[row]}

    def take(self, rows: np.ndarray) -> "ImageSource":
        """The given rows as a source of their own."""
        ids = [self._ids[int(row)] for row in rows]
        return ImageSource(
            self._read.take(rows), self._labels[rows], ids, threads=self._threads
        )


def file_error(name: str, error: OSError) -> BadRecordError:
    """What stands in the place of a record whose file could not be read."""
    if isinstance(error, FileNotFoundError):
        return BadRecordError(f"{name}: {NOT_THERE}")
    return UnreadableFileError(f"{name}: {error.strerror or error}")


class ConcatSource:
    """Several sources one after the other: labels shifted, "0/", "1/" ... before ids.

    Args:
      sources: in order.
      label_offsets: added to the labels of each.
    """

    def __init__(self, sources: Sequence[RecordSource], label_offsets: Sequence[int]):
        self._sources = list(sources)
        self._offsets = list(label_offsets)
        self._starts = np.cumsum([0] + [len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records of any of the sources, in the given order."""
        wanted = np.asarray(rows, np.int64)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[Record] = [BadRecordError("not read")] * len(wanted)
        for k in np.unique(owner):
            places = np.flatnonzero(owner == k)
            own = (wanted[places] - self._starts[k]).tolist()
            records = self._sources[k].__getitems__(own)
            for place, record in zip(places, records, strict=True):
                if isinstance(record, dict):
                    record = record | {
                        "label": record["label"] + self._offsets[k],
                        "id": f"{k}/{record['id']}",
                    }
                found[place] = record
        return found

    def take(self, rows: np.ndarray) -> "ConcatSource":
        """The given rows; they must not go back from one source to an earlier one."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        if (np.diff(owner) < 0).any():
            raise ValueError("rows go back to an earlier source, expected its order")
        return ConcatSource(
            [
                source.take(rows[owner == k] - self._starts[k])
                for k, source in enumerate(self._sources)
            ],
            self._offsets,
        )


def each_id(source: RecordSource) -> Iterator[tuple[int, str]]:
    """Row and id of every readable record; reads them where they are not known."""
    known: Sequence[str] | None = getattr(source, "ids", None)
    if known is not None:
        yield from enumerate(known)
        return
    for start in range(0, len(source), 1024):
        rows = range(start, min(start + 1024, len(source)))
        for row, record in zip(rows, source.__getitems__(rows), strict=True):
            if isinstance(record, dict):
                yield row, record["id"]


def ids_of(source: RecordSource) -> dict[str, int]:
    """Id -> row.

    Raises:
      ValueError: an id stands for two records: nobody can tell which is meant.
    """
    found: dict[str, int] = {}
    for row, id_ in each_id(source):
        if id_ in found:
            raise ValueError(f"id {id_!r} stands for two images, expected one")
        found[id_] = row
    return found
