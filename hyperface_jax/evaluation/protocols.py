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
    "error_versus_discard": image_protocols.discard_by_length,
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

    One that fails takes nothing from the others: its result says why
    (`ProtocolResult.failed`), and `raise_failed` is for when they are written.

    Args:
      sets: from `Embedder.embed`, or `embedded.from_stored`.
      names: of `PROTOCOLS`.
      hardest: genuine and impostor pairs to keep as pictures; 0 for none.
      image_size: of these pictures.

    Raises:
      ValueError: all that there was to measure failed; the first reason.
    """
    results: list[ProtocolResult] = []
    for embedded in sets:
        found = _measure(embedded, names, hardest, image_size)
        results += [dataclasses.replace(r, test_set=embedded.data.name) for r in found]
        for result in found:
            if result.failed:
                log.error("%s", result.failed)
        if not found:
            log.warning(
                "%s: it offers none of the protocols %s; nothing is measured",
                embedded.data.name,
                ", ".join(names) or "(none)",
            )
    if results and all(result.failed for result in results):
        raise_failed(results)
    if "combined" in names:
        results += combine(results)
    return results


def _measure(
    embedded: Embedded, names: Sequence[str], hardest: int, image_size: int
) -> list[ProtocolResult]:
    """Results of one set, without its name."""
    results, set_name = [], embedded.data.name
    try:
        _report_unreadable(embedded)
    except ValueError as error:
        return [result_of("all protocols", {}, failed=str(error))]
    _report_unused(embedded)
    for name in names:
        try:
            result = PROTOCOLS[name](embedded)
        except ValueError as error:
            why = f"{set_name}, {name}: {error}"
            results.append(result_of(name, {}, failed=why))
            continue
        if result is None:
            continue
        if embedded.unreadable:
            result.counts["unreadable_images"] = len(embedded.unreadable)
        if hardest and len(result.scores):
            result = with_pictures(result, embedded, hardest, image_size)
        results.append(result)
    return results


def raise_failed(results: Sequence[ProtocolResult]) -> None:
    """To be called when what could be measured is written.

    Raises:
      ValueError: why the first failed, and how many did.
    """
    failed = [result.failed for result in results if result.failed]
    if failed:
        more = f" ({len(failed)} of {len(results)} protocols failed)"
        raise ValueError(failed[0] + (more if len(results) > 1 else ""))


def _report_unused(embedded: Embedded) -> None:
    """Says what was asked for that the templates of a set have no use for."""
    options = embedded.options
    given = {
        "groups": bool(options.groups),
        "distractors": options.distractors is not None,
    }
    if embedded.data.templates is not None and any(given.values()):
        names = " and ".join(name for name, there in given.items() if there)
        what = "%s: its protocols compare templates, %s are for images: not used"
        log.warning(what, embedded.data.name, names)


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
    parts = [r for r in results if r.name == "verification" and not r.failed]
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
