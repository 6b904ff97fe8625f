"""Identification among many strangers: MegaFace's and TinyFace's rank-k.

Distractors are faces of people who are nobody's mate, up to millions of them and as a
rule a memory map. They are read once, in blocks, and need not be normalised.

Precision: ranks up to 1000 are those of float64 scores; see `mate_counts`.

Cost. One float32 matrix product of BLAS, and counting on all cores: one pass for the
largest score of each probe and block, and, where that beats the probe's worst mate, a
look-up by which mates each score lies between. That is little for a network that works;
for one that does not it may take longer than the product (2.7 times the product in all
where rank-1 is 7 %), unless `max_rank` says that ranks beyond it are all the same.

Letters: P probes, M mates, G gallery, X distractors, D dimensions, n (probe, mate)
pairs.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.identification import mate_ranks
from hyperface_jax.evaluation.mate_counts import MateCounts
from hyperface_jax.evaluation.similarity import unit_rows

_BLOCK_SCORES = 1 << 24  # scores held at a time: 64 MiB


class DistractorRanks(NamedTuple):
    """Result of `ranks_among_distractors`, one entry a (probe, mate) pair [n].

    Attributes:
      rank: 1 + distractors that score as high as the mate.
      probe: row of the probe.
      mate: row of the mate.
    """

    rank: Int[np.ndarray, " n"]
    probe: Int[np.ndarray, " n"]
    mate: Int[np.ndarray, " n"]


def ranks_among_distractors(
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    distractors: Float[np.ndarray, "X D"],
    *,
    max_rank: int | None = None,
    block: int = 32768,
    threads: int | None = None,
) -> DistractorRanks:
    """MegaFace's rule: each mate alone among the distractors, against each probe.

    Every ordered pair of two images of an identity is a search: the first is the probe,
    the second is put alone into the gallery of distractors. Other images of anyone are
    not there. Rank-k is the share of *all* these pairs with rank <= k:
    `identification.cmc(ranks.rank, k)`.

    Args:
      probe: images of the probe set (FaceScrub) [P, D].
      probe_id: person of each [P]; a person with one image gives no pair.
      distractors: faces of others [X, D], also a memory map.
      max_rank: last rank of interest; all ranks beyond are returned as max_rank + 1
        and cost nothing. None for all ranks.
      block: distractors read at a time.
      threads: for counting; None for one a core. BLAS has its own.

    Raises:
      ValueError: NaN or infinity, no pair, or no distractors.
    """
    unit = unit_rows(probe, "probe")
    same = _same_identity(probe_id)
    if not len(same):
        raise ValueError(
            f"none of {len(probe)} probes has another image of its identity"
        )
    first, second = same.T
    score = np.empty(len(same))
    for start in range(0, len(same), 8192):
        part = slice(start, start + 8192)
        score[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]])
    most = None if max_rank is None else np.full(len(same), max_rank)
    counts = _count_as_high(unit, first, score, most, distractors, block, threads)
    return DistractorRanks(1 + counts, first, second)


def gallery_ranks_among_distractors(
    gallery: Float[np.ndarray, "G D"],
    gallery_id: Int[np.ndarray, " G"],
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    distractors: Float[np.ndarray, "X D"],
    *,
    max_rank: int | None = None,
    block: int = 32768,
    threads: int | None = None,
) -> Int[np.ndarray, " P"]:
    """TinyFace's rule: the gallery of all mates, with the distractors added to it.

    Rank of the best mate among the entries of others and the distractors, ties against
    the mate. TinyFace reports rank 1, 5 and 20.

    Args:
      gallery: entries with an identity [G, D].
      gallery_id: their identities [G].
      probe: to be looked for [P, D].
      probe_id: their identities [P]; each must be in the gallery.
      distractors: gallery entries of nobody's identity [X, D].
      max_rank: as in `ranks_among_distractors`.
      block: distractors read at a time.
      threads: for counting; None for one a core.
    """
    ranks = mate_ranks(gallery, gallery_id, probe, probe_id)
    unit, entries = unit_rows(probe, "probe"), unit_rows(gallery, "gallery")
    score = np.empty(len(probe))
    for start in range(0, len(probe), 1024):
        part = slice(start, start + 1024)
        is_mate = probe_id[part, None] == gallery_id[None, :]
        cos = np.where(is_mate, unit[part] @ entries.T, -np.inf)
        score[part] = cos.max(axis=1)
    most = None if max_rank is None else np.maximum(max_rank + 1 - ranks, 0)
    rows = np.arange(len(probe))
    ranks = ranks + _count_as_high(unit, rows, score, most, distractors, block, threads)
    return ranks if max_rank is None else np.minimum(ranks, max_rank + 1)


def _same_identity(identity: Int[np.ndarray, " P"]) -> Int[np.ndarray, "n 2"]:
    """Ordered pairs of rows with the same identity, sorted."""
    order = np.argsort(identity, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
    pairs = [np.empty((0, 2), np.int64)]
    for rows in groups:
        first, second = np.repeat(rows, len(rows)), np.tile(rows, len(rows))
        pairs.append(np.stack([first, second], axis=1)[first != second])
    joined = np.concatenate(pairs)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def _count_as_high(
    unit, probe_row, score, most, distractors, block, threads
) -> Int[np.ndarray, " n"]:
    """Distractors that score at least `score` with unit[probe_row]; both are [n].

    Counting stops at `most` [n], if that is given.
    """
    if not len(distractors):
        raise ValueError("found 0 distractors, expected at least 1")
    if most is None:
        most = np.full(len(score), len(distractors))
    order = np.lexsort((score, probe_row))
    start = np.searchsorted(probe_row[order], np.arange(len(unit) + 1))
    mates = [
        MateCounts(score[part], most[part])
        for part in (order[start[p] : start[p + 1]] for p in range(len(unit)))
    ]
    single = unit.astype(np.float32)
    tile = max(1, min(len(unit), _BLOCK_SCORES // block))
    workers = threads or os.cpu_count() or 1
    # Kept over all blocks: fresh memory costs more to map than to fill.
    product = np.empty((tile, block), np.float32)
    unit_block = np.empty((block, distractors.shape[1]), np.float32)
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(distractors), block):
            raw = np.asarray(distractors[at : at + block])
            faces = unit_block[: len(raw)]
            halves = np.array_split(np.arange(len(raw)), workers)
            _run(pool, _single_unit_rows, halves, raw, faces, at)
            for low in range(0, len(unit), tile):
                rows = np.arange(low, min(low + tile, len(unit)))
                cos = product[: len(rows), : len(faces)]
                np.matmul(single[rows[0] : rows[-1] + 1], faces.T, out=cos)
                parts = np.array_split(rows, workers)
                _run(pool, _count_rows, parts, low, cos, raw, unit, mates)
    result = np.empty(len(score), np.int64)
    result[order] = np.concatenate([m.counts for m in mates])
    return np.minimum(result, most)


def _run(pool: ThreadPoolExecutor, function: Callable, parts, *arguments) -> None:
    """function(part, *arguments) of each part that is not empty, in parallel."""
    jobs = [pool.submit(function, part, *arguments) for part in parts if len(part)]
    for job in jobs:
        job.result()


def _count_rows(rows, low: int, cos, raw, unit, mates: list["MateCounts"]) -> None:
    """Adds the counts of one block of distractors for some probes."""
    best = cos[rows[0] - low : rows[-1] + 1 - low].max(axis=1)
    for probe, highest in zip(rows, best, strict=True):
        if highest >= mates[probe].lowest:
            mates[probe].add(cos[probe - low], raw, unit[probe])


def _single_unit_rows(rows, raw, faces, at: int) -> None:
    """Writes unit rows in float32 to faces[rows]; `at` is the number of raw[0]."""
    part = slice(rows[0], rows[-1] + 1)
    x = np.asarray(raw[part], np.float32)
    with np.errstate(over="ignore"):
        square = np.einsum("nd,nd->n", x, x)
    # Lengths that float32 cannot square, zero and NaN take the careful way.
    if (square > 1e-20).all() and np.isfinite(square).all():
        np.multiply(x, (1 / np.sqrt(square))[:, None], out=faces[part])
    else:
        name = f"distractors {at + part.start} to {at + part.stop - 1}"
        faces[part] = unit_rows(raw[part], name, np.float32)
