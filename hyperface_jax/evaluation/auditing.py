"""Audit of a labelled set by its embeddings: who is twice in it, what is mislabelled.

Four questions, each answered by cosines to class centres, worst first:

- two classes whose centres are close: one person under two labels
  (`look_alike_classes`);
- an image far from its own class and close to another: a wrong label (`outliers`);
- a class close to an identity of a test protocol (`overlapping_identities`);
- and from which cosine on two are "close" (`suggest_threshold`).

The answers are candidates to be looked at, not verdicts: twins and siblings are found,
too. A class with more wrong images than right ones has a wrong centre. All definitions
are ours.

Products are float32 in tiles, so memory is what is handed in, what comes out, and a few
hundred MB; embeddings may be a memory map. All pairs of C centres take C² D flops:
hours on a few cores for a million classes of 512 numbers.

Letters: N embeddings, D dimensions, C classes, P protocol images, K answers.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.centres import BLOCK, ClassCentres, unit_block
from hyperface_jax.evaluation.centres import class_centres as class_centres
from hyperface_jax.evaluation.centres import (
    leave_one_out_cosines as leave_one_out_cosines,
)
from hyperface_jax.evaluation.close_pairs import (
    COLUMNS,
    MAX_ANSWERS,
    BestPairs,
    ClassPairs,
    tiles,
)

MIN_CLASSES = 100
"""`suggest_threshold` needs as many."""

_SAMPLE = 4096  # rows on each side of `suggest_threshold`
_UPPER = (0.1, 0.001)  # shares of cosines above the points that its line goes through


class Outliers(NamedTuple):
    """Result of `outliers`, largest `other - own` first; ties by row.

    Attributes:
      rows: int64 [K], row of the image.
      own: float64 [K], cosine to its class's centre made without it.
      other_class: int64 [K], the class with the closest centre of the others.
      other: float32 [K], cosine to that centre.
      found: images that meet the rule; more than K where the list was capped.
      judged: images that could be judged at all.
    """

    rows: Int[np.ndarray, " K"]
    own: Float[np.ndarray, " K"]
    other_class: Int[np.ndarray, " K"]
    other: Float[np.ndarray, " K"]
    found: int
    judged: int


def look_alike_classes(
    centres: Float[np.ndarray, "C D"],
    *,
    threshold: float | None = None,
    top: int | None = None,
) -> ClassPairs:
    """Pairs of classes with close centres: candidates for one person with two labels.

    Args:
      centres: [C, D], as `ClassCentres.unit`; a zero row is no centre.
      threshold: least cosine; None: any.
      top: pairs to return, the closest ones; None: at most `MAX_ANSWERS`.

    Raises:
      ValueError: neither threshold nor top, or centres that are not finite.
    """
    if threshold is None and top is None:
        raise ValueError("look_alike_classes needs threshold, top or both")
    best = BestPairs(threshold, top)
    for row, column, cos in tiles(centres, None):
        # Each pair once and none with itself.
        if len(row) and len(column) and row[-1] >= column[0]:
            cos[row[:, None] >= column] = -np.inf
        best.add(row, column, cos)
    return best.result()


def overlapping_identities(
    train_centres: Float[np.ndarray, "C D"],
    protocol_embeddings: Float[np.ndarray, "P D"],
    protocol_ids: Int[np.ndarray, " P"],
    threshold: float,
    *,
    top: int | None = None,
) -> ClassPairs:
    """Classes of a training set that are identities of a protocol.

    The centre of each protocol identity is compared with all training centres; both
    must come from the same network, and better from one that was not trained on this
    training set.

    Args:
      train_centres: [C, D], as `ClassCentres.unit`.
      protocol_embeddings: [P, D]; zero rows are left out.
      protocol_ids: identity of each [P], any whole numbers.
      threshold: least cosine.
      top: pairs to return; None: at most `MAX_ANSWERS`.

    Returns:
      pairs with `a` a training class and `b` an identity of `protocol_ids`.
    """
    names, label = np.unique(protocol_ids, return_inverse=True)
    protocol = class_centres(protocol_embeddings, label, num_classes=len(names)).unit
    best = BestPairs(threshold, top)
    for row, column, cos in tiles(train_centres, protocol):
        best.add(row, column, cos)
    pairs = best.result()
    return pairs._replace(b=np.asarray(names[pairs.b], np.int64))


def outliers(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    centres: ClassCentres,
    *,
    threshold: float,
    min_other: float | None = None,
    top: int | None = None,
) -> Outliers:
    """Images far from their own class and closer to another: perhaps a wrong label.

    Reported where own < threshold, other >= min_other and other > own; own is the
    cosine to the class's centre made without the image, other the largest cosine to
    the centre of another class. An image alone in its class cannot be judged; its class
    may turn up in `look_alike_classes`. Only images below the threshold are compared
    with all centres.

    Args:
      embeddings: [N, D], those that the centres were made of.
      labels: [N].
      centres: `class_centres(embeddings, labels)`.
      threshold: from which cosine on two show one person, as `suggest_threshold` with
        the embeddings gives it.
      min_other: least cosine to the other class; default: the threshold. Lower finds
        more wrong labels, and more poor images with right ones.
      top: images to return; None: at most `MAX_ANSWERS`.
    """
    labels = np.asarray(labels, np.int64)
    own = leave_one_out_cosines(embeddings, labels, centres)
    rows = np.flatnonzero(own < threshold)
    other_class, other = _closest_other(embeddings, labels, centres.unit, rows)
    least = threshold if min_other is None else min_other
    keep = (other >= least) & (other > own[rows])
    rows, other_class, other = rows[keep], other_class[keep], other[keep]
    order = np.lexsort((rows, own[rows] - other))[: MAX_ANSWERS if top is None else top]
    return Outliers(
        rows=rows[order],
        own=own[rows[order]],
        other_class=other_class[order],
        other=other[order],
        found=len(rows),
        judged=int(np.count_nonzero(~np.isnan(own))),
    )


def suggest_threshold(
    centres: Float[np.ndarray, "C D"],
    embeddings: Float[np.ndarray, "N D"] | None = None,
    labels: Int[np.ndarray, " N"] | None = None,
    *,
    false_alarms: float = 1.0,
    comparisons: int | None = None,
    seed: int = 0,
) -> float:
    """The cosine that about `false_alarms` comparisons of two persons reach by chance.

    Taken from the data: nearly all pairs of two classes are two persons. Of a sample
    of such pairs two points of the distribution are measured, those that 10 % and .1 %
    of the cosines lie above, and a normal distribution's tail is laid through both:
    the threshold lies where false_alarms / comparisons of it remain. It is an estimate
    far beyond the measured points; relatives and a tail heavier than normal bring more
    false alarms. The few mated pairs hardly move it while they are fewer than .1 %.

    Args:
      centres: [C, D], as `ClassCentres.unit`.
      embeddings: None: pairs of centres, for `look_alike_classes` and
        `overlapping_identities`. Else pairs of an image and another class's centre,
        for `outliers`.
      labels: [N], with the embeddings.
      false_alarms: expected among all comparisons. For `outliers` N / 100 is still
        careful: only images far from their own class can be false alarms there.
      comparisons: how many there will be; default: C (C - 1) / 2, with embeddings
        N (C - 1). For an overlap: training classes times protocol identities.
      seed: of the sample.

    Returns:
      a cosine; 1 where the tail does not end before.

    Raises:
      ValueError: fewer than `MIN_CLASSES` centres, or a share of false alarms that is
        not between 0 and .1.
    """
    rng = np.random.default_rng(seed)
    classes, unit, count = _sample(rng, centres)
    if count < MIN_CLASSES:
        raise ValueError(
            f"found {count} class centres, expected at least {MIN_CLASSES}: set the "
            "threshold by hand"
        )
    if embeddings is None or labels is None:
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
        comparisons = comparisons or count * (count - 1) // 2
    else:
        rows, images, usable = _sample(rng, embeddings)
        other = np.asarray(labels)[rows, None] != classes
        cosines = (images @ unit.T)[other]
        comparisons = comparisons or usable * (count - 1)
    share = false_alarms / max(comparisons, 1)
    if not 0 < share <= _UPPER[0]:
        raise ValueError(
            f"{false_alarms:g} false alarms of {comparisons} comparisons, expected "
            f"more than 0 and at most {_UPPER[0]:.0%}"
        )
    low, high = np.quantile(cosines, [1 - s for s in _UPPER])
    z, z_low, z_high = (-NormalDist().inv_cdf(s) for s in (share, *_UPPER))
    return min(float(low + (high - low) * (z - z_low) / (z_high - z_low)), 1.0)


def _sample(
    rng: np.random.Generator, x: Float[np.ndarray, "N D"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n D"], int]:
    """Some rows that have a direction, made unit, and about how many have one."""
    rows = np.sort(rng.choice(len(x), min(len(x), _SAMPLE), replace=False))
    unit, usable = unit_block(x[rows])
    share = np.mean(usable) if len(rows) else 0
    return rows[usable], unit[usable], round(len(x) * share)


def _closest_other(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    centres: Float[np.ndarray, "C D"],
    rows: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The closest class but one's own, the first of equals, and its cosine.

    -1 and -inf where there is no other class.
    """
    best_class = np.full(len(rows), -1)
    best = np.full(len(rows), -np.inf, np.float32)
    has_centre = np.asarray(centres.any(axis=1))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        image = unit_block(embeddings[rows[part]])[0]
        for begin in range(0, len(centres), COLUMNS):
            tile = slice(begin, begin + COLUMNS)
            cos = image @ centres[tile].T
            cos[:, ~has_centre[tile]] = -np.inf
            own = labels[rows[part]] - begin
            inside = np.flatnonzero((own >= 0) & (own < cos.shape[1]))
            cos[inside, own[inside]] = -np.inf
            closest = cos.argmax(axis=1)
            value = cos[np.arange(len(cos)), closest]
            better = value > best[part]
            best[part] = np.where(better, value, best[part])
            best_class[part] = np.where(better, begin + closest, best_class[part])
    return best_class, best
