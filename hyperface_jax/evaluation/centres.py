"""Centres of the classes of a labelled set, and how far images are from their own.

Letters: N embeddings, D dimensions, C classes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 4096
"""Embeddings made unit length at a time."""


class ClassCentres(NamedTuple):
    """Result of `class_centres`.

    Attributes:
      unit: float32 [C, D], mean of the class's unit embeddings made unit length; zero
        for a class without an image, or whose embeddings cancel.
      lengths: float64 [C], length of the sum of the unit embeddings.
      counts: int64 [C], embeddings that the centre rests on.
      left_out: embeddings that are zero or not finite.
    """

    unit: Float[np.ndarray, "C D"]
    lengths: Float[np.ndarray, " C"]
    counts: Int[np.ndarray, " C"]
    left_out: int


def class_centres(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    *,
    num_classes: int | None = None,
) -> ClassCentres:
    """Unit centre of each class, in one pass; every image has the same weight.

    Args:
      embeddings: [N, D], need not be normalised; a zero row (an image that could not
        be read) or one that is not finite is left out.
      labels: class of each row [N], from 0.
      num_classes: C; default: the largest label + 1.

    Raises:
      ValueError: labels below 0 or beyond C.
    """
    labels = np.asarray(labels, np.int64)
    top = int(labels.max()) + 1 if len(labels) else 0
    classes = top if num_classes is None else num_classes
    if len(labels) and (labels.min() < 0 or top > classes):
        raise ValueError(
            f"labels are {labels.min()}..{top - 1}, expected 0..{classes - 1}"
        )
    sums = np.zeros((classes, embeddings.shape[1]), np.float32)
    counts = np.zeros(classes, np.int64)
    for start in range(0, len(labels), BLOCK):
        unit, usable = unit_block(embeddings[start : start + BLOCK])
        label = labels[start : start + BLOCK][usable]
        if not len(label):
            continue
        order = np.argsort(label, kind="stable")
        names, first, count = np.unique(
            label[order], return_index=True, return_counts=True
        )
        sums[names] += np.add.reduceat(unit[usable][order], first, dtype=np.float64)
        counts[names] += count
    lengths = np.empty(classes)
    for start in range(0, classes, BLOCK):
        part = slice(start, start + BLOCK)
        lengths[part] = np.linalg.norm(sums[part].astype(np.float64), axis=1)
        # What is left of vectors that cancel is rounding: no direction.
        solid = lengths[part] > 1e-6 * counts[part]
        sums[part] /= np.where(solid, lengths[part], np.inf)[:, None]
    return ClassCentres(sums, lengths, counts, len(labels) - int(counts.sum()))


def leave_one_out_cosines(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    centres: ClassCentres,
) -> Float[np.ndarray, " N"]:
    """Cosine of each image to the centre of its class's other images.

    With S the sum of the class's unit embeddings and e one of them it is
    (<S, e> - 1) / |S - e|, so no second pass is needed. NaN where there is no other
    image or the row is no embedding; 0 where the others cancel.

    Args:
      embeddings: [N, D], those that the centres were made of.
      labels: [N].
      centres: `class_centres(embeddings, labels)`.

    Raises:
      ValueError: labels without a centre.
    """
    classes = len(centres.counts)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels are {labels.min()}..{labels.max()}, expected 0..{classes - 1}"
        )
    own = np.full(len(labels), np.nan)
    for start in range(0, len(labels), BLOCK):
        unit, usable = unit_block(embeddings[start : start + BLOCK])
        label = labels[start : start + BLOCK]
        length, count = centres.lengths[label], centres.counts[label]
        dot = length * np.einsum("nd,nd->n", unit, centres.unit[label])
        rest = np.sqrt(np.maximum(length**2 - 2 * dot + 1, 0))
        solid = rest > 1e-3
        cos = np.where(solid, np.clip((dot - 1) / np.where(solid, rest, 1), -1, 1), 0)
        own[start : start + BLOCK] = np.where(usable & (count > 1), cos, np.nan)
    return own


def unit_block(
    rows: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, " N"]]:
    """Rows as float32 of length 1, zero where they have none, and which have one."""
    wide = np.asarray(rows, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(wide, axis=1)
    usable = np.isfinite(norm) & (norm > 0)
    if not usable.all():
        wide = np.where(usable[:, None], wide, 0)
    unit = wide / np.where(usable, norm, 1)[:, None]
    return unit.astype(np.float32), usable
