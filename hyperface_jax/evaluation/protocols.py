"""The protocols by name, and how to run them on test sets."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np

from hyperface_jax.evaluation import image_protocols, template_protocols, verification
from hyperface_jax.evaluation.embedded import Embedded, needed_rows
from hyperface_jax.evaluation.pictures import with_pictures
from hyperface_jax.evaluation.results import ProtocolResult, result_of

log = logging.getLogger(__name__)

PROTOCOLS: dict[str, Callable[[Embedded], ProtocolResult | None]] = {
    "verification": image_protocols.verify_folds,
    "held_out_threshold": image_protocols.verify_held_out,
    "open_set": image_protocols.open_set_protocol,
    "identification": image_protocols.identify,
    "distractors": image_protocols.identify_among_distractors,
    "templates_verification": template_protocols.verify_templates,
    "templates_identification": template_protocols.identify_templates,
    "combined": lambda _: None,  # of all sets together, see `combine`
}


def run_protocols(
    sets: Sequence[Embedded],
    names: Sequence[str],
    *,
    hardest: int = 0,
    image_size: int = 112,
) -> list[ProtocolResult]:
    """Results of the named protocols; those that a set does not offer are left out.

    Args:
      sets: from `Embedder.embed`, or `embedded.from_stored`.
      names: of `PROTOCOLS`.
      hardest: genuine and impostor pairs to keep as pictures; 0 for none.
      image_size: of these pictures.

    Raises:
      ValueError: embeddings hold NaN, are not enough or all missing; with the set.
    """
    results = []
    for embedded in sets:
        _report_unreadable(embedded)
        before = len(results)
        for name in names:
            try:
                result = PROTOCOLS[name](embedded)
            except ValueError as error:
                raise ValueError(f"{embedded.data.name}, {name}: {error}") from None
            if result is None:
                continue
            if embedded.unreadable:
                result.counts["unreadable_images"] = len(embedded.unreadable)
            if hardest and len(result.scores):
                result = with_pictures(result, embedded, hardest, image_size)
            results.append(dataclasses.replace(result, test_set=embedded.data.name))
        if len(results) == before:
            log.warning(
                "%s: it offers none of the protocols %s; nothing is measured",
                embedded.data.name,
                ", ".join(names) or "(none)",
            )
    if "combined" in names:
        results += combine(results)
    return results


def _report_unreadable(embedded: Embedded) -> None:
    """Says how many images count as without a face; all of them are an error."""
    if not embedded.unreadable:
        return
    images, first = len(needed_rows(embedded.data)), min(embedded.unreadable)
    what = f"{embedded.data.name}: {len(embedded.unreadable)} of {images} images"
    what += f" have no embedding, the first: {embedded.unreadable[first]}"
    if len(embedded.unreadable) == images:
        raise ValueError(what)
    log.warning("%s", what)


def combine(results: Sequence[ProtocolResult]) -> list[ProtocolResult]:
    """All pairs of all sets with k-fold pairs in one ROC, as OpenSphere validates.

    One threshold for all sets: harder than the mean of the sets' accuracies.
    """
    parts = [r for r in results if r.name == "verification"]
    if len(parts) < 2:
        return []
    scores = np.concatenate([r.scores for r in parts])
    is_genuine = np.concatenate([r.is_genuine for r in parts])
    metrics = verification.verify(scores, is_genuine)
    note = "pairs of " + ", ".join(r.test_set for r in parts)
    result = result_of(
        "combined", metrics, scores=scores, is_genuine=is_genuine, note=note
    )
    return [dataclasses.replace(result, test_set="all")]


def flat_metrics(results: Sequence[ProtocolResult]) -> dict[str, float]:
    """{"test/verification/kfold_accuracy": value}, for logs and the best checkpoint."""
    return {
        f"{result.key}/{key}": value
        for result in results
        for key, value in result.metrics.items()
    }
