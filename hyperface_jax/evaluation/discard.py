"""Error versus discard: does the length of an embedding tell a useless image?

A loss under NFN or SFN, MagFace and AdaFace let the length carry the quality of an
image; one under HFN often does so unasked. If it does, rejections of genuine pairs at a
fixed threshold become rarer as the pairs with the shortest embeddings are discarded:
the error-versus-discard characteristic of ISO/IEC 29794-1, which Grother and Tabassi
(TPAMI 2007) introduced as error versus reject. The quality of a pair is the smaller of
its two, as NIST evaluates it.

Letters: n pairs, K points of the curve.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hyperface_jax.evaluation.roc import Labels, Scores, checked, operating_points

MOST = 0.3
"""Share of the genuine pairs at which the curve ends."""

AREA_UP_TO = 0.2


class Discard(NamedTuple):
    """Result of `error_versus_discard`.

    Attributes:
      threshold: a pair with score >= threshold is accepted; the same all along.
      fmr: false match rate of all impostor pairs at it, at most the one asked for.
      share: of the genuine pairs that are discarded, rising from 0 [K].
      fnmr: false non-match rate of the others [K].
      area: mean FNMR from 0 to 20 % discarded over the FNMR of all; 1 is what a
        quality without meaning has on average, less is better; NaN without an error.
    """

    threshold: float
    fmr: float
    share: Float[np.ndarray, " K"]
    fnmr: Float[np.ndarray, " K"]
    area: float

    def fnmr_at(self, share: float) -> float:
        """FNMR with that share discarded."""
        return float(np.interp(share, self.share, self.fnmr))


def error_versus_discard(
    scores: Scores,
    is_genuine: Labels,
    quality: Float[np.ndarray, " n"],
    *,
    fmr: float = 1e-3,
    points: int = 61,
) -> Discard:
    """FNMR of the pairs that are left, over the share of the worst that is not.

    Pairs of equal quality are discarded in random order: the FNMR is its expectation.

    Args:
      scores: similarities [n].
      is_genuine: [n].
      quality: of each pair: the smaller one of its two images [n].
      fmr: sets the threshold, from 1/impostors: that of `roc.threshold_at_far`.
      points: K.

    Raises:
      ValueError: a quality that is NaN, or what `roc.threshold_at_far` refuses.
    """
    scores, is_genuine = checked(scores, is_genuine)
    quality = np.asarray(quality, np.float64)
    if quality.shape != scores.shape or np.isnan(quality).any():
        raise ValueError(
            f"quality is {list(quality.shape)} with {np.isnan(quality).sum()} NaN, "
            f"expected one number for each of {len(scores)} pairs"
        )
    operating = operating_points(scores, is_genuine)
    chosen = operating.index_at_far(fmr)
    threshold = float(operating.thresholds[chosen])
    order = np.argsort(quality[is_genuine], kind="stable")
    worst_first = quality[is_genuine][order]
    rejected = np.cumsum(scores[is_genuine][order] < threshold)
    last = np.append(np.flatnonzero(np.diff(worst_first)), len(order) - 1)
    share = np.linspace(0, MOST, points)
    gone = np.interp(
        share * len(order), np.append(0, last + 1), np.append(0, rejected[last])
    )
    fnmr = (rejected[-1] - gone) / ((1 - share) * len(order))
    return Discard(
        threshold,
        float(operating.impostor[chosen] / operating.impostor[-1]),
        share,
        fnmr,
        _area(share, fnmr),
    )


def _area(share: np.ndarray, fnmr: np.ndarray) -> float:
    grid = np.linspace(0, AREA_UP_TO, 401)
    mean = np.trapezoid(np.interp(grid, share, fnmr), grid) / AREA_UP_TO
    return float(mean / fnmr[0]) if fnmr[0] else float("nan")
