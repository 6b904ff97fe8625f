"""Identification (1:N) in a closed set: rank-k.

Every probe has a mate in the gallery; the question is how far up the list. The
open-set 1:N protocols of IJB are not here. Letters: G gallery, P probes, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.verification import unit_rows


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
    point scores 0 and not 1. Memory is O(block · G).

    Raises:
      ValueError: NaN, no gallery or probe, or a probe without a mate.
    """
    gallery_id, probe_id = np.asarray(gallery_id), np.asarray(probe_id)
    if not (len(gallery) and len(probe)):
        raise ValueError(f"found {len(gallery)} gallery rows and {len(probe)} probes")
    lonely = np.count_nonzero(~np.isin(probe_id, gallery_id))
    if lonely:
        raise ValueError(f"{lonely} of {len(probe)} probes have no mate in the gallery")
    gallery, probe = unit_rows(gallery, "gallery"), unit_rows(probe, "probe")
    ranks = np.empty(len(probe), np.int64)
    for start in range(0, len(probe), block):
        part = slice(start, start + block)
        cos = probe[part] @ gallery.T  # [block, G]
        is_mate = probe_id[part, None] == gallery_id[None, :]
        best = np.where(is_mate, cos, -np.inf).max(axis=1, keepdims=True)
        ranks[part] = 1 + np.count_nonzero(~is_mate & (cos >= best), axis=1)
    return ranks


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
    if any(k < 1 for k in ks):
        raise ValueError(f"ks is {tuple(ks)}, expected ranks from 1")
    ranks = mate_ranks(gallery, gallery_id, probe, probe_id)
    shares = {f"rank{k}": float(np.mean(ranks <= k)) for k in ks if k < len(gallery)}
    return shares | {"probes": float(len(probe)), "gallery_size": float(len(gallery))}
