"""Protocols on templates, IJB-B and IJB-C: images -> media -> templates -> 1:1, 1:N."""

import numpy as np

from hyperface_jax.evaluation import identification, similarity, verification
from hyperface_jax.evaluation.embedded import Embedded
from hyperface_jax.evaluation.ijb import Enrolment
from hyperface_jax.evaluation.results import ProtocolResult, result_of
from hyperface_jax.evaluation.templates import Templates, pool_templates

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def _pooled(e: Embedded) -> Templates:
    meta, pooling = e.data.templates, e.options.pooling
    if e.summed and not pooling.flip:
        raise ValueError(
            f"{pooling} is of images without their mirror images, but the embeddings "
            "are the sum of both: expected ...F1"
        )
    if e.summed:  # as F1 has them
        pooling = pooling._replace(flip=False)
    rows = e.position[e.data.faces.rows]
    # As a rule the store has the images in the protocol's order: no copy then.
    ordered = len(rows) == len(e.views) and (rows == np.arange(len(rows))).all()
    views = e.views if ordered else e.views[rows]
    return pool_templates(
        views,
        meta.template_id,
        meta.media_id,
        meta.detector_score,
        pooling,
    )


def verify_templates(e: Embedded) -> ProtocolResult | None:
    """1:1 of templates; TAR at FAR 1e-6 to 1e-1, strict and as InsightFace reads it."""
    meta = e.data.templates
    if meta is None or not len(meta.first):
        return None
    scores = similarity.pair_scores(_pooled(e).vectors, meta.first, meta.second)
    metrics = verification.verify(scores, meta.is_genuine, fars=FARS, nearest=True)
    return result_of(
        "templates_verification",
        metrics,
        scores=scores,
        is_genuine=meta.is_genuine,
        note=f"{e.options.pooling} (N norm kept, D detector score, F mirror image)",
    )


def identify_templates(e: Embedded) -> ProtocolResult | None:
    """1:N of templates, by both published algorithms: `nist_...` and `pairs_...`.

    `pairs` has no rule for a probe without a mate: it is left out where there is one.
    """
    meta = e.data.templates
    if meta is None or meta.probes is None or not meta.galleries:
        return None
    templates = _pooled(e)

    def vectors(enrolled: Enrolment) -> tuple[np.ndarray, np.ndarray]:
        return templates.vectors[enrolled.template], enrolled.subject

    galleries = [vectors(gallery) for gallery in meta.galleries]
    probe, subject = vectors(meta.probes)
    algorithms = {
        "nist": identification.tpir_at_fpir_nist,
        "pairs": identification.tpir_at_fpir_pairs,
    }
    note = (
        f"{e.options.pooling}; nist: galleries apart, probes without a mate are "
        "impostors (ijb_evals); pairs: one gallery, all scores of others (ijb_1n)"
    )
    enrolled = np.concatenate([identity for _, identity in galleries])
    if strangers := np.count_nonzero(~np.isin(subject, enrolled)):
        del algorithms["pairs"]
        note += f"; pairs left out, {strangers} probes are in neither gallery"
    metrics: dict[str, float] = {}
    for name, algorithm in algorithms.items():
        for key, value in algorithm(galleries, probe, subject).items():
            count = key in ("probes", "gallery_size")
            metrics[key if count else f"{name}_{key}"] = value
    return result_of("templates_identification", metrics, note=note)
