"""The nearest rows of a large gallery by cosine: exact, and near the cost of a product.

Three steps. JAX multiplies a block of the gallery with all probes in float32 and keeps
the largest score of each group of rows. A group can hold one of the k best rows only if
its largest score comes within twice the rounding error of the k-th largest such score;
as a rule that is k groups a probe. Their rows are scored again in float64, and these
scores decide. A probe with more such groups than are kept (a gallery full of copies) is
compared with every row in float64. So the answer is that of float64 in every case.

The gallery is read once for each `PROBES` probes, and may be a memory map. It need not
be normalised: lengths come from the block while it is in the cache.

Letters: N gallery rows, P probes, D dimensions, V views, K = min(k, N), b rows of a
block.
"""

import collections
import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hyperface_jax.evaluation.best_groups import GROUP, BestGroups

Rows: TypeAlias = Float[np.ndarray, "_ _"] | Float[np.ndarray, "_ _ _"]
"""Embeddings [N, D], or views of each [N, V, D] that are summed; of any length."""

NAMES = ("gallery", "probes")

PROBES = 2048
"""Probes that are searched together."""

_AHEAD = 4  # blocks in flight: the next is read while one is multiplied
_SHORT, _LONG = 1e-20, 1e30  # squared lengths that float32 can be trusted with


class Nearest(NamedTuple):
    """Result of `search`.

    Attributes:
      scores: float64 [P, K], cosines to 12 decimals, falling; -inf where row is -1.
      rows: int64 [P, K], rows of the gallery, of a tie the lower first; -1: no more.
      blank_gallery: rows that are 0, images that could not be read; they match nothing.
      blank_probes: the same of the probes; they find nothing.
    """

    scores: Float[np.ndarray, "P K"]
    rows: Int[np.ndarray, "P K"]
    blank_gallery: Int[np.ndarray, " _"]
    blank_probes: Int[np.ndarray, " _"]


def top_k(
    gallery: Rows, probes: Rows, k: int, *, block: int | None = None
) -> tuple[Float[np.ndarray, "P K"], Int[np.ndarray, "P K"]]:
    """Scores and rows of `search`."""
    found = search(gallery, probes, k, block=block)
    return found.scores, found.rows


def search(
    gallery: Rows,
    probes: Rows,
    k: int,
    *,
    block: int | None = None,
    names: tuple[str, str] = NAMES,
) -> Nearest:
    """The k gallery rows with the largest cosine to each probe.

    Args:
      gallery: floats [N, D] or [N, V, D], also a memory map.
      probes: [P, D] or [P, V, D].
      k: neighbours of a probe; with k > N there are N.
      block: rows read at a time; None: 4096 on a CPU, else 65536.
      names: of gallery and probes, for errors.

    Raises:
      ValueError: nothing to search, sizes that differ, NaN or infinity, or k < 1.
    """
    check(gallery, probes, k, names)
    if block is None:
        block = 4096 if jax.default_backend() == "cpu" else 65536
    elif block < 1:
        raise ValueError(f"block is {block}, expected at least 1")
    block = -(-min(block, len(gallery)) // GROUP) * GROUP
    spans = [
        np.arange(start, min(start + PROBES, len(probes)))
        for start in range(0, len(probes), PROBES)
    ]
    # All of them in float64 at once may not fit; a NaN is said before the search.
    zero = np.concatenate([unit_rows_at(probes, s, names[1])[1] for s in spans])
    scores = np.full((len(probes), min(k, len(gallery))), -np.inf)
    rows = np.full(scores.shape, -1, np.int64)
    blank = [np.zeros(0, np.int64)]
    for span in spans:
        unit, _ = unit_rows_at(probes, span, names[1])
        pass_ = _Pass(gallery, unit, scores.shape[1], block, names[0])
        scores[span], rows[span], blank = pass_.run()
    scores[zero] = -np.inf
    rows[np.isneginf(scores)] = -1
    return Nearest(scores, rows, np.concatenate(blank), np.flatnonzero(zero))


def check(
    gallery: np.ndarray, probes: np.ndarray, k: int, names: tuple[str, str] = NAMES
) -> None:
    """Raises a ValueError where there is nothing to search, or sizes differ."""
    for name, x in zip(names, (gallery, probes), strict=True):
        if not (len(x) and x.shape[-1]):
            raise ValueError(f"{name}: found {list(x.shape)}, expected 1 row or more")
    if gallery.shape[-1] != probes.shape[-1]:
        raise ValueError(
            f"{names[1]}: found embeddings of {probes.shape[-1]} numbers, expected "
            f"{gallery.shape[-1]} as in {names[0]}"
        )
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")


def read(x: Rows, index: slice | np.ndarray) -> Float[np.ndarray, "n D"]:
    """Some rows, views summed, as they are stored or in float32, if that is more."""
    rows = np.asarray(x[index])
    if rows.ndim == 3 and rows.shape[1] == 1:
        return rows[:, 0]
    if rows.ndim == 3:
        # Halves do not overflow, and doubles keep their digits.
        return rows.sum(axis=1, dtype=np.promote_types(rows.dtype, np.float32))
    return rows


def unit_probes(
    probes: Rows, name: str
) -> tuple[Float[np.ndarray, "P D"], Int[np.ndarray, " _"]]:
    """Probes of length 1 in float64, and those that are 0."""
    unit, zero = unit_rows_at(probes, np.arange(len(probes)), name)
    return unit, np.flatnonzero(zero)


def unit_rows_at(
    x: Rows, rows: Int[np.ndarray, " n"], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows in float64 with length 1 [n, D], and which are 0 [n].

    Raises:
      ValueError: one holds NaN or infinity.
    """
    unit = read(x, rows).astype(np.float64)
    largest = np.abs(unit).max(axis=1, keepdims=True)  # squares must not overflow
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]))
    if len(bad):
        raise ValueError(
            f"{name}: row {rows[bad[0]]} holds NaN or infinity, expected numbers "
            "(rows count from 0)"
        )
    zero = largest == 0
    unit /= np.where(zero, 1, largest)
    unit /= np.where(zero, 1, np.linalg.norm(unit, axis=1, keepdims=True))
    return unit, zero[:, 0]


def score_rows(
    gallery: Rows,
    probe: Float[np.ndarray, " D"],
    rows: Int[np.ndarray, " n"],
    k: int,
) -> tuple[Float[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The k best of some rows, which rise, by cosines in float64; see `Nearest`."""
    unit, zero = unit_rows_at(gallery, rows, "gallery")
    cos = np.where(zero, -np.inf, np.round(np.einsum("nd,d->n", unit, probe), 12))
    order = np.argsort(-cos, kind="stable")[:k]
    missing = (0, k - len(order))
    return (
        np.pad(cos[order], missing, constant_values=-np.inf),
        np.pad(rows[order], missing, constant_values=-1),
    )


@jax.jit
def _best_of_groups(
    probes: Float[Array, "P D"], rows: Float[Array, "b D"]
) -> tuple[Float[Array, "groups P"], Float[Array, " b"]]:
    """Largest cosine of each group of rows, and all squared lengths.

    Rows whose length float32 cannot square get -inf.
    """
    rows = rows.astype(jnp.float32)
    product = jnp.matmul(rows, probes.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.sum(rows * rows, axis=1)
    usual = (square > _SHORT) & (square < _LONG)
    scale = 1 / jnp.sqrt(jnp.where(usual, square, 1))
    scores = jnp.where(usual[:, None], product * scale[:, None], -jnp.inf)
    return scores.reshape(-1, GROUP, len(probes)).max(axis=1), square


class _Pass:
    """One pass over the gallery, for up to `PROBES` unit probes [P, D] in float64."""

    def __init__(self, gallery: Rows, unit: np.ndarray, k: int, block: int, name: str):
        self._gallery, self._unit, self._k = gallery, unit, k
        self._block, self._name = block, name
        single = jnp.asarray(unit.astype(np.float32))
        self._multiply = functools.partial(_best_of_groups, single)
        # Of D rounded products, their sum and the scaling, and twice that: see above.
        slack = 2 * (unit.shape[1] + 8) * 2.0**-24
        self._groups = BestGroups(len(unit), k, slack)
        self._blank = [np.zeros(0, np.int64)]

    def run(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Scores [P, k], rows [P, k] and the gallery rows that are 0."""
        flight: collections.deque = collections.deque()
        for start in range(0, len(self._gallery), self._block):
            # Aligned float32 on a CPU, as in a .npy, is not even copied.
            rows = jax.device_put(self._padded(start), may_alias=True)
            flight.append((start, *self._multiply(rows)))
            if len(flight) > _AHEAD:
                self._land(*flight.popleft())
        while flight:
            self._land(*flight.popleft())
        scores = np.empty((len(self._unit), self._k))
        rows = np.empty(scores.shape, np.int64)
        chosen, crowded = self._groups.choose()
        for probe in np.flatnonzero(~crowded):
            near = (chosen[probe][:, None] * GROUP + np.arange(GROUP)).ravel()
            near = near[near < len(self._gallery)]
            scores[probe], rows[probe] = score_rows(
                self._gallery, self._unit[probe], near, self._k
            )
        if crowded.any():
            scores[crowded], rows[crowded] = self._score_all(self._unit[crowded])
        return scores, rows, self._blank

    def _padded(self, start: int) -> Float[np.ndarray, "b D"]:
        """A block; the last one with zeros, so that one program does."""
        rows = read(self._gallery, slice(start, start + self._block))
        if rows.dtype == np.float64:
            with np.errstate(over="ignore"):  # what becomes infinite is looked at again
                rows = rows.astype(np.float32)
        if len(rows) == self._block:
            return rows
        return np.pad(rows, ((0, self._block - len(rows)), (0, 0)))

    def _land(self, start: int, largest, square) -> None:
        """Takes a block's result; rows of unusual length are looked at with care."""
        square = np.asarray(square)[: len(self._gallery) - start]
        odd = np.flatnonzero(~((square > _SHORT) & (square < _LONG)))
        if len(odd):
            careful, zero = unit_rows_at(self._gallery, start + odd, self._name)
            self._blank.append(start + odd[zero])
            if not zero.all():
                rows = self._padded(start).astype(np.float32)
                rows[odd] = careful
                largest, _ = self._multiply(jnp.asarray(rows))
        self._groups.add(start // GROUP, np.asarray(largest))

    def _score_all(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k best of all rows, in float64, of each probe."""
        scores = np.full((len(unit), self._k), -np.inf)
        rows = np.full(scores.shape, -1)
        for start in range(0, len(self._gallery), self._block):
            stop = min(start + self._block, len(self._gallery))
            number = np.arange(start, stop)
            part, zero = unit_rows_at(self._gallery, number, self._name)
            cos = np.where(zero, -np.inf, np.round(unit @ part.T, 12))
            # Rows come in order, so of a tie the earlier one stays.
            better = cos > scores[:, -1:]
            for probe in np.flatnonzero(better.any(axis=1)):
                new = np.flatnonzero(better[probe])
                joined = np.concatenate([scores[probe], cos[probe, new]])
                order = np.argsort(-joined, kind="stable")[: self._k]
                scores[probe] = joined[order]
                rows[probe] = np.concatenate([rows[probe], start + new])[order]
        return scores, rows
