"""Runs the protocols that a config names; writes results, scores and report."""

import logging
from typing import Any

import jax
import numpy as np
from etils import epath

from hyperface_jax import (
    classifier,
    metric_writer,
    report,
    workdir,
)
from hyperface_jax import (
    config as config_lib,
)
from hyperface_jax.checkpoint import Checkpoints
from hyperface_jax.evaluation import protocols
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.experiment import Experiment, create_experiment
from hyperface_jax.train_state import TrainState

log = logging.getLogger(__name__)


def evaluate_state(
    run: Experiment, state: TrainState, *, hardest: int
) -> list[ProtocolResult]:
    """Runs the config's protocols with the weights of a state."""
    c = run.config
    weights, batch_stats = state.evaluation_weights(c.eval.use_ema)

    def embed(images: jax.Array) -> jax.Array:
        return run.embed(weights, batch_stats, images)

    embedded = [
        protocols.embed_evaluation_set(
            test,
            embed,
            image_size=c.data.image_size,
            batch_size=c.eval.batch_size,
            threads=c.data.threads,
            mesh=run.mesh,
        )
        for test in run.evaluation_sets
    ]
    return protocols.run_protocols(
        embedded, c.eval.protocols, hardest=hardest, image_size=c.data.image_size
    )


def evaluate_and_report(
    run: Experiment, state: TrainState, folder: epath.Path, *, best_step: int | None
) -> list[ProtocolResult]:
    """Evaluates and writes results.json, scores.npz and report.html to a workdir."""
    c = run.config
    hardest = c.report.hardest if c.report.pictures else 0
    results = evaluate_state(run, state, hardest=hardest)
    summary = _summary(run, state, best_step)
    workdir.write_json(
        folder / workdir.RESULTS,
        {
            "step": int(state.step),
            "metrics": protocols.flat_metrics(results),
            "protocols": [result.to_json() for result in results],
            "summary": summary,
            "versions": workdir.versions(),
        },
    )
    _write_scores(folder, results)
    has_margin = c.head.loss != classifier.PLAIN_SOFTMAX
    report.write_report(
        folder / workdir.REPORT,
        title=f"{c.head.loss} on {c.data.name}",
        config=c.to_dict(),
        versions=workdir.versions(),
        training=metric_writer.read_metrics(folder),
        results=results,
        margin=c.head.loss if has_margin else None,
        margin_value=float(run.margin(state.step)) if has_margin else None,
        summary=summary,
        pictures=c.report.pictures,
    )
    for key, value in protocols.flat_metrics(results).items():
        log.info("%s = %.4f", key, value)
    log.info("report: %s", folder / workdir.REPORT)
    return results


def evaluate_workdir(config: Any | None, path: epath.PathLike) -> list[ProtocolResult]:
    """Evaluates the newest checkpoint of a workdir and writes its report anew.

    Args:
      config: takes the keys that do not change the mathematics (evaluation, report,
        paths) from here, or None to repeat those of the run.
      path: the workdir.
    """
    folder = workdir.absolute(path)
    saved = config_lib.load(folder / workdir.CONFIG)
    run = create_experiment(saved if config is None else config)
    if config is not None:
        config_lib.check_resumable(saved, run.config)
    with Checkpoints(
        folder,
        keep_last=run.config.log.keep_last,
        best_metric=run.config.log.best_metric,
    ) as checkpoints:
        state = checkpoints.restore(run.create_state())
        best_step = checkpoints.best_step
    return evaluate_and_report(run, state, folder, best_step=best_step)


def _summary(
    run: Experiment, state: TrainState, best_step: int | None
) -> dict[str, str]:
    c = run.config
    weights, _ = state.evaluation_weights(c.eval.use_ema)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    facts = {
        "Training set": f"{run.train_set.name}: {run.train_set.num_classes} people, "
        f"{len(run.train_set)} images",
        "Backbone": f"{c.backbone.name}, width {c.backbone.width}, "
        f"{parameters / 1e6:.2f} M parameters, {c.backbone.embedding_dim}-D",
        "Loss": f"{c.head.loss}, {c.head.norm}, m = {float(run.margin(state.step)):g}"
        + ("" if c.head.norm == "nfn" else f", s = {c.head.scale:g}"),
        "Steps": f"{int(state.step)} of {c.train.batch_size} images",
        "Weights evaluated": "moving average"
        if c.eval.use_ema and state.ema
        else "last step",
    }
    if best_step is not None:
        facts["Best checkpoint"] = f"step {best_step} by {c.log.best_metric}"
    return facts


def _write_scores(folder: epath.Path, results: list[ProtocolResult]) -> None:
    arrays = {}
    for result in results:
        if len(result.scores):
            arrays[f"{result.key}/scores"] = np.asarray(result.scores, np.float32)
            arrays[f"{result.key}/is_genuine"] = result.is_genuine
    temporary = folder / f"{workdir.SCORES}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(folder / workdir.SCORES)
