"""Identification (1:N): who of the gallery is it, and is the person in it at all?

Closed set: every probe has a mate, the question is how far up the list (`rank_k`, the
CMC curve). Open set: an alarm must also exceed a threshold, chosen so that a share FPIR
of searches that should find nobody raise one; TPIR is the share of mated searches that
find their mate. Two published algorithms go by that name and their numbers are not
comparable, so each has its own function:

- `tpir_at_fpir_nist`: InsightFace's ijb_evals.py, close to NIST's definition.
- `tpir_at_fpir_pairs`: InsightFace's ijb_1n.py, also AdaFace's.

Similarity is the cosine, in float64, by blocks of probes; no [P, G] array exists.
Where an identity has several gallery entries its best one counts.

Letters: G gallery, P probes, D dimensions, K ranks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from hyperface_jax.evaluation.roc import far_label
from hyperface_jax.evaluation.similarity import unit_rows

_SCORES = 1 << 26  # at a time, 0.5 GB

Gallery: TypeAlias = tuple[Float[np.ndarray, "_ D"], Int[np.ndarray, " _"]]
"""Vectors, need not be normalised, and identities."""


def mate_ranks(
    gallery: Float[np.ndarray, "G D"],
    gallery_id: Int[np.ndarray, " G"],
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    *,
    block: int = 1024,
) -> Int[np.ndarray, " P"]:
    """Rank of each probe's mate, 1 = first: 1 + entries of others that score as high.

    Cosine similarity. Where an identity has several gallery entries its best one
    counts. Ties go against the mate, so that a network which maps all faces to one
    point scores 0 and not 1. Memory is O(block · G), at most 0.7 GB beside float64
    copies of the vectors.

    Raises:
      ValueError: NaN, no gallery or probe, or a probe without a mate.
    """
    _check_mated(gallery_id, probe_id)
    return _search(gallery, gallery_id, probe, probe_id, block=block).rank


def rank_k(
    gallery: Float[np.ndarray, "G D"],
    gallery_id: Int[np.ndarray, " G"],
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Share of probes whose mate is among the k best gallery entries, and the counts.

    The closed-set rank-k of the CMC curve; for ties and several entries of one identity
    see `mate_ranks`. A k of the gallery's size or more cannot fail and is left out.

    Returns:
      `rank1`, `rank5`, ... as fractions, `probes` and `gallery_size`.
    """
    _check_ks(ks)
    ranks = mate_ranks(gallery, gallery_id, probe, probe_id)
    return shares_of_ranks(ranks, len(gallery), ks)


def shares_of_ranks(
    ranks: Int[np.ndarray, " P"], gallery_size: int, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """What `rank_k` returns, from `mate_ranks`."""
    shares = {f"rank{k}": float(np.mean(ranks <= k)) for k in ks if k < gallery_size}
    return shares | {"probes": float(len(ranks)), "gallery_size": float(gallery_size)}


def cmc(ranks: Int[np.ndarray, " P"], max_rank: int) -> Float[np.ndarray, " K"]:
    """Cumulative match characteristic: share of probes with rank <= 1, 2, ..., K.

    Args:
      ranks: from `mate_ranks` or a function of `distractors`.
      max_rank: K.
    """
    if not len(ranks) or ranks.min() < 1 or max_rank < 1:
        raise ValueError(
            f"found {len(ranks)} ranks and max_rank {max_rank}, expected ranks from 1"
        )
    counts = np.bincount(np.minimum(ranks, max_rank + 1), minlength=max_rank + 2)
    return np.cumsum(counts)[1 : max_rank + 1] / len(ranks)


def tpir_at_fpir_nist(
    galleries: Sequence[Gallery],
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    fpirs: Sequence[float] = (1e-2, 1e-1),
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Open-set identification, each gallery searched apart (InsightFace's ijb_evals).

    Per gallery all probes are searched. Those n without a mate in it are impostors; the
    threshold is their max(int(n · FPIR) - 1, 0)-th largest best score, counted from 0.
    A mated probe is identified if its mate scores above all others (rank 1, ties
    against the mate) and above the threshold. TPIR is the share of mated probes,
    averaged over galleries.

    Rank-k needs no threshold: hits of mated probes, summed over galleries, by the
    number of *all* probes; a probe with a mate in none counts as a failure.

    Returns:
      `tpir@fpir=1e-2`, ..., `rank1`, ..., `probes`, `gallery_size` (sum).
    """
    _check_ks(ks)
    _check_fpirs(fpirs)
    tpir, hits = np.zeros(len(fpirs)), np.zeros(len(ks))
    for number, (gallery, gallery_id) in enumerate(galleries, 1):
        found = _search(gallery, gallery_id, probe, probe_id)
        mated = np.isfinite(found.mate)
        impostors = len(mated) - np.count_nonzero(mated)
        if impostors in (0, len(mated)):
            raise ValueError(
                f"gallery {number}: found {len(mated) - impostors} probes with a mate "
                f"and {impostors} without, expected at least one of each"
            )
        alarms = np.sort(found.best_other[~mated])[::-1]
        first = found.mate[found.rank == 1]
        for i, fpir in enumerate(fpirs):
            threshold = alarms[max(int(impostors * fpir) - 1, 0)]
            tpir[i] += np.count_nonzero(first > threshold) / np.count_nonzero(mated)
        hits += [np.count_nonzero(found.rank[mated] <= k) for k in ks]
    return _open_set_metrics(fpirs, tpir / len(galleries), ks, hits, galleries, probe)


def tpir_at_fpir_pairs(
    galleries: Sequence[Gallery],
    probe: Float[np.ndarray, "P D"],
    probe_id: Int[np.ndarray, " P"],
    fpirs: Sequence[float] = (1e-2, 1e-1),
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Open-set identification in one joined gallery (InsightFace's ijb_1n, AdaFace).

    Every probe has a mate. The threshold is the ceil(FPIR · P)-th largest of *all*
    scores of a probe with the entries of others, so one probe may raise many of the
    false alarms. TPIR is the share of probes whose mate scores above the threshold,
    whatever its rank. Rank-k is that of the joined gallery.

    Returns:
      As `tpir_at_fpir_nist`.

    Raises:
      ValueError: an identity with two entries, or a probe without a mate.
    """
    _check_ks(ks)
    _check_fpirs(fpirs)
    gallery = np.concatenate([vectors for vectors, _ in galleries])
    gallery_id = np.concatenate([identity for _, identity in galleries])
    _check_mated(gallery_id, probe_id)
    repeated = len(gallery_id) - len(np.unique(gallery_id))
    if repeated:
        raise ValueError(
            f"{repeated} of {len(gallery_id)} gallery entries repeat an identity, "
            "expected one entry each"
        )
    wanted = [math.ceil(len(probe) * fpir) for fpir in fpirs]
    most = max(wanted, default=0)
    if most > len(probe) * (len(gallery) - 1):
        raise ValueError(
            f"fpir {max(fpirs):g} asks for the {most}. of "
            f"{len(probe) * (len(gallery) - 1)} scores with others"
        )
    found = _search(gallery, gallery_id, probe, probe_id, keep=most)
    tpir = np.array([np.mean(found.mate > found.others[k - 1]) for k in wanted])
    hits = np.array([np.count_nonzero(found.rank <= k) for k in ks])
    return _open_set_metrics(fpirs, tpir, ks, hits, galleries, probe)


class _Found(NamedTuple):
    """Best score of the mate (-inf: none) and of others [P], rank, largest others."""

    mate: np.ndarray
    best_other: np.ndarray
    rank: np.ndarray
    others: np.ndarray


def _search(gallery, gallery_id, probe, probe_id, *, block=1024, keep=0) -> _Found:
    """Scores of all probes; `keep` of the largest with others, falling."""
    if not (len(gallery) and len(probe)):
        raise ValueError(f"found {len(gallery)} gallery rows and {len(probe)} probes")
    gallery, probe = unit_rows(gallery, "gallery"), unit_rows(probe, "probe")
    mate, best_other = np.empty(len(probe)), np.empty(len(probe))
    rank, others = np.empty(len(probe), np.int64), np.empty(0)
    block = max(1, min(block, _SCORES // len(gallery)))
    for start in range(0, len(probe), block):
        part = slice(start, start + block)
        cos = probe[part] @ gallery.T  # [block, G]
        is_mate = probe_id[part, None] == gallery_id[None, :]
        mate[part] = best = _mate_scores(cos, is_mate)
        cos[is_mate] = -np.inf
        best_other[part] = cos.max(axis=1)
        rank[part] = 1 + np.count_nonzero(cos >= best[:, None], axis=1)
        if keep:
            others = _largest(others, cos, keep)
        del cos, is_mate  # before the next ones are made
    return _Found(mate, best_other, rank, others)


def _mate_scores(cos, is_mate: Bool[np.ndarray, "b G"]) -> Float[np.ndarray, " b"]:
    row, column = np.nonzero(is_mate)
    best = np.full(len(cos), -np.inf)
    np.maximum.at(best, row, cos[row, column])
    return best


def _largest(known, cos, keep: int) -> Float[np.ndarray, " keep"]:
    """The `keep` largest of both, falling; fewer while there are fewer."""
    if len(known) == keep:
        new = cos[cos > known[-1]]
    else:
        new = cos[np.isfinite(cos)]
    joined = np.concatenate([known, new])
    if len(joined) > keep:
        joined = np.partition(joined, len(joined) - keep)[-keep:]
    return np.sort(joined)[::-1]


def _open_set_metrics(fpirs, tpir, ks, hits, galleries, probe) -> dict[str, float]:
    metrics = {
        f"tpir@fpir={far_label(fpir)}": float(rate)
        for fpir, rate in zip(fpirs, tpir, strict=True)
    }
    for k, count in zip(ks, hits, strict=True):
        metrics[f"rank{k}"] = float(count / len(probe))
    size = sum(len(vectors) for vectors, _ in galleries)
    return metrics | {"probes": float(len(probe)), "gallery_size": float(size)}


def _check_mated(gallery_id, probe_id) -> None:
    if not (len(gallery_id) and len(probe_id)):
        raise ValueError(
            f"found {len(gallery_id)} gallery rows and {len(probe_id)} probes"
        )
    lonely = np.count_nonzero(~np.isin(probe_id, gallery_id))
    if lonely:
        raise ValueError(
            f"{lonely} of {len(probe_id)} probes have no mate in the gallery"
        )


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"ks is {tuple(ks)}, expected ranks from 1")


def _check_fpirs(fpirs: Sequence[float]) -> None:
    if not all(0 < fpir <= 1 for fpir in fpirs):
        raise ValueError(f"fpirs is {tuple(fpirs)}, expected rates in (0, 1]")
