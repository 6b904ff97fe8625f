"""Confidence intervals: over folds, and by a bootstrap over subjects.

Pairs of one subject are not independent, and neither are two impostor pairs that share
one; to draw pairs gives intervals that are far too narrow. So people are drawn, with
replacement, and everything of theirs comes along: a subject drawn m times gives its
genuine pairs the weight m, and a pair of two subjects has the product of both weights
(the vertex bootstrap of Snijders and Borgatti, Connections 1999; for biometrics see the
subsets bootstrap of Bolle, Ratha and Pankanti, CVIU 2004). The scores are sorted once;
each draw is then a weighted count.

Intervals are percentiles of the draws. They say how the number would vary with other
people of the same kind, not with another training.

Letters: n pairs, P probes, S subjects, B draws, F folds, R points of a ROC.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.roc import Labels, Scores, checked, far_label

_AT_ONCE = 1 << 22  # weights held at a time


class Interval(NamedTuple):
    """A number and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def fold_interval(
    per_fold: Float[np.ndarray, " F"], *, confidence: float = 0.95
) -> Interval:
    """Mean over folds ± Student's t times the standard error, F - 1 degrees of freedom.

    Cut to [0, 1]: a rate is nowhere else, though t with two folds may point there.
    For folds of different people, as those of LFW. Their thresholds come from shared
    pairs, so they are not quite independent and the interval is slightly too narrow.
    """
    _check_confidence(confidence)
    per_fold = np.asarray(per_fold, np.float64)
    if len(per_fold) < 2 or not np.isfinite(per_fold).all():
        raise ValueError(f"per_fold is {per_fold}, expected at least 2 finite numbers")
    mean = float(per_fold.mean())
    error = float(per_fold.std(ddof=1)) / math.sqrt(len(per_fold))
    half = student_t_quantile((1 + confidence) / 2, len(per_fold) - 1) * error
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def student_t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t, p >= .5, by halves (Abramowitz and Stegun 26.7.3-4)."""
    if not (0.5 <= p < 1 and freedom >= 1):
        raise ValueError(f"p is {p} and freedom {freedom}, expected [.5, 1) and >= 1")
    low, high = 0.0, math.pi / 2  # of atan(t / √freedom)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _central(middle, freedom) > 2 * p - 1 else (middle, high)
        )
    return math.sqrt(freedom) * math.tan(low)


def _central(angle: float, freedom: int) -> float:
    """P(|T| <= √freedom · tan(angle)): a finite sum of even or odd powers of cos."""
    sin, cos = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cos if odd else 1.0
    total = 0.0
    for k in range((freedom - odd) // 2):
        total += term
        term *= cos * cos * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return (angle + sin * total) * 2 / math.pi if odd else sin * total


def bootstrap_verification(
    scores: Scores,
    is_genuine: Labels,
    first_subject: Int[np.ndarray, " n"],
    second_subject: Int[np.ndarray, " n"],
    fars: Sequence[float] = (1e-3, 1e-2, 1e-1),
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of EER and strict TAR@FAR over subjects.

    Definitions as in `roc`, with weighted pairs: the largest TAR of a threshold whose
    weighted FAR is <= far. A draw that leaves no genuine or no impostor pair is left
    out. Time is O(draws · n): meant for protocols of thousands of pairs; for millions
    take fewer draws.

    Args:
      scores: similarities [n].
      is_genuine: [n].
      first_subject: person of the first image of each pair [n].
      second_subject: of the second; equal to the first where is_genuine.
      fars: rates; those below 1/impostors are left out.
      draws: B.
      confidence: of the intervals.
      seed: of the draws; the same seed gives the same intervals.

    Returns:
      `eer` and `tar@far=...`, as `verify` names them.
    """
    _check_confidence(confidence)
    scores, is_genuine = checked(scores, is_genuine)
    if ((first_subject == second_subject) != is_genuine).any():
        wrong = int(np.argmax((first_subject == second_subject) != is_genuine))
        raise ValueError(
            f"pair {wrong} has subjects {first_subject[wrong]} and "
            f"{second_subject[wrong]}, but is_genuine is {is_genuine[wrong]}"
        )
    fars = [far for far in fars if far >= 1 / np.count_nonzero(~is_genuine)]
    _, subject = np.unique(
        np.stack([first_subject, second_subject]), return_inverse=True
    )
    order = np.argsort(-scores, kind="stable")
    ordered, is_genuine, subject = scores[order], is_genuine[order], subject[:, order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    found = []
    for times in _multiplicities(int(subject.max()) + 1, draws, len(scores), seed):
        weight = times[:, subject[0]]
        weight[:, ~is_genuine] *= times[:, subject[1][~is_genuine]]
        genuine = np.cumsum(weight * is_genuine, axis=1)[:, ends]
        impostor = np.cumsum(weight * ~is_genuine, axis=1)[:, ends]
        found.append(_rates(genuine, impostor, fars))
    names = ["eer", *(f"tar@far={far_label(far)}" for far in fars)]
    return _percentiles(names, np.concatenate(found), confidence)


def bootstrap_rank_k(
    ranks: Int[np.ndarray, " P"],
    probe_subject: Int[np.ndarray, " P"],
    ks: Sequence[int] = (1, 5),
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of rank-k over the subjects of the probes; the gallery stays.

    Args:
      ranks: of each probe's mate [P], from `identification.mate_ranks`.
      probe_subject: person of each probe [P].
      ks: ranks to report.
      draws: B.
      confidence: of the intervals.
      seed: of the draws.
    """
    _check_confidence(confidence)
    if not len(ranks):
        raise ValueError("found 0 ranks, expected at least 1")
    _, subject = np.unique(probe_subject, return_inverse=True)
    probes = np.bincount(subject)
    hits = np.stack([np.bincount(subject, ranks <= k) for k in ks], axis=1)  # [S, ks]
    found = [
        (times @ hits) / (times @ probes)[:, None]
        for times in _multiplicities(len(probes), draws, len(probes), seed)
    ]
    return _percentiles([f"rank{k}" for k in ks], np.concatenate(found), confidence)


def _multiplicities(subjects: int, draws: int, width: int, seed: int):
    """How often each subject is drawn, a few draws at a time; first all once."""
    if draws < 1:
        raise ValueError(f"draws is {draws}, expected at least 1")
    yield np.ones((1, subjects), np.int64)
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(width, subjects))
    shares = np.full(subjects, 1 / subjects)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        yield generator.multinomial(subjects, shares, size=size)


def _rates(
    genuine: Int[np.ndarray, "B R"],
    impostor: Int[np.ndarray, "B R"],
    fars: Sequence[float],
) -> Float[np.ndarray, "B metrics"]:
    """EER and TAR at each FAR of weighted counts; NaN where a class is empty."""
    empty = (genuine[:, -1] == 0) | (impostor[:, -1] == 0)
    zero = np.zeros((len(genuine), 1))
    tar = np.hstack([zero, genuine / np.maximum(genuine[:, -1:], 1)])
    far = np.hstack([zero, impostor / np.maximum(impostor[:, -1:], 1)])
    excess = far + tar - 1
    right = np.argmax(excess >= 0, axis=1)
    right = np.where(empty, 1, right)
    rows = np.arange(len(far))
    before, after = excess[rows, right - 1], excess[rows, right]
    share = np.where(empty, 0, -before) / np.where(empty, 1, after - before)
    low, high = far[rows, right - 1], far[rows, right]
    columns = [low + share * (high - low)]
    for rate in fars:
        last = np.count_nonzero(far <= rate, axis=1) - 1
        columns.append(tar[rows, last])
    result = np.stack(columns, axis=1)
    result[empty] = np.nan
    return result


def _percentiles(
    names: Sequence[str], found: Float[np.ndarray, "rows metrics"], confidence: float
) -> dict[str, Interval]:
    """The first row is the value, the others are draws."""
    draws = found[1:][np.isfinite(found[1:]).all(axis=1)]
    if not len(draws):
        raise ValueError(
            f"none of {len(found) - 1} draws holds a genuine and an impostor pair"
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return {
        name: Interval(float(found[0, i]), float(low[i]), float(high[i]))
        for i, name in enumerate(names)
    }


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")
