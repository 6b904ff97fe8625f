"""The ROC of a set of scored pairs, and what is read from it.

A pair is *accepted* when score >= threshold. TAR (true accept rate) is the accepted
share of the genuine pairs, FAR (false accept rate) that of the impostor pairs. No
threshold can tell equal scores apart, so ties are accepted or rejected as a group.
Rates are fractions, not percent; all is NumPy, rates are float64.

Every metric has two forms: a function of (scores, is_genuine), and a method of
`OperatingPoints`, which sorts once and then answers them all.

Letters: n pairs, R points of a ROC.

Every function raises a ValueError for scores that are empty or not finite, for labels
that are not bool, and for pairs of one class only.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Scores: TypeAlias = Float[np.ndarray, " n"]
Labels: TypeAlias = Bool[np.ndarray, " n"]


class Roc(NamedTuple):
    """Operating points [R] from "accept nothing" to "accept everything"."""

    far: Float[np.ndarray, " R"]
    tar: Float[np.ndarray, " R"]
    thresholds: Float[np.ndarray, " R"]


class Det(NamedTuple):
    """Detection error trade-off [R]: error rates of the same points as the ROC's."""

    fmr: Float[np.ndarray, " R"]
    fnmr: Float[np.ndarray, " R"]
    thresholds: Float[np.ndarray, " R"]


class OperatingPoints(NamedTuple):
    """Counts at every threshold that changes a decision, from `operating_points`.

    Attributes:
      thresholds: falling from infinity [R].
      genuine: genuine pairs accepted at each; the last is their number.
      impostor: impostor pairs accepted at each; the last is their number.
    """

    thresholds: Float[np.ndarray, " R"]
    genuine: Int[np.ndarray, " R"]
    impostor: Int[np.ndarray, " R"]

    def roc(self) -> Roc:
        """See `roc`."""
        far, tar = self.impostor / self.impostor[-1], self.genuine / self.genuine[-1]
        return Roc(far, tar, self.thresholds)

    def det(self) -> Det:
        """See `det`."""
        missed = self.genuine[-1] - self.genuine
        far = self.impostor / self.impostor[-1]
        return Det(far, missed / self.genuine[-1], self.thresholds)

    def equal_error_rate(self) -> float:
        """See `equal_error_rate`."""
        # FAR + TAR - 1 rises strictly from -1 to 1: a search by halves.
        left, right = 0, len(self.thresholds) - 1
        while right - left > 1:
            middle = (left + right) // 2
            left, right = (
                (left, middle) if self._excess(middle) >= 0 else (middle, right)
            )
        before, after = self._excess(left), self._excess(right)
        share = -before / (after - before)
        impostors = self.impostor[-1]
        far, far_after = (
            self.impostor[left] / impostors,
            self.impostor[right] / impostors,
        )
        return float(far + share * (far_after - far))

    def _excess(self, i: int) -> float:
        far, tar = (
            self.impostor[i] / self.impostor[-1],
            self.genuine[i] / self.genuine[-1],
        )
        return float(far + tar - 1)

    def auc(self) -> float:
        """See `auc`."""
        # Twice the area in pairs of pairs, a whole number: no rounding.
        doubled = np.dot(self.genuine[1:] + self.genuine[:-1], np.diff(self.impostor))
        return float(doubled / (2 * int(self.genuine[-1]) * int(self.impostor[-1])))

    def tar_at_far(self, far: float) -> float:
        """See `tar_at_far`."""
        return float(self.genuine[self.index_at_far(far)] / self.genuine[-1])

    def index_at_far(self, far: float) -> int:
        """The last point whose FAR is <= far; raises as `tar_at_far` does."""
        impostors = int(self.impostor[-1])
        if not 1 / impostors <= far <= 1:
            raise ValueError(
                f"far is {far:g}, expected 1/impostors to 1: the {impostors} impostor "
                f"pairs here resolve {1 / impostors:.3g}"
            )
        allowed = int(far * impostors)  # the product may be a rounding error off
        allowed += (allowed + 1) / impostors <= far
        allowed -= allowed / impostors > far
        return int(np.searchsorted(self.impostor, allowed, side="right")) - 1

    def nearest_tar_at_far(self, fars: Sequence[float]) -> list[float]:
        """TAR of each; see `nearest_tar_at_far`."""
        corners = self._corners()
        rates = corners.impostor[::-1] / corners.impostor[-1]
        tar = corners.genuine[::-1] / corners.genuine[-1]
        return [float(tar[np.argmin(np.abs(rates - far))]) for far in fars]

    def _corners(self) -> "OperatingPoints":
        """Without points in the middle of equal steps, as scikit-learn's roc_curve."""
        kept = np.ones(len(self.thresholds), bool)  # the first two and the last stay
        kept[2:-1] = np.diff(self.genuine[1:], 2) != 0
        kept[2:-1] |= np.diff(self.impostor[1:], 2) != 0
        return OperatingPoints(*(column[kept] for column in self))


def operating_points(scores: Scores, is_genuine: Labels) -> OperatingPoints:
    """Sorts the scores once, for all metrics.

    float32 scores are sorted as such; the thresholds are float64 of the same value.
    Memory is about 40 bytes a pair.
    """
    scores, is_genuine = _checked(scores, is_genuine)
    ordered = np.sort(scores)[::-1]
    last = np.append(
        np.flatnonzero(np.diff(ordered)), len(ordered) - 1
    )  # of each group
    values = ordered[last]
    del ordered
    # Only the rarer class is looked up among the thresholds.
    few_genuine = 2 * np.count_nonzero(is_genuine) <= len(is_genuine)
    rare = scores[is_genuine if few_genuine else ~is_genuine]
    place = len(values) - np.searchsorted(values[::-1], rare, side="right")
    count = np.cumsum(np.bincount(place, minlength=len(values)))
    other = last + 1 - count
    genuine, impostor = (count, other) if few_genuine else (other, count)
    return OperatingPoints(
        np.concatenate([[np.inf], values]),
        np.concatenate([[0], genuine]),
        np.concatenate([[0], impostor]),
    )


def roc(scores: Scores, is_genuine: Labels) -> Roc:
    """FAR and TAR at every threshold that changes a decision (ISO/IEC 19795-1).

    Returns:
      far, tar, thresholds [R], R = 1 + number of different scores. The first point
      accepts nothing (threshold infinity); tied scores make one point.
    """
    return operating_points(scores, is_genuine).roc()


def det(scores: Scores, is_genuine: Labels) -> Det:
    """FMR (= FAR) and FNMR (= 1 - TAR) at the points of `roc` (ISO/IEC 19795-1).

    A DET curve draws them on logarithmic or normal-deviate axes; the points whose rate
    is 0 have no place there and are left to the one who draws.
    """
    return operating_points(scores, is_genuine).det()


def equal_error_rate(scores: Scores, is_genuine: Labels) -> float:
    """FAR where FAR = 1 - TAR on the ROC joined by straight lines (OpenSphere's EER).

    Ties make one slanted segment, so a network that gives every pair the same score
    has an EER of .5.
    """
    return operating_points(scores, is_genuine).equal_error_rate()


def auc(scores: Scores, is_genuine: Labels) -> float:
    """Area under the ROC = P(genuine > impostor) + P(genuine = impostor) / 2."""
    return operating_points(scores, is_genuine).auc()


def interpolated_tar_at_far(scores: Scores, is_genuine: Labels, far: float) -> float:
    """TAR read from the ROC joined by straight lines (OpenSphere's TPR@FPR).

    Where the ROC is vertical at this FAR, the upper end. Unlike `tar_at_far` it answers
    for any FAR, also where there is not one impostor to support it: for comparison with
    OpenSphere only.
    """
    curve = roc(scores, is_genuine)
    return float(np.interp(far, curve.far, curve.tar))


def tar_at_far(scores: Scores, is_genuine: Labels, far: float) -> float:
    """Largest TAR of a threshold whose FAR on these pairs is <= far. Strict.

    InsightFace takes the ROC point whose FAR is *nearest* (`nearest_tar_at_far`), which
    may exceed the one asked for. Ties count as a group: if accepting it exceeds `far`,
    none of it is in.

    Raises:
      ValueError: far is not in (0, 1], or below 1 / impostors: no such rate can be
        observed with so few pairs, only a TAR at FAR = 0.
    """
    return operating_points(scores, is_genuine).tar_at_far(far)


def threshold_at_far(scores: Scores, is_genuine: Labels, far: float) -> float:
    """The threshold of `tar_at_far`: accept a pair whose score is at least this.

    Of all thresholds whose FAR on these pairs is <= far the one with the largest TAR;
    of two with the same decisions, the lowest score that is accepted. Infinity where
    already the highest scores are too many impostors.

    Raises:
      ValueError: as `tar_at_far`.
    """
    points = operating_points(scores, is_genuine)
    return float(points.thresholds[points.index_at_far(far)])


def nearest_tar_at_far(scores: Scores, is_genuine: Labels, far: float) -> float:
    """TAR of the ROC point whose FAR is nearest to `far` (InsightFace's IJB table).

    Of points equally near the one with the larger TAR. Points in the middle of equal
    steps are no candidates, because scikit-learn's roc_curve drops them: along a row
    of impostors only its two ends count. The FAR of the point may exceed `far`, and
    any `far` has an answer: for comparison with InsightFace only.
    """
    return operating_points(scores, is_genuine).nearest_tar_at_far([far])[0]


def far_label(far: float) -> str:
    """`1e-3` for .001, as it stands in metric names."""
    mantissa, exponent = f"{far:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def checked(scores: Scores, is_genuine: Labels) -> tuple[Scores, Labels]:
    """The scores in float64, if both arrays are what every metric here needs."""
    scores, is_genuine = _checked(scores, is_genuine)
    return scores.astype(np.float64, copy=False), is_genuine


def _checked(scores: Scores, is_genuine: Labels) -> tuple[Scores, Labels]:
    """As `checked`, but float32 scores stay float32."""
    scores, is_genuine = np.asarray(scores), np.asarray(is_genuine)
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64, copy=False)
    if is_genuine.dtype != bool or scores.shape != is_genuine.shape or scores.ndim != 1:
        raise ValueError(
            f"scores is {scores.shape} and is_genuine {is_genuine.dtype} "
            f"{is_genuine.shape}, expected two vectors of one length, the second bool"
        )
    bad = len(scores) - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise ValueError(f"scores: {bad} of {len(scores)} are NaN or infinite")
    genuine = np.count_nonzero(is_genuine)
    if genuine == 0 or genuine == len(scores):
        raise ValueError(
            f"found {genuine} genuine and {len(scores) - genuine} impostor pairs, "
            "expected at least one of each"
        )
    return scores, is_genuine
