"""The k most similar rows of a gallery, exactly, in blocks."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 1 << 16
"""Rows of a gallery on disk at a time: 128 MiB of 512 float32 numbers."""

_SCORES = 1 << 27
"""Scores at a time of a gallery in memory: 512 MiB."""

_GROUP = 512
"""Scores whose maximum is looked at first; the best are among the k best groups."""

_NOTHING = -2.0
"""Below any cosine: of rows that are 0 (unreadable images) and of places unfilled."""


def top_k(
    gallery: Float[np.ndarray, "N D"] | Array,
    probes: Float[np.ndarray, "P D"] | Array,
    k: int,
    *,
    block: int = 0,
    unit: bool = False,
) -> tuple[Float[np.ndarray, "P k"], Int[np.ndarray, "P k"]]:
    """Cosines and rows of the k nearest gallery rows of each probe, best first.

    Exact: every row is compared in float32; of equal scores the lower row comes first.

    Args:
      gallery: [N, D], any length; a memory map is read block by block. A jax array
        stays where it is.
      probes: [P, D].
      k: at least 1; with fewer rows there are fewer columns.
      block: rows at a time; 0 chooses.
      unit: the gallery's rows have unit length already, all of them (saves a pass).

    Returns:
      (scores [P, min(k, N)], rows). A gallery row that is 0 is never found: its places
      have row -1 and the score -2. A probe that is 0 finds nothing.

    Raises:
      ValueError: sizes do not fit, the gallery or the probes are empty, or k < 1.
    """
    check_sizes(gallery.shape, probes.shape, k)
    count = gallery.shape[0]
    here = isinstance(gallery, jax.Array)
    k = min(k, count)
    block = min(block or (max(_SCORES // len(probes), BLOCK) if here else BLOCK), count)
    wanted = jnp.asarray(probes, jnp.float32)
    lengths = jnp.linalg.norm(wanted, axis=1, keepdims=True)
    wanted = jnp.where(lengths > 0, wanted / jnp.maximum(lengths, 1e-30), 0)
    best = (
        jnp.full((len(wanted), k), _NOTHING, jnp.float32),
        jnp.full((len(wanted), k), -1, jnp.int32),
    )
    for first in range(0, count, block):
        start = min(first, count - block)  # the last block overlaps the one before
        rows = gallery
        if block < count:
            rows = _block(gallery, start, block) if here else gallery[start:][:block]
        if not here:
            rows = jnp.asarray(np.asarray(rows, np.float32))
        best = _merged(best, wanted, rows, start, first, unit, start < first)
    scores, rows = (np.array(x) for x in best)
    empty = (scores <= _NOTHING) | (np.asarray(lengths) == 0)
    scores[empty], rows[empty] = _NOTHING, -1
    return scores, rows


def check_sizes(gallery: tuple[int, ...], probes: tuple[int, ...], k: int) -> None:
    """Raises a ValueError unless a search is possible."""
    if len(gallery) != 2 or len(probes) != 2 or gallery[1] != probes[1]:
        raise ValueError(
            f"gallery and probes are {list(gallery)} and {list(probes)}, expected "
            "[N, D] and [P, D] of one D"
        )
    if not gallery[0] or not probes[0]:
        raise ValueError(
            f"{gallery[0]} gallery rows and {probes[0]} probes, expected some of both"
        )
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")


@functools.partial(jax.jit, static_argnames="block")
def _block(gallery, start, block: int):
    return jax.lax.dynamic_slice_in_dim(gallery, start, block)


@functools.partial(jax.jit, static_argnames=("unit", "overlaps"))
def _merged(best, probes, rows, start, first, unit: bool, overlaps: bool):
    """The best of those so far and of a block; rows below `first` have been seen."""
    k, count = best[0].shape[1], rows.shape[0]
    rows = rows.astype(jnp.float32)
    scores = jnp.matmul(probes, rows.T, precision=jax.lax.Precision.HIGHEST)
    if not unit:
        squares = jnp.sum(rows * rows, axis=1)
        scores = scores * jax.lax.rsqrt(jnp.maximum(squares, 1e-30))[None, :]
        scores = jnp.where(squares[None, :] > 0, scores, _NOTHING)
    if overlaps:
        known = start + jnp.arange(count) >= first
        scores = jnp.where(known[None, :], scores, _NOTHING)
    found, places = _exact_top_k(scores, min(k, count))
    both = jnp.concatenate([best[0], found], axis=1)
    names = jnp.concatenate([best[1], (start + places).astype(jnp.int32)], axis=1)
    kept, order = jax.lax.top_k(both, k)
    return kept, jnp.take_along_axis(names, order, axis=1)


def _exact_top_k(scores, k: int):
    """`jax.lax.top_k` along rows; only groups that can matter are sorted."""
    probes, count = scores.shape
    groups = count // _GROUP
    if groups <= 2 * k:
        return jax.lax.top_k(scores, k)
    whole = groups * _GROUP
    grouped = scores[:, :whole].reshape(probes, groups, _GROUP)
    _, chosen = jax.lax.top_k(jnp.max(grouped, axis=2), k)
    chosen = jnp.sort(chosen, axis=1)  # so that lower rows come first among equals
    values = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1)
    places = chosen[:, :, None] * _GROUP + jnp.arange(_GROUP)
    values, places = values.reshape(probes, -1), places.reshape(probes, -1)
    if whole < count:
        values = jnp.concatenate([values, scores[:, whole:]], axis=1)
        rest = jnp.broadcast_to(jnp.arange(whole, count), (probes, count - whole))
        places = jnp.concatenate([places, rest], axis=1)
    best, order = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(places, order, axis=1)


def with_faiss(
    gallery: Float[np.ndarray, "N D"], probes: Float[np.ndarray, "P D"], k: int
) -> tuple[Float[np.ndarray, "P k"], Int[np.ndarray, "P k"]]:
    """As `top_k` by an HNSW index of FAISS: approximate, and quick for many probes.

    Raises:
      ValueError: FAISS is not installed, or sizes do not fit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError:
        raise ValueError(
            "--index faiss needs the package faiss-cpu: pip install -e '.[search]'"
        ) from None
    check_sizes(gallery.shape, probes.shape, k)

    def unit(x):
        x = np.array(x, np.float32)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.maximum(lengths, 1e-30)

    index: Any = faiss.IndexHNSWFlat(gallery.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = max(64, 4 * k)
    index.add(unit(gallery))
    scores, rows = index.search(unit(probes), min(k, len(gallery)))
    return np.where(rows < 0, _NOTHING, scores), rows
