"""How many distractors score at least as high as each mate of a probe.

Precision. A cosine decides in float32 (error about 1e-7), except where a distractor
comes within `SLACK` of the mate: there both are computed in float64, and scores that
differ by less than 1e-12 are a tie, which goes against the mate. So ranks up to
`EXACT_RANKS` are those of float64; beyond, where rank-k is of no interest, such
distractors count against the mate without a second look.

Letters: m mates of the probe, b distractors in a block, D dimensions.
"""

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.similarity import unit_rows

SLACK = 1e-6
"""How near to the mate's a score in float32 may come and decide."""

EXACT_RANKS = 1000
"""Up to this rank the counts are those of float64."""

_TIE = 1e-12
_BINS = 4096


class MateCounts:
    """Scores of a probe's mates, rising, and the distractors that score as high.

    Where many distractors reach the lowest mate they are put in bins that divide the
    range of the mates. A bin that holds no mate has one answer for all its scores, the
    others need a look. The bin is a rising function of the score, however that is
    rounded, so what lies outside the bins from below[i] to above[i] is clear of mate i.
    """

    def __init__(self, wanted: Float[np.ndarray, " m"], most: Int[np.ndarray, " m"]):
        self.counts = np.zeros(len(wanted), np.int64)
        self._wanted, self._most = wanted, most
        self._open_from(0)

    def _open_from(self, first: int) -> None:
        """Mates before the first have all the distractors that are of interest."""
        self._open = slice(first, None)
        wanted = self._wanted[first:]
        self._below, self._above = _single(wanted - SLACK), _single(wanted + SLACK)
        self.lowest = self._below[0] if len(wanted) else np.float32(np.inf)
        self._bins: _Bins | None = None

    def add(self, scores: Float[np.ndarray, " b"], raw, unit_probe) -> None:
        """Counts a block of distractors, scores [b] of the faces raw [b, D]."""
        wanted, counts = self._wanted[self._open], self.counts[self._open]
        near, clear = self._near(scores)
        ordered = scores[near]
        first_sure = np.searchsorted(ordered, self._above)
        first_doubtful = np.searchsorted(ordered, self._below)
        sure = clear + len(near) - first_sure
        found = clear + len(near) - first_doubtful
        for i in np.flatnonzero((found > sure) & (counts + sure < EXACT_RANKS)):
            doubtful = raw[near[first_doubtful[i] : first_sure[i]]]
            exact = unit_rows(doubtful, "distractors") @ unit_probe
            found[i] = sure[i] + np.count_nonzero(exact >= wanted[i] - _TIE)
        counts += found
        wanting = np.flatnonzero(counts < self._most[self._open])
        first = wanting[0] if len(wanting) else len(counts)
        if first:
            self._open_from(self._open.start + int(first))

    def _near(self, scores) -> tuple[np.ndarray, np.ndarray]:
        """Places of scores that need a look, rising, and how many others beat each."""
        reached = scores >= self.lowest
        if 8 * np.count_nonzero(reached) < len(scores):
            near, clear = np.flatnonzero(reached), np.zeros(len(self._below), np.int64)
        else:
            if self._bins is None:
                self._bins = _Bins(self._below, self._above)
            near, clear = self._bins.split(scores)
        return near[np.argsort(scores[near])], clear


class _Bins:
    """See `MateCounts`. Bin 1 begins at the lowest mate; bin 0 is all below."""

    def __init__(self, below, above):
        self._scale = _BINS / (above[-1] - below[0])
        self._shift = 1 - below[0] * self._scale
        self._look = len(below) + 1
        first, last = self._of(below), self._of(above)
        size = int(last[-1]) + 2
        ended = np.cumsum(np.bincount(last + 1, minlength=size))
        begun = np.cumsum(np.bincount(first, minlength=size))
        # Of each bin: the mates below it, or their number + 1 where it needs a look.
        self._kind = np.where(begun > ended, self._look, ended).astype(np.uint16)

    def _of(self, scores) -> np.ndarray:
        scaled = scores * self._scale
        scaled += self._shift
        return scaled.astype(np.intp)

    def split(self, scores) -> tuple[np.ndarray, np.ndarray]:
        """Places in bins that need a look, and how many others beat each mate."""
        kind = self._kind.take(self._of(scores), mode="clip")
        counts = np.bincount(kind, minlength=self._look + 1)
        clear = np.cumsum(counts[self._look - 1 : 0 : -1])[::-1]
        return np.flatnonzero(kind == self._look), clear


def _single(score):
    return np.asarray(score, np.float32)
