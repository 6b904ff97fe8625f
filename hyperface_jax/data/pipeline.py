"""The input pipeline: a pure function (seed, step) -> global batch.

Position is the step: to resume, start at the step in the checkpoint. No iterator
state exists, so another number of workers or hosts changes nothing.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from hyperface_jax.data.decode import check_size, decode_into
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.records import BadRecordError, Record

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class BatchReader:
    """Reads and decodes whole batches of a FaceSet in threads.

    A record that cannot be decoded, or whose label is wrong, keeps its place with
    weight 0: dropping it would shift all later batches. It is logged once and counted.
    """

    def __init__(
        self, faces: FaceSet, *, image_size: int, threads: int, exact: bool = False
    ):
        """With `exact`, an image of another size is a bad record, not resampled."""
        self._faces = faces
        self._size = image_size
        self._threads = threads
        self._exact = exact
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def bad_records(self) -> dict[int, str]:
        """Row of the source -> reason, of every record found unreadable so far."""
        return dict(self._bad)

    def __call__(self, indices: Sequence[int]) -> Batch:
        """Images uint8 [n, S, S, 3], labels int32 [n], weights float32 [n]."""
        records = self._faces.read(indices)
        images = np.zeros((len(records), self._size, self._size, 3), np.uint8)
        weights = np.ones(len(records), np.float32)

        def decode(places: range) -> None:
            for k in places:
                row = int(self._faces.rows[indices[k]])
                try:
                    data = self._checked(row, records[k])["image"]
                    if self._exact:
                        check_size(data, self._size)
                    decode_into(data, images[k])
                except BadRecordError as error:
                    weights[k] = 0
                    self._report(row, records[k], error)

        # A few runs of images a thread: a task an image costs a fifth of its decoding.
        step = max(-(-len(records) // (4 * self._threads)), 1)
        runs = (
            range(start, min(start + step, len(records)))
            for start in range(0, len(records), step)
        )
        list(self._pool.map(decode, runs))
        labels = self._faces.labels[np.asarray(indices)]
        return {"image": images, "label": labels, "weight": weights}

    def _checked(self, row: int, record: Record) -> dict[str, Any]:
        """A label outside the classes, or of another person, would train on noise."""
        if isinstance(record, BadRecordError):
            raise record
        expected, found = int(self._faces.source_labels[row]), int(record["label"])
        if found != expected:
            raise BadRecordError(f"label is {found}, expected {expected}")
        return record

    def _report(self, row: int, record: Record, error: BadRecordError) -> None:
        with self._lock:
            if row in self._bad:
                return
            self._bad[row] = str(error)
        name = "unreadable" if isinstance(record, BadRecordError) else record["id"]
        log.warning(
            "%s, record %d (%s): %s; it keeps its place with weight 0",
            self._faces.name,
            row,
            name,
            error,
        )


def train_batches(
    reader: BatchReader,
    indices: grain.MapDataset,
    *,
    start_step: int,
    stop_step: int,
    prefetch: int = 3,
) -> Iterator[Batch]:
    """Rows of a process in the global batches of [start_step, stop_step).

    Args:
      reader: decodes one batch.
      indices: step -> its indices, from `orders.batch_indices`.
      start_step: first step wanted.
      stop_step: one after the last.
      prefetch: batches decoded ahead.
    """
    batches = indices.slice(slice(start_step, stop_step)).map(
        lambda mine: reader(mine.tolist())
    )
    # The reader has its own threads; Grain's are only for working ahead.
    options = grain.ReadOptions(
        num_threads=min(2, prefetch), prefetch_buffer_size=prefetch
    )
    return iter(batches.to_iter_dataset(options))
