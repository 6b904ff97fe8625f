"""The open-set criterion of the SphereFace papers, on the angles of a test set.

A threshold that separates all identities exists if and only if the largest angle within
an identity is smaller than the smallest angle between identities (SphereFace, CVPR
2017, section 3). Both extremes hang on one pair, often a mislabelled one, so quantiles
and the overlap of the two distributions stand beside them.

Letters: N embeddings, D dimensions, T = 180 bins of one degree.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.similarity import unit_rows

EXACT_PAIRS = 2_000_000
"""Up to this many pairs of a kind its angles are kept and its quantile is exact."""

_FINE = 100  # bins a degree of the histogram that stands in for more pairs


@dataclasses.dataclass(frozen=True, eq=False)
class OpenSet:
    """Angles within identities (intra) and between them (inter), in degrees.

    Attributes:
      max_intra: largest angle of a genuine pair.
      min_inter: smallest angle of an impostor pair.
      intra_q99: 99 % quantile of the genuine pairs' angles.
      inter_q01: 1 % quantile of the impostor pairs' angles.
      overlap: share of mass common to both histograms, each normalised to 1:
        sum over bins of min(intra, inter). 0: apart; 1: the same distribution.
      intra_histogram: genuine pairs in each degree [180]; bin b holds [b, b + 1),
        the last one also 180.
      inter_histogram: impostor pairs in each degree.
      genuine_pairs: number of pairs of one identity.
      impostor_pairs: number of pairs of two identities.
    """

    max_intra: float
    min_inter: float
    intra_q99: float
    inter_q01: float
    overlap: float
    intra_histogram: Int[np.ndarray, "180"]
    inter_histogram: Int[np.ndarray, "180"]
    genuine_pairs: int
    impostor_pairs: int

    @property
    def gap(self) -> float:
        """min_inter - max_intra in degrees; the criterion holds where it is > 0."""
        return self.min_inter - self.max_intra


def open_set_criterion(
    embeddings: Float[np.ndarray, "N D"],
    identity: Int[np.ndarray, " N"],
    *,
    block: int = 1024,
) -> OpenSet:
    """Angles of all N (N - 1) / 2 pairs of embeddings.

    Quantiles interpolate linearly between order statistics (NumPy's default) where a
    kind has at most `EXACT_PAIRS` pairs. Beyond, they come from a histogram of .01
    degree, interpolated within its bin: less than .01 degree off. Extremes and counts
    are always exact. Memory is O(block · N).

    Args:
      embeddings: [N, D], need not be normalised, but not zero: it has no angle.
      identity: person of each row [N].
      block: rows at a time.

    Raises:
      ValueError: NaN or zero rows, or no pair of one of the two kinds.
    """
    identity = np.asarray(identity)
    if len(identity) != len(embeddings):
        raise ValueError(
            f"identity has {len(identity)} entries for {len(embeddings)} embeddings"
        )
    unit = unit_rows(embeddings, "embeddings")
    zero = np.count_nonzero(~unit.any(axis=1))
    if zero:
        raise ValueError(f"embeddings: {zero} of {len(unit)} rows are zero: no angle")
    intra, inter = _Angles(), _Angles()
    for start in range(0, len(unit), block):
        stop = start + block
        cos = unit[start:stop] @ unit[start:].T  # [block, N - start]
        same = identity[start:stop, None] == identity[None, start:]
        later = np.triu(np.ones(cos.shape, bool), k=1)  # each pair once, none with self
        for kind, mask in ((intra, same & later), (inter, ~same & later)):
            kind.add(np.rad2deg(np.arccos(np.clip(cos[mask], -1, 1))))
    if not (intra.count and inter.count):
        raise ValueError(
            f"found {intra.count} genuine and {inter.count} impostor pairs among "
            f"{len(unit)} embeddings, expected at least one of each"
        )
    intra_share = intra.by_degree() / intra.count
    inter_share = inter.by_degree() / inter.count
    return OpenSet(
        max_intra=intra.largest,
        min_inter=inter.smallest,
        intra_q99=intra.quantile(0.99),
        inter_q01=inter.quantile(0.01),
        overlap=float(np.minimum(intra_share, inter_share).sum()),
        intra_histogram=intra.by_degree(),
        inter_histogram=inter.by_degree(),
        genuine_pairs=intra.count,
        impostor_pairs=inter.count,
    )


class _Angles:
    """Extremes, fine histogram and, while they are few, the angles themselves."""

    def __init__(self):
        self.count = 0
        self.smallest, self.largest = np.inf, -np.inf
        self.fine = np.zeros(180 * _FINE, np.int64)
        self.exact: list[np.ndarray] | None = []

    def add(self, degrees: np.ndarray) -> None:
        if not len(degrees):
            return
        self.count += len(degrees)
        self.smallest = min(self.smallest, float(degrees.min()))
        self.largest = max(self.largest, float(degrees.max()))
        bins = np.minimum((degrees * _FINE).astype(np.int64), len(self.fine) - 1)
        self.fine += np.bincount(bins, minlength=len(self.fine))
        if self.exact is not None:
            self.exact.append(degrees)
        if self.count > EXACT_PAIRS:
            self.exact = None

    def by_degree(self) -> np.ndarray:
        return self.fine.reshape(180, _FINE).sum(axis=1)

    def quantile(self, q: float) -> float:
        if self.exact is not None:
            return float(np.quantile(np.concatenate(self.exact), q))
        below = np.concatenate([[0], np.cumsum(self.fine)])
        bin_ = int(np.searchsorted(below, q * self.count, side="left")) - 1
        share = (q * self.count - below[bin_]) / self.fine[bin_]
        return float((bin_ + share) / _FINE)
