"""The input pipeline: a pure function (seed, step) -> global batch.

Position is the step: to resume, start at the step in the checkpoint. No iterator
state exists, so another number of workers or hosts changes nothing.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from hyperface_jax.data.decode import BadRecordError, decode_image
from hyperface_jax.data.face_set import FaceSet

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class BatchReader:
    """Reads and decodes whole batches of a FaceSet in threads.

    A record that cannot be decoded, or whose label is wrong, keeps its place with
    weight 0: dropping it would shift all later batches. It is logged once and counted.
    """

    def __init__(self, faces: FaceSet, *, image_size: int, threads: int):
        self._faces = faces
        self._size = image_size
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

        def decode(k: int) -> None:
            row = int(self._faces.rows[indices[k]])
            try:
                self._check_label(row, records[k])
                images[k] = decode_image(records[k]["image"], self._size)
            except BadRecordError as error:
                weights[k] = 0
                self._report(row, records[k], error)

        list(self._pool.map(decode, range(len(records))))
        labels = self._faces.labels[np.asarray(indices)]
        return {"image": images, "label": labels, "weight": weights}

    def _check_label(self, row: int, record: dict) -> None:
        """A label outside the classes, or of another person, would train on noise."""
        expected, found = int(self._faces.source_labels[row]), int(record["label"])
        if found != expected:
            count = len(np.unique(self._faces.source_labels))
            raise BadRecordError(
                f"label is {found}, expected {expected} (of {count} identities)"
            )

    def _report(self, row: int, record: dict, error: BadRecordError) -> None:
        with self._lock:
            if row in self._bad:
                return
            self._bad[row] = str(error)
        name = record["id"]
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        log.warning(
            "%s, record %d (%s): %s; it keeps its place with weight 0",
            self._faces.name,
            row,
            name,
            error,
        )


def batch_indices(num_examples: int, *, batch_size: int, seed: int) -> grain.MapDataset:
    """Step -> indices [batch_size]: a new permutation of the examples each epoch.

    Batches run on over the end of an epoch, so no example is ever left out.
    """
    return (
        grain.MapDataset.range(num_examples)
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, drop_remainder=True)
    )


def train_batches(
    reader: BatchReader,
    *,
    num_examples: int,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 3,
) -> Iterator[Batch]:
    """Rows of this process in the global batches of [start_step, stop_step).

    Args:
      reader: decodes one batch.
      num_examples: size of the set.
      batch_size: global; a multiple of process_count.
      seed: of the permutations.
      start_step: first step wanted.
      stop_step: one after the last.
      process_index: of this host.
      process_count: number of hosts.
      prefetch: batches decoded ahead.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} "
            "processes"
        )
    rows = batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)
    indices = batch_indices(num_examples, batch_size=batch_size, seed=seed)
    batches = indices.slice(slice(start_step, stop_step)).map(
        lambda whole: reader(np.asarray(whole)[mine].tolist())
    )
    # The reader has its own threads; Grain's are only for working ahead.
    options = grain.ReadOptions(
        num_threads=min(2, prefetch), prefetch_buffer_size=prefetch
    )
    return iter(batches.to_iter_dataset(options))
