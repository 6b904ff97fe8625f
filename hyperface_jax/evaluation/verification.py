"""Verification (1:1) metrics, each with its definition.

Peers publish different numbers under one name, so here a name is a definition:
`kfold_accuracy` takes its threshold from the other folds (InsightFace, after facenet),
`best_accuracy` takes it from the very pairs that it counts (OpenSphere's ACC).

All is NumPy in float64, but for the scores of very many pairs (`pair_scores`). A score
is a similarity, as a rule a cosine: larger means "the same person". What a pair is
accepted by, TAR, FAR and ties are defined in `roc`. Rates are fractions, not percent.

Letters: N embeddings, D dimensions, n pairs, F folds, R points of a ROC.

Every function raises a ValueError for scores that are empty or not finite, for labels
that are not bool, and for pairs of one class only.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.roc import (
    Labels,
    OperatingPoints,
    Scores,
    checked,
    far_label,
    operating_points,
)

Index: TypeAlias = Int[np.ndarray, " n"]

KFOLD_THRESHOLDS = np.arange(0, 4, 0.01)
"""Squared distances that `kfold_accuracy` tries: facenet's 400."""

_COSINE_SLACK = 1e-3
"""How far a score may leave [-1, 1] and count as a cosine of low precision."""


class FoldAccuracy(NamedTuple):
    """Result of `kfold_accuracy`.

    Attributes:
      mean: mean accuracy of the folds.
      std: population standard deviation over folds (ddof 0), InsightFace's "+-".
      standard_error: sample standard deviation (ddof 1) / sqrt(F), FaceX-Zoo's and
        the LFW report's "+-".
      per_fold: accuracy of each fold [F], in the order of the sorted fold numbers.
      thresholds: cosine threshold [F] applied to each fold.
    """

    mean: float
    std: float
    standard_error: float
    per_fold: Float[np.ndarray, " F"]
    thresholds: Float[np.ndarray, " F"]


def kfold_accuracy(
    scores: Scores,
    is_genuine: Labels,
    fold: Index,
) -> FoldAccuracy:
    """Accuracy of each fold at the threshold that is best on the other folds.

    InsightFace's and facenet's definition ("LFW accuracy"): squared distances of unit
    embeddings d = 2 - 2 cos; thresholds τ in {0, .01, ..., 3.99}; a pair is the same
    person iff d < τ (strictly, so d = τ is rejected); τ of a fold is the *first* (the
    strictest) that maximises accuracy over all other folds.

    Args:
      scores: cosines [n].
      is_genuine: [n].
      fold: fold number of each pair [n]; at least two different ones.
    """
    scores, is_genuine = checked(scores, is_genuine)
    if np.abs(scores).max() > 1 + _COSINE_SLACK:
        raise ValueError(
            f"kfold_accuracy needs cosines, found scores from {scores.min():.4g} to "
            f"{scores.max():.4g}"
        )
    names, fold = np.unique(fold, return_inverse=True)
    if len(fold) != len(scores) or len(names) < 2:
        raise ValueError(
            f"fold has {len(fold)} entries and {len(names)} different folds, expected "
            f"{len(scores)} and at least 2"
        )
    folds, tried = len(names), len(KFOLD_THRESHOLDS)
    distance = 2 - 2 * np.clip(scores, -1, 1)
    # A pair is accepted from the first τ beyond its distance on; so the number of right
    # answers at each τ is one cumulative sum a fold, whatever n.
    first = np.searchsorted(KFOLD_THRESHOLDS, distance, side="right")
    steps = np.zeros((folds, tried + 1), np.int64)
    np.add.at(steps, (fold, first), np.where(is_genuine, 1, -1))
    impostors = np.bincount(fold, ~is_genuine, folds).astype(np.int64)
    correct = impostors[:, None] + np.cumsum(steps, axis=1)[:, :tried]  # [F, tried]
    best = np.argmax(correct.sum(axis=0) - correct, axis=1)
    per_fold = correct[np.arange(folds), best] / np.bincount(fold)
    return FoldAccuracy(
        mean=float(per_fold.mean()),
        std=float(per_fold.std()),
        standard_error=float(per_fold.std(ddof=1) / np.sqrt(folds)),
        per_fold=per_fold,
        thresholds=1 - KFOLD_THRESHOLDS[best] / 2,
    )


def best_accuracy(scores: Scores, is_genuine: Labels) -> float:
    """Largest accuracy over all thresholds, chosen *on these same pairs*.

    OpenSphere's ACC: max over the ROC of (TAR · genuine + (1 - FAR) · impostors) / n.
    Optimistic: no held-out threshold can beat it.
    """
    return _best_accuracy(operating_points(scores, is_genuine))


def _best_accuracy(points: OperatingPoints) -> float:
    genuine, impostor = int(points.genuine[-1]), int(points.impostor[-1])
    right = int((points.genuine - points.impostor).max()) + impostor
    return right / (genuine + impostor)


def accuracy_at_threshold(
    scores: Scores, is_genuine: Labels, threshold: float
) -> float:
    """Share of right answers when pairs with score >= threshold are accepted."""
    scores, is_genuine = checked(scores, is_genuine)
    return float(np.mean((scores >= threshold) == is_genuine))


def choose_threshold(scores: Scores, is_genuine: Labels, grid: int = 1001) -> float:
    """The threshold to carry from development pairs to other pairs.

    The one with the best accuracy after every score is spread by a logistic kernel of
    Silverman's width, 1.06 σ n^(-1/5) (σ within the classes, n pairs of the smaller
    one): where the two smoothed densities meet. The plain best threshold of some
    hundred pairs hangs on a few of them, and other people pay for it. Ours.

    Args:
      scores: of pairs of people who are not tested [n].
      is_genuine: [n].
      grid: thresholds tried between the lowest and the highest score.
    """
    scores, is_genuine = checked(scores, is_genuine)
    classes = scores[is_genuine], scores[~is_genuine]
    spread = np.sqrt(sum(len(c) * np.var(c) for c in classes) / len(scores))
    width = 1.06 * spread * min(map(len, classes)) ** -0.2 * np.sqrt(3) / np.pi
    edges = np.linspace(scores.min(), scores.max(), grid + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    genuine, impostor = (np.histogram(c, edges)[0] for c in classes)
    # Share of a kernel at each middle that lies above each threshold.
    distance = (middles[None, :] - middles[:, None]) / max(width, 1e-12)
    above = 0.5 * (1 + np.tanh(distance / 2))
    value = above @ (genuine - impostor)
    best = np.flatnonzero(value >= value.max() - 1e-9)  # a gap between the classes
    return float(middles[best].mean())


def verify(
    scores: Scores,
    is_genuine: Labels,
    fold: Index | None = None,
    fars: Sequence[float] = (1e-3, 1e-2, 1e-1),
    *,
    nearest: bool = False,
) -> dict[str, float]:
    """All metrics of a 1:1 protocol by name, and the counts they rest on.

    Args:
      scores: cosines [n].
      is_genuine: [n].
      fold: fold number [n]; None leaves the k-fold metrics out (IJB has no folds).
      fars: rates for `tar@far=...`; those below 1/impostors are left out.
      nearest: also `nearest_tar@far=...`, InsightFace's definition, of the same rates.

    Returns:
      Rates as fractions; `threshold@far=...` and `kfold_threshold` (the mean of the
      folds') are cosines, accept a pair that scores at least that.
    """
    points = operating_points(scores, is_genuine)
    metrics = {}
    if fold is not None:
        folds = kfold_accuracy(scores, is_genuine, fold)
        metrics["kfold_accuracy"] = folds.mean
        metrics["kfold_std"] = folds.std
        metrics["kfold_standard_error"] = folds.standard_error
        metrics["kfold_threshold"] = float(np.mean(folds.thresholds))
    metrics["best_accuracy"] = _best_accuracy(points)
    metrics["eer"] = points.equal_error_rate()
    metrics["auc"] = points.auc()
    fars = [far for far in fars if far >= 1 / points.impostor[-1]]
    for far in fars:
        metrics[f"tar@far={far_label(far)}"] = points.tar_at_far(far)
        threshold = float(points.thresholds[points.index_at_far(far)])
        if np.isfinite(threshold):  # else no score is high enough: TAR is 0
            metrics[f"threshold@far={far_label(far)}"] = threshold
    if nearest:
        for far, tar in zip(fars, points.nearest_tar_at_far(fars), strict=True):
            metrics[f"nearest_tar@far={far_label(far)}"] = tar
    metrics["genuine_pairs"] = float(points.genuine[-1])
    metrics["impostor_pairs"] = float(points.impostor[-1])
    return metrics
