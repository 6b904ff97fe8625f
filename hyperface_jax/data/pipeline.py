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

from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.edits import sampling_weights
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.records import BadRecordError, Record

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
                image = self._checked(row, records[k])["image"]
                images[k] = decode_image(image, self._size)
            except BadRecordError as error:
                weights[k] = 0
                self._report(row, records[k], error)

        list(self._pool.map(decode, range(len(records))))
        labels = self._faces.labels[np.asarray(indices)]
        return {"image": images, "label": labels, "weight": weights}

    def _checked(self, row: int, record: Record) -> dict[str, Any]:
        """A label outside the classes, or of another person, would train on noise."""
        if isinstance(record, BadRecordError):
            raise record
        expected, found = int(self._faces.source_labels[row]), int(record["label"])
        if found != expected:
            count = len(np.unique(self._faces.source_labels))
            raise BadRecordError(
                f"label is {found}, expected {expected} (of {count} identities)"
            )
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


SAMPLERS = {"uniform": 1.0, "sqrt": 0.5, "identity": 0.0}
"""Power of the number of images with which an identity is drawn."""


class WeightedEpochs:
    """Epochs of N draws with weights, as a random-access source of row numbers.

    Within an epoch image i occurs floor or ceil of its weight times (systematic
    sampling: one random offset), in a random order. A pure function of (seed, epoch).

    Args:
      weights: float64 [N], summing to N.
      seed: of all epochs.
      epochs: how many there are.
    """

    def __init__(self, weights: np.ndarray, *, seed: int, epochs: int = 1 << 20):
        self._edges = np.cumsum(weights)
        self._seed = seed
        self._epochs = epochs
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._edges) * self._epochs

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(int(position), len(self._edges))
        order = self._cache.get(epoch)
        if order is None:
            order = self._order(epoch)
            # Batches run over the end of an epoch, and threads work ahead: keep two.
            newest = sorted([*self._cache, epoch])[-2:]
            kept = {k: v for k, v in self._cache.items() if k in newest}
            self._cache = kept | {epoch: order}
        return int(order[place])

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        count = len(self._edges)
        drawn = np.searchsorted(self._edges, rng.random() + np.arange(count), "right")
        return rng.permutation(np.minimum(drawn, count - 1))


def batch_indices(
    labels: np.ndarray, *, batch_size: int, seed: int, sampler: str = "uniform"
) -> grain.MapDataset:
    """Step -> indices [batch_size]: another order of the examples each epoch.

    Batches run on over the end of an epoch, so no example is ever left out.

    Args:
      labels: int32 [N].
      batch_size: of a batch.
      seed: of all orders.
      sampler: "uniform" draws each image once an epoch; the other rows of `SAMPLERS`
        draw an identity of n images with that power of n.
    """
    if sampler == "uniform":
        order = grain.MapDataset.range(len(labels)).seed(seed).shuffle().repeat()
    else:
        weights = sampling_weights(labels, SAMPLERS[sampler])
        draws: Any = WeightedEpochs(weights, seed=seed)
        order = grain.MapDataset.source(draws)
    return order.batch(batch_size, drop_remainder=True)


def train_batches(
    reader: BatchReader,
    indices: grain.MapDataset,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 3,
) -> Iterator[Batch]:
    """Rows of this process in the global batches of [start_step, stop_step).

    Args:
      reader: decodes one batch.
      indices: step -> rows of the global batch, from `batch_indices`.
      batch_size: global; a multiple of process_count.
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
    batches = indices.slice(slice(start_step, stop_step)).map(
        lambda whole: reader(np.asarray(whole)[mine].tolist())
    )
    # The reader has its own threads; Grain's are only for working ahead.
    options = grain.ReadOptions(
        num_threads=min(2, prefetch), prefetch_buffer_size=prefetch
    )
    return iter(batches.to_iter_dataset(options))
