"""The groups of gallery rows that may hold one of a probe's k best, block after block.

A group is `GROUP` rows in a row, and known by its largest score in float32.
"""

import numpy as np
from jaxtyping import Bool, Float

GROUP = 32
"""Rows of which the largest score is kept."""

_MERGED = 4096  # groups that are looked at together


class BestGroups:
    """The groups with the largest scores of each probe.

    Args:
      probes: P.
      k: rows wanted.
      slack: how far below the k-th largest score a group is wanted, too.
    """

    def __init__(self, probes: int, k: int, slack: float):
        self._k, self._slack = k, slack
        self._keep = 2 * k + 32
        self._largest = np.full((probes, 0), -np.inf, np.float32)
        self._group = np.zeros((probes, 0), np.int64)
        self._new: list[tuple[int, np.ndarray]] = []

    def add(self, first: int, largest: Float[np.ndarray, "groups P"]) -> None:
        """Takes the largest scores of groups numbered from `first`."""
        self._new.append((first, largest))
        if sum(len(scores) for _, scores in self._new) >= _MERGED:
            self._merge()

    def _merge(self) -> None:
        number = np.concatenate([first + np.arange(len(x)) for first, x in self._new])
        new = np.concatenate([x for _, x in self._new]).T
        self._new = []
        largest = np.concatenate([self._largest, new], axis=1)
        group = np.concatenate(
            [self._group, np.broadcast_to(number, new.shape)], axis=1
        )
        if largest.shape[1] > self._keep:
            part = np.argpartition(largest, -self._keep, axis=1)[:, -self._keep :]
            largest = np.take_along_axis(largest, part, axis=1)
            group = np.take_along_axis(group, part, axis=1)
        self._largest, self._group = largest, group

    def choose(self) -> tuple[list[np.ndarray], Bool[np.ndarray, " P"]]:
        """Groups that may hold one of the k best, rising, of each probe.

        The second result is true where all that are kept may, so others may, too.
        """
        if self._new:
            self._merge()
        largest = self._largest
        place = max(largest.shape[1] - self._k, 0)
        floor = np.partition(largest, place, axis=1)[:, place] - self._slack
        wanted = (largest >= floor[:, None]) & (largest > -np.inf)
        full = largest.shape[1] == self._keep
        crowded = np.logical_and(np.all(wanted, axis=1), full)
        chosen = [np.sort(g[w]) for g, w in zip(self._group, wanted, strict=True)]
        return chosen, crowded
