"""Cosines of embeddings, for few pairs and for millions.

Letters: N embeddings, D dimensions, n pairs.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import DTypeLike

from hyperface_jax.evaluation.roc import Scores

Index: TypeAlias = Int[np.ndarray, " n"]

FLOAT64_PAIRS = 1_000_000
"""Up to this many pairs `pair_scores` computes in float64."""


def pair_scores(
    embeddings: Float[np.ndarray, "N D"],
    first: Index,
    second: Index,
) -> Scores:
    """Cosine of each pair of rows, <e_i, e_j> / (|e_i| |e_j|).

    A zero embedding has cosine 0 with everything. Pairs that cover a good part of all
    N² (the template pairs of IJB) go through blocks of a matrix product, few pairs
    (LFW) through a gather; neither holds an N x N matrix.

    Up to `FLOAT64_PAIRS` pairs everything is float64. Beyond, products and scores are
    float32 (lengths are still float64): an error of about 1e-7, at half the time and
    memory. Memory is O(N · (D + 512) + n).

    Args:
      embeddings: [N, D], need not be normalised.
      first: row of the first image of each pair [n], in [0, N).
      second: row of the second.

    Returns:
      cosines [n].
    """
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} rows and second {len(second)}")
    rows = len(embeddings)
    dtype = np.float64 if len(first) <= FLOAT64_PAIRS else np.float32
    unit = unit_rows(embeddings, "embeddings", dtype)
    for name, index in (("first", first), ("second", second)):
        if len(index) and not (index.min() >= 0 and index.max() < rows):
            raise ValueError(
                f"{name} holds rows {index.min()}..{index.max()}, but there are "
                f"{rows} embeddings"
            )
    # Measured at D = 512: a gathered pair costs about 300 entries of a product.
    if 300 * len(first) >= rows * rows / 2:
        return _scores_by_blocks(unit, first, second)
    scores = np.empty(len(first), dtype)
    for start in range(0, len(first), 4096):
        part = slice(start, start + 4096)
        scores[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]])
    return scores


def _scores_by_blocks(
    unit: Float[np.ndarray, "N D"], first: Index, second: Index, *, block: int = 512
) -> Scores:
    """Products of a block of rows with itself and all later rows."""
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    # A radix sort where the block's number fits 16 bits; within a block no order.
    number = lower // block
    if len(unit) <= block * 2**16:
        number = number.astype(np.uint16)
    order = np.argsort(number, kind="stable")
    count = -(-len(unit) // block)
    limits = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=count))])
    scores = np.empty(len(first), unit.dtype)
    for i, start in enumerate(range(0, len(unit), block)):
        pairs = order[limits[i] : limits[i + 1]]
        if len(pairs):
            product = unit[start : start + block] @ unit[start:].T
            scores[pairs] = product[lower[pairs] - start, upper[pairs] - start]
    return scores


def unit_rows(
    x: Float[np.ndarray, "N D"], name: str, dtype: DTypeLike = np.float64
) -> Float[np.ndarray, "N D"]:
    """Rows of length 1; a zero row stays zero, a NaN is a ValueError.

    Lengths are float64 whatever the dtype of the result; x is read in blocks of rows,
    so it may be a memory map.
    """
    x = np.asarray(x)
    unit, bad = np.empty(x.shape, dtype), 0
    for start in range(0, len(x), 8192):
        rows = x[start : start + 8192].astype(np.float64, copy=False)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        usable = np.isfinite(norm)
        bad += np.count_nonzero(~usable)
        unit[start : start + 8192] = rows / np.where(usable & (norm > 0), norm, 1)
    if bad:
        raise ValueError(f"{name}: {bad} of {len(x)} rows hold NaN or infinity")
    return unit
