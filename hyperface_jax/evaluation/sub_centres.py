"""The cleaning step of sub-center ArcFace: who is far from the class's main centre.

After training with K centres a class, clean images gather at one of them, and wrong or
hard ones at the others. Deng et al., ECCV 2020; InsightFace, subcenter_arcface/drop.py.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hyperface_jax.evaluation.centres import BLOCK
from hyperface_jax.evaluation.similarity import unit_rows

DEGREES = 75.0


class FarImages(NamedTuple):
    """Images to drop, farthest first.

    Attributes:
      rows: [n], of the embeddings.
      cosines: [n], with the dominant centre of their class.
      judged: images that have an embedding and a class.
    """

    rows: Int[np.ndarray, " n"]
    cosines: Float[np.ndarray, " n"]
    judged: int


def check(centres: np.ndarray) -> np.ndarray:
    """The same centres.

    Raises:
      ValueError: they are [C, D]: there are no sub-centres to clean with.
    """
    if centres.ndim != 3:
        raise ValueError(
            f"class vectors are {list(centres.shape)}, expected [C, K, D] of a run "
            "with head.loss = subcenter_arcface"
        )
    return centres


def far_from_dominant(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    centres: Float[np.ndarray, "C ..."],
    *,
    degrees: float = DEGREES,
) -> FarImages:
    """Images more than an angle away from the dominant centre of their class.

    Dominant is the centre that most of the class's images are nearest to.

    Args:
      embeddings: [N, D]; a row of 0 is not judged.
      labels: [N], class of each, -1 for none.
      centres: [C, K, D].
      degrees: largest angle that stays (official: 75).

    Raises:
      ValueError: the centres are [C, D]: there are no sub-centres to clean with.
    """
    check(centres)
    known = np.flatnonzero((labels >= 0) & embeddings.any(axis=1))
    flat = unit_rows(centres.reshape(-1, centres.shape[-1]), "sub-centres")
    own = flat.reshape(centres.shape)
    cosines = np.empty((len(known), centres.shape[1]))
    for start in range(0, len(known), BLOCK):
        rows = known[start : start + BLOCK]
        unit = unit_rows(embeddings[rows], "embeddings")
        cosines[start : start + BLOCK] = np.einsum(
            "nd,nkd->nk", unit, own[labels[rows]]
        )
    votes = np.zeros(centres.shape[:2], np.int64)
    np.add.at(votes, (labels[known], cosines.argmax(axis=1)), 1)
    dominant = votes.argmax(axis=1)[labels[known]]
    with_dominant = cosines[np.arange(len(known)), dominant]
    far = np.flatnonzero(with_dominant < np.cos(np.deg2rad(degrees)))
    far = far[np.argsort(with_dominant[far], kind="stable")]
    return FarImages(known[far], with_dominant[far], len(known))
