"""The ROC of a set of scored pairs, and what is read from it.

A pair is *accepted* when score >= threshold. TAR (true accept rate) is the accepted
share of the genuine pairs, FAR (false accept rate) that of the impostor pairs. No
threshold can tell equal scores apart, so ties are accepted or rejected as a group.
Rates are fractions, not percent; all is NumPy in float64.

Letters: n pairs, R points of a ROC.

Every function raises a ValueError for scores that are empty or not finite, for labels
that are not bool, and for pairs of one class only.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

Scores: TypeAlias = Float[np.ndarray, " n"]
Labels: TypeAlias = Bool[np.ndarray, " n"]


class Roc(NamedTuple):
    """Operating points [R] from "accept nothing" to "accept everything"."""

    far: Float[np.ndarray, " R"]
    tar: Float[np.ndarray, " R"]
    thresholds: Float[np.ndarray, " R"]


def roc(scores: Scores, is_genuine: Labels) -> Roc:
    """FAR and TAR at every threshold that changes a decision (ISO/IEC 19795-1).

    Returns:
      far, tar, thresholds [R], R = 1 + number of different scores. The first point
      accepts nothing (threshold infinity); tied scores make one point.
    """
    thresholds, genuine, impostor = operating_points(scores, is_genuine)
    return Roc(impostor / impostor[-1], genuine / genuine[-1], thresholds)


def equal_error_rate(scores: Scores, is_genuine: Labels) -> float:
    """FAR where FAR = 1 - TAR on the ROC joined by straight lines (OpenSphere's EER).

    Ties make one slanted segment, so a network that gives every pair the same score
    has an EER of .5.
    """
    far, tar, _ = roc(scores, is_genuine)
    excess = far + tar - 1  # rises strictly from -1 to 1
    right = int(np.argmax(excess >= 0))
    share = -excess[right - 1] / (excess[right] - excess[right - 1])
    return float(far[right - 1] + share * (far[right] - far[right - 1]))


def auc(scores: Scores, is_genuine: Labels) -> float:
    """Area under the ROC = P(genuine > impostor) + P(genuine = impostor) / 2."""
    far, tar, _ = roc(scores, is_genuine)
    return float(np.trapezoid(tar, far))


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

    InsightFace takes the ROC point whose FAR is *nearest*, which may exceed the one
    asked for. Ties count as a group: if accepting it exceeds `far`, none of it is in.

    Raises:
      ValueError: far is not in (0, 1], or below 1 / impostors: no such rate can be
        observed with so few pairs, only a TAR at FAR = 0.
    """
    _, genuine, impostor = operating_points(scores, is_genuine)
    if not 1 / impostor[-1] <= far <= 1:
        raise ValueError(
            f"far is {far:g}, expected 1/impostors to 1: the {impostor[-1]} impostor "
            f"pairs here resolve {1 / impostor[-1]:.3g}"
        )
    last = np.count_nonzero(impostor / impostor[-1] <= far) - 1
    return float(genuine[last] / genuine[-1])


def far_label(far: float) -> str:
    """`1e-3` for .001, as it stands in metric names."""
    mantissa, exponent = f"{far:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def operating_points(scores: Scores, is_genuine: Labels):
    """Thresholds falling from infinity; genuine and impostor accepted at each, [R]."""
    scores, is_genuine = checked(scores, is_genuine)
    order = np.argsort(-scores, kind="stable")
    scores, is_genuine = scores[order], is_genuine[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each group
    genuine = np.concatenate([[0], np.cumsum(is_genuine)[last]])
    accepted = np.concatenate([[0], last + 1])
    return np.concatenate([[np.inf], scores[last]]), genuine, accepted - genuine


def checked(scores: Scores, is_genuine: Labels) -> tuple[Scores, Labels]:
    """The scores in float64, if both arrays are what every metric here needs."""
    scores, is_genuine = np.asarray(scores, np.float64), np.asarray(is_genuine)
    if is_genuine.dtype != bool or scores.shape != is_genuine.shape or scores.ndim != 1:
        raise ValueError(
            f"scores is {scores.shape} and is_genuine {is_genuine.dtype} "
            f"{is_genuine.shape}, expected two vectors of one length, the second bool"
        )
    bad = np.count_nonzero(~np.isfinite(scores))
    if bad:
        raise ValueError(f"scores: {bad} of {len(scores)} are NaN or infinite")
    genuine = np.count_nonzero(is_genuine)
    if genuine == 0 or genuine == len(scores):
        raise ValueError(
            f"found {genuine} genuine and {len(scores) - genuine} impostor pairs, "
            "expected at least one of each"
        )
    return scores, is_genuine
