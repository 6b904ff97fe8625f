"""Pairs of close rows of one or two matrices, tile by tile.

Letters: A, B rows, D dimensions, K pairs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.centres import BLOCK, unit_block

COLUMNS = 1024
"""A tile is `BLOCK` x COLUMNS cosines."""

MAX_ANSWERS = 1_000_000
"""Cap of each list of answers, where the caller gives none."""


class ClassPairs(NamedTuple):
    """Pairs of classes, largest cosine first; ties by `a`, then `b`.

    Attributes:
      a: int64 [K], a class.
      b: int64 [K], the other class; in `look_alike_classes` a < b.
      cosine: float32 [K], between their centres.
      found: pairs at or above the threshold; more than K where the list was capped.
    """

    a: Int[np.ndarray, " K"]
    b: Int[np.ndarray, " K"]
    cosine: Float[np.ndarray, " K"]
    found: int


def tiles(
    first: Float[np.ndarray, "A D"], second: Float[np.ndarray, "B D"] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of `first`, rows of `second` and their cosines, in tiles.

    Without `second`: `first` with itself, the tiles on and above the diagonal. Rows
    without a direction are left out.
    """
    columns = first if second is None else second
    for start in range(0, len(first), BLOCK):
        row, left = _directions(first, start, BLOCK)
        for begin in range(start if second is None else 0, len(columns), COLUMNS):
            column, right = _directions(columns, begin, COLUMNS)
            yield row, column, left @ right.T


def _directions(
    x: Float[np.ndarray, "N D"], start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    rows = x[start : start + count]
    unit, usable = unit_block(rows)
    if not usable.all() and not np.isfinite(rows).all():
        raise ValueError(f"centres hold NaN or infinity in rows {start}..")
    return start + np.flatnonzero(usable), unit[usable]


class BestPairs:
    """Keeps the pairs with the largest cosines at or above a threshold."""

    def __init__(self, threshold: float | None, top: int | None):
        if threshold is not None and not -1 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, expected a cosine")
        if top is not None and top < 1:
            raise ValueError(f"top is {top}, expected at least 1")
        self.threshold = -2.0 if threshold is None else float(threshold)
        self.limit = MAX_ANSWERS if top is None else top
        self.floor = self.threshold  # rises as better pairs fill the list
        self.found = 0
        empty = np.zeros(0, np.int64)
        self.parts = [(empty, empty, np.zeros(0, np.float32))]

    def add(self, row: np.ndarray, column: np.ndarray, cos: np.ndarray) -> None:
        """Takes a tile: row [m], column [n] and cosines [m, n]; -inf is no pair."""
        self.found += int(np.count_nonzero(cos >= self.threshold))
        hits = np.flatnonzero(cos >= self.floor)
        if len(hits):
            a, b = np.divmod(hits, len(column))
            self.parts.append((row[a], column[b], cos[a, b]))
        if sum(len(part[2]) for part in self.parts) > 2 * self.limit:
            self._prune()

    def _prune(self) -> None:
        a, b, cos = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        if len(cos) > self.limit:
            self.floor = float(np.partition(cos, -self.limit)[-self.limit])
            keep = cos >= self.floor
            a, b, cos = a[keep], b[keep], cos[keep]
        order = np.lexsort((b, a, -cos))[: self.limit]
        self.parts = [(a[order], b[order], cos[order])]

    def result(self) -> ClassPairs:
        """The pairs kept, best first."""
        self._prune()
        a, b, cos = self.parts[0]
        return ClassPairs(a, b, np.clip(cos, -1, 1), self.found)
