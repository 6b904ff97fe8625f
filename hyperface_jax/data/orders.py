"""In which order examples come: pure functions of (seed, step), for any host count."""

import math
import threading
from typing import Any

import grain
import numpy as np

from hyperface_jax.data.edits import sampling_weights

SAMPLERS = {"uniform": 1.0, "sqrt": 0.5, "identity": 0.0}
"""Power of the number of images with which an identity is drawn."""

VIRTUAL_SHARDS = 1024
"""Pieces that a set is cut into where hosts keep their part in memory."""


class HostRows:
    """Step -> the rows of one process in each global batch, as a random-access source.

    Only these are computed: the rows of 64 hosts take longer than to train on them.

    Args:
      order: position -> example, without an end.
      batch_size: B, global.
      part: of each batch.
    """

    def __init__(self, order: Any, batch_size: int, part: range):
        self._order, self._batch_size, self._part = order, batch_size, part

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __getitem__(self, step: int) -> np.ndarray:
        start = int(step) * self._batch_size
        return np.array([self._order[start + place] for place in self._part], np.int64)


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
        self._lock = threading.Lock()  # one of the threads that work ahead computes

    def __len__(self) -> int:
        return len(self._edges) * self._epochs

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(int(position), len(self._edges))
        order = self._cache.get(epoch)
        if order is None:
            with self._lock:
                order = self._cached(epoch)
        return int(order[place])

    def _cached(self, epoch: int) -> np.ndarray:
        order = self._cache.get(epoch)
        if order is None:
            order = self._order(epoch)
            # Batches run over the end of an epoch, and threads work ahead: keep two.
            newest = sorted([*self._cache, epoch])[-2:]
            kept = {k: v for k, v in self._cache.items() if k in newest}
            self._cache = kept | {epoch: order}
        return order

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        count = len(self._edges)
        drawn = np.searchsorted(self._edges, rng.random() + np.arange(count), "right")
        return rng.permutation(np.minimum(drawn, count - 1))


class LaneBatches:
    """Batches whose rows each come from a fixed part of the set.

    The set is cut into `VIRTUAL_SHARDS` contiguous pieces. G = gcd(pieces, batch size)
    lanes of neighbouring pieces feed equal numbers of neighbouring rows of every batch,
    and each lane has its own permutation an epoch. So a host that reads a share of the
    rows needs the same share of the set, and the order does not know how many hosts
    there are: their number must divide G.

    Args:
      num_examples: N, at least one for each lane.
      batch_size: B, global.
      seed: of all permutations.
      process_index: of the host whose rows are wanted.
      process_count: number of hosts.
      steps: how many batches there are.

    Raises:
      ValueError: too few images, or the number of hosts does not divide the lanes.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        steps: int = 1 << 40,
    ):
        self.lanes = math.gcd(VIRTUAL_SHARDS, batch_size)
        if num_examples < self.lanes:
            raise ValueError(
                f"data.cache=ram: {num_examples} images for {self.lanes} lanes of a "
                f"batch of {batch_size}, expected at least one for each"
            )
        if self.lanes % process_count:
            raise ValueError(
                f"data.cache=ram: {process_count} hosts do not divide the {self.lanes} "
                "lanes of a batch, expected a power of 2"
            )
        share = self.lanes // process_count
        self._mine = range(process_index * share, (process_index + 1) * share)
        pieces = np.arange(VIRTUAL_SHARDS + 1) * num_examples // VIRTUAL_SHARDS
        self._edges = pieces[:: VIRTUAL_SHARDS // self.lanes]
        self._rows = batch_size // self.lanes  # of a lane in a batch
        self._seed = seed
        self._steps = steps
        self._cache: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> np.ndarray:
        return np.concatenate([self._of_lane(lane, int(step)) for lane in self._mine])

    def _of_lane(self, lane: int, step: int) -> np.ndarray:
        low, high = int(self._edges[lane]), int(self._edges[lane + 1])
        places = np.arange(step * self._rows, (step + 1) * self._rows)
        epochs, within = np.divmod(places, high - low)
        found = np.empty(self._rows, np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            found[mine] = low + self._order(lane, int(epoch), high - low)[within[mine]]
        return found

    def _order(self, lane: int, epoch: int, count: int) -> np.ndarray:
        order = self._cache.get((lane, epoch))
        if order is None:
            rng = np.random.default_rng([self._seed, lane, epoch])
            order = rng.permutation(count)
            self._cache.pop((lane, epoch - 2), None)
            self._cache[lane, epoch] = order
        return order

    def examples_of_host(self) -> np.ndarray:
        """Examples that the host reads in all its batches: one contiguous range."""
        return np.arange(self._edges[self._mine.start], self._edges[self._mine.stop])


def batch_indices(
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    sampler: str = "uniform",
    by_lanes: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Step -> indices of a process [B / processes]: another order each epoch.

    Batches run on over the end of an epoch, so no example is ever left out.

    Args:
      labels: int32 [N].
      batch_size: B, of a global batch; the processes have neighbouring parts of it.
      seed: of all orders.
      sampler: "uniform" draws each image once an epoch; the other rows of `SAMPLERS`
        draw an identity of n images with that power of n.
      by_lanes: each row of a batch from its own part of the set, see `LaneBatches`;
        uniform only.
      process_index: of this host.
      process_count: number of hosts.

    Raises:
      ValueError: the hosts cannot have equal parts.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} "
            "processes"
        )
    if by_lanes:
        batches: Any = LaneBatches(
            len(labels),
            batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )
        return grain.MapDataset.source(batches)
    if sampler == "uniform":
        order = grain.MapDataset.range(len(labels)).seed(seed).shuffle().repeat()
    else:
        weights = sampling_weights(labels, SAMPLERS[sampler])
        draws: Any = WeightedEpochs(weights, seed=seed)
        order = grain.MapDataset.source(draws)
    share = batch_size // process_count
    part = range(process_index * share, (process_index + 1) * share)
    rows: Any = HostRows(order, batch_size, part)
    return grain.MapDataset.source(rows)
