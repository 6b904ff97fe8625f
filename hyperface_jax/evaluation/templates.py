"""Image features -> one vector a template, the unit of comparison of IJB.

A template is a set of images of one person; images of one medium (a video, or a still
alone) count together as one. The vector of a template is the sum over its media of the
mean over the medium's images, scaled to length 1 (InsightFace's and all IJB code).

Letters: N images, V views (1: original; 2: original, mirrored), D dimensions,
T templates.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Pooling(NamedTuple):
    """What an image contributes; peers write it N1D1F1.

    Published numbers differ in these switches: InsightFace reports N1D1F1, AdaFace
    N1D0F1, TFace N0D0F0. InsightFace's ijb_evals.py has N the wrong way round: its N0
    is N1 here and in its own ijb_11.py.

    Attributes:
      keep_norm: N. Keep the length of the image feature; else scale it to 1.
      detector_score: D. Multiply by the face detector's score.
      flip: F. Add the feature of the mirror image, before N and D.
    """

    keep_norm: bool = True
    detector_score: bool = True
    flip: bool = True

    def __str__(self) -> str:
        return f"N{self.keep_norm:d}D{self.detector_score:d}F{self.flip:d}"


INSIGHTFACE = Pooling()
"""N1D1F1."""


def parse_pooling(text: str) -> Pooling:
    """Inverse of `str(pooling)`.

    Raises:
      ValueError: not of the form N1D1F1.
    """
    found = re.fullmatch("N([01])D([01])F([01])", text)
    if not found:
        raise ValueError(f"eval.pooling is {text!r}, expected N, D, F with 0 or 1 each")
    return Pooling(*(digit == "1" for digit in found.groups()))


class Templates(NamedTuple):
    """Result of `pool_templates`.

    Attributes:
      vectors: unit length, or zero [T, D].
      ids: template of each row, rising [T].
    """

    vectors: Float[np.ndarray, "T D"]
    ids: Int[np.ndarray, " T"]


def pool_templates(
    features: Float[np.ndarray, "N V D"],
    template_id: Int[np.ndarray, " N"],
    media_id: Int[np.ndarray, " N"],
    detector_score: Float[np.ndarray, " N"] | None = None,
    pooling: Pooling = INSIGHTFACE,
    *,
    block: int = 8192,
) -> Templates:
    """Pools images by media, then media by template.

    The order of InsightFace: add the views (F), scale to length 1 (not N), multiply by
    the detector's score (D), mean over the images of a medium, sum over the media of a
    template, scale to length 1. A zero feature or sum stays zero.

    Sums are float32 within a block of rows and float64 between blocks. The features
    are read once, in order, a block at a time, so they may be a memory map; memory is
    O(T · D + block · D).

    Args:
      features: not normalised [N, V, D].
      template_id: of each image [N], in any order.
      media_id: of each image [N]; the same number in two templates is two media.
      detector_score: of each image [N]; needed for D1 only.
      pooling: the switches.
      block: rows read at a time.

    Raises:
      ValueError: lengths that differ, NaN or infinity, F1 with one view, or D1 without
        detector scores.
    """
    _check(features, template_id, media_id, detector_score, pooling)
    ids, row = np.unique(template_id, return_inverse=True)
    weight = 1 / _media_sizes(row, media_id)
    if pooling.detector_score:
        assert detector_score is not None
        weight *= detector_score
    total = np.zeros((len(ids), features.shape[2]))
    for start in range(0, len(features), block):
        part = slice(start, start + block)
        images = _image_features(features[part], weight[part], pooling)
        here = row[part]
        if (here[1:] < here[:-1]).any():
            order = np.argsort(here, kind="stable")
            images, here = images[order], here[order]
        first = np.flatnonzero(np.append(True, here[1:] != here[:-1]))
        total[here[first]] += np.add.reduceat(images, first, axis=0)
    bad = np.count_nonzero(~np.isfinite(total).all(axis=1))
    if bad:
        raise ValueError(
            f"features or detector_score hold NaN or infinity in images of {bad} of "
            f"{len(ids)} templates"
        )
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    total /= np.where(norm == 0, 1, norm)
    return Templates(total.astype(np.float32), ids)


def _image_features(
    views: Float[np.ndarray, "b V D"], weight: Float[np.ndarray, " b"], pooling: Pooling
) -> Float[np.ndarray, "b D"]:
    """Views added, and all factors of an image applied at once, in float32."""
    images = views[:, 0].astype(np.float32)
    if pooling.flip:
        images += views[:, 1]
    if not pooling.keep_norm:
        norm = np.linalg.norm(images, axis=1)
        weight = weight / np.where(norm == 0, 1, norm)
    with np.errstate(invalid="ignore"):  # infinity times 0; the caller reports it
        images *= weight[:, None].astype(np.float32)
    return images


def _media_sizes(
    row: Int[np.ndarray, " N"], media_id: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Images in the medium of each image."""
    order = np.lexsort((media_id, row))
    template, media = row[order], media_id[order]
    new = (template[1:] != template[:-1]) | (media[1:] != media[:-1])
    first = np.flatnonzero(np.append(True, new))
    sizes = np.diff(np.append(first, len(row)))
    result = np.empty(len(row), np.int64)
    result[order] = np.repeat(sizes, sizes)
    return result


def _check(features, template_id, media_id, detector_score, pooling: Pooling) -> None:
    images, views, _ = features.shape
    found = {"template_id": template_id, "media_id": media_id}
    if detector_score is not None:
        found["detector_score"] = detector_score
    elif pooling.detector_score:
        raise ValueError(f"{pooling} needs detector_score, found None")
    for name, values in found.items():
        if len(values) != images:
            raise ValueError(f"{name} has {len(values)} entries for {images} images")
    if views != 1 and views != 2:
        raise ValueError(f"features has {views} views, expected 1 or 2")
    if pooling.flip and views == 1:
        raise ValueError(f"{pooling} needs 2 views, the features have 1")
    if not images:
        raise ValueError("features has 0 images, expected at least 1")
