"""What an evaluation leaves in a folder: results.json, scores.npz, tables, report."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax import workdir
from hyperface_jax.evaluation import protocols
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.reporting import report, tables

log = logging.getLogger(__name__)


def write_outputs(
    folder: epath.Path,
    results: Sequence[ProtocolResult],
    *,
    title: str,
    model: str,
    summary: Mapping[str, str],
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
    training: list[dict[str, Any]] | None = None,
    margin: str | None = None,
    margin_value: float | None = None,
    pictures: bool = True,
    embedding: Mapping[str, Any] | None = None,
) -> None:
    """Writes results, each file whole or absent, and logs the metrics.

    Args:
      folder: exists.
      results: of the protocols.
      title: of the report.
      model: name of the row in the tables.
      summary: facts for its head.
      step: of the checkpoint; None for embeddings from elsewhere.
      config: resolved; None leaves it out.
      training: rows of metrics.jsonl.
      margin: loss whose curves are drawn, or None.
      margin_value: its m.
      pictures: show the hardest pairs.
      embedding: `Embedder.facts`; None for embeddings from elsewhere.
    """
    versions = workdir.versions()
    metrics = protocols.flat_metrics(results)
    workdir.write_json(
        folder / workdir.RESULTS,
        ({} if step is None else {"step": step})
        | {
            "metrics": metrics,
            "protocols": [result.to_json() for result in results],
            "summary": summary,
            "embedding": dict(embedding or {}),
            "versions": versions,
        },
    )
    _write_scores(folder, results)
    workdir.write_text(folder / workdir.TABLE_MD, tables.markdown(results, model))
    workdir.write_text(folder / workdir.TABLE_TEX, tables.latex(results, model))
    report.write_report(
        folder / workdir.REPORT,
        title=title,
        model=model,
        config=config or {},
        versions=versions,
        training=training or [],
        results=list(results),
        margin=margin,
        margin_value=margin_value,
        summary=summary,
        pictures=pictures,
    )
    for key, value in metrics.items():
        log.info("%s = %.4f", key, value)
    log.info("report: %s", folder / workdir.REPORT)


def _write_scores(folder: epath.Path, results: Sequence[ProtocolResult]) -> None:
    arrays = {}
    for result in results:
        if len(result.scores):
            arrays[f"{result.key}/scores"] = np.asarray(result.scores, np.float32)
            arrays[f"{result.key}/is_genuine"] = result.is_genuine
    with workdir.whole_file(folder / workdir.SCORES, "wb") as file:
        np.savez_compressed(file, **arrays)
