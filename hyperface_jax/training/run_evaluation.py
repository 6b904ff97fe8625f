"""Evaluates the network of a run: while training, at its end, and later."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from hyperface_jax import catalogue, hosts, model, model_card, workdir
from hyperface_jax import config as config_lib
from hyperface_jax.evaluation import embedding_files, protocols
from hyperface_jax.evaluation.embedded import Options
from hyperface_jax.evaluation.embedder import Embedder
from hyperface_jax.evaluation.groups import read_groups
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.evaluation.templates import parse_pooling
from hyperface_jax.reporting import outputs
from hyperface_jax.training import initial, metric_writer
from hyperface_jax.training.checkpoint import Checkpoints
from hyperface_jax.training.experiment import Experiment, create_experiment
from hyperface_jax.training.train_state import TrainState


def evaluate_state(
    run: Experiment, state: TrainState, *, hardest: int, final: bool = False
) -> list[ProtocolResult]:
    """Runs the config's protocols with the weights of a state.

    Args:
      run: the experiment.
      state: the weights.
      hardest: pairs of each kind to keep as pictures.
      final: also confidence intervals, which take a while.
    """
    c = run.config
    options = _options_of(c, bootstrap=c.eval.bootstrap if final else 0)
    embedder = embedder_of(run, state)
    embedded = [embedder.embed(test, options) for test in run.evaluation_sets]
    return protocols.run_protocols(
        embedded, c.eval.protocols, hardest=hardest, image_size=c.data.image_size
    )


def check_options(config: config_lib.Config) -> None:
    """Reads the files that an evaluation needs: not after days of training.

    Raises:
      ValueError: one cannot be read, or the distractors say which network made them:
        training makes another.
    """
    crowd = _options_of(config, bootstrap=0).distractors
    if crowd is not None and crowd.network:
        raise ValueError(
            f"eval.distractors {config.eval.distractors}: made by network "
            f"{crowd.network}, which training will not be; give them to `evaluate` "
            "afterwards"
        )


def _options_of(config: config_lib.Config, *, bootstrap: int) -> Options:
    e = config.eval
    return make_options(
        pooling=e.pooling,
        bootstrap=bootstrap,
        groups=e.groups,
        group_fmr=e.group_fmr,
        distractors=e.distractors,
    )


def make_options(
    *, pooling: str, bootstrap: int, groups: str, group_fmr: float, distractors: str
) -> Options:
    """Options from plain values; reads the files that are named.

    Raises:
      ValueError: a value out of range, or a file that cannot be read.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap is {bootstrap}, expected draws, or 0 for none")
    if not 0 < group_fmr < 1:
        raise ValueError(f"group_fmr is {group_fmr:g}, expected 0 < value < 1")
    crowd = embedding_files.open_embeddings(distractors) if distractors else None
    return Options(
        pooling=parse_pooling(pooling),
        bootstrap=bootstrap,
        groups=read_groups(groups) if groups else {},
        group_fmr=group_fmr,
        distractors=crowd,
    )


def embedder_of(run: Experiment, state: TrainState) -> Embedder:
    """The network of a run with the weights of a state, as its config says."""
    c = run.config
    weights, batch_stats = state.evaluation_weights(c.eval.use_ema)
    network = {key: c.backbone[key] for key in model.NETWORK}
    return Embedder(
        views=lambda images: run.embed(weights, batch_stats, images),
        flip=c.eval.flip,
        jitter=c.eval.jitter,
        dimension=c.backbone.embedding_dim,
        fingerprint=lambda: model.fingerprint(
            network, c.data.image_size, weights, batch_stats
        ),
        image_size=c.data.image_size,
        batch_size=c.eval.batch_size,
        threads=c.data.threads,
        mesh=run.mesh,
    )


def evaluate_and_report(
    run: Experiment, state: TrainState, folder: epath.Path, *, best_step: int | None
) -> list[ProtocolResult]:
    """Evaluates and writes results, tables and report to a workdir."""
    hardest = run.config.report.hardest if run.config.report.pictures else 0
    results = evaluate_state(run, state, hardest=hardest, final=True)
    report_run(run, state, folder, results, best_step=best_step)
    if hosts.is_first() and (folder / workdir.CONFIG).exists():
        facts = workdir.read_json(folder / workdir.CONFIG)
        weights = embedder_of(run, state).fingerprint()
        card = model_card.of_run(folder, facts, int(state.step), weights)
        model_card.write(folder, card)
    hosts.barrier("the report is written")  # or the end of a host would end the first
    protocols.raise_failed(results)
    return results


def report_run(
    run: Experiment,
    state: TrainState,
    folder: epath.Path,
    results: list[ProtocolResult],
    *,
    best_step: int | None,
) -> None:
    """Writes the outputs of a run's evaluation; host 0 does."""
    if not hosts.is_first():
        return
    c = run.config
    has_margin = c.head.loss != catalogue.PLAIN_SOFTMAX
    training = metric_writer.read_metrics(folder)
    outputs.write_outputs(
        folder,
        results,
        title=f"{c.head.loss} on {run.train_set.name}",
        model=f"{c.head.loss}, {c.head.norm}, {c.backbone.name}",
        summary=_summary(run, state, best_step, training),
        step=int(state.step),
        config=c.to_dict(),
        training=training,
        margin=c.head.loss if has_margin else None,
        margin_value=float(run.margin(state.step)) if has_margin else None,
        pictures=c.report.pictures,
        embedding=embedder_of(run, state).facts,
    )


def open_workdir(
    config: Any | None, path: epath.PathLike, *, checkpoint: str = ""
) -> tuple[Experiment, TrainState, epath.Path, int | None]:
    """Experiment, newest state, folder and best step of a workdir.

    Args:
      config: takes the keys that do not change the mathematics (evaluation, report,
        paths) from here, or None to repeat those of the run.
      path: the workdir.
      checkpoint: "last" or "best"; "" takes the config's `eval.checkpoint`.
    """
    folder = workdir.absolute(path)
    if not (folder / workdir.CONFIG).exists():
        raise ValueError(
            f"--workdir {folder}: no {workdir.CONFIG}, expected the folder of a run"
        )
    saved = config_lib.load(folder / workdir.CONFIG)
    run = create_experiment(
        saved if config is None else initial.begin(config, saved)[0]
    )
    if config is not None:
        config_lib.check_resumable(saved, run.config)
    with Checkpoints(
        folder,
        keep_last=run.config.log.keep_last,
        best_metric=run.config.log.best_metric,
        clean=False,  # the run may still be training
    ) as checkpoints:
        best_step = checkpoints.best_step
        step = None
        if (checkpoint or run.config.eval.checkpoint) == "best":
            if best_step is None:
                key = "--checkpoint" if checkpoint else "eval.checkpoint"
                raise ValueError(
                    f"{key} is 'best', but no checkpoint in {folder} has the "
                    f"key log.best_metric = {run.config.log.best_metric!r}"
                )
            step = best_step
        state = checkpoints.restore(run.create_state(), step)
    return run, state, folder, best_step


def evaluate_workdir(config: Any | None, path: epath.PathLike) -> list[ProtocolResult]:
    """Evaluates a checkpoint (`eval.checkpoint`) and writes the report anew."""
    if workdir.absolute(path).is_dir():
        workdir.create(path)  # says now, and not afterwards, that it is read-only
    run, state, folder, best_step = open_workdir(config, path)
    return evaluate_and_report(run, state, folder, best_step=best_step)


def _summary(
    run: Experiment,
    state: TrainState,
    best_step: int | None,
    training: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    c = run.config
    today = datetime.datetime.now(datetime.UTC)
    weights, _ = state.evaluation_weights(c.eval.use_ema)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    facts = {
        "Training set": f"{run.train_set.name}: {run.train_set.num_classes} people, "
        f"{len(run.train_set)} images",
        "Backbone": f"{c.backbone.name}, width {c.backbone.width}, "
        f"{parameters / 1e6:.2f} M parameters, {c.backbone.embedding_dim}-D",
        "Loss": f"{c.head.loss}, {c.head.norm}, m = {float(run.margin(state.step)):g}"
        + ("" if c.head.norm == "nfn" else f", s = {c.head.scale:g}"),
        "Training": f"{int(state.step)} steps, {c.train.batch_size} images each",
        "Weights evaluated": "moving average"
        if c.eval.use_ema and state.ema
        else f"step {int(state.step)}",
    }
    if best_step is not None:
        facts["Best checkpoint"] = (
            f"step {best_step} by {c.log.best_metric}, chosen on this very test set"
        )
    if seconds := sum(row.get("seconds_training", 0) for row in training):
        facts["Training time"] = f"{seconds / 60:.1f} minutes"
    if bad := max((int(row.get("bad_records", 0)) for row in training), default=0):
        facts["Unreadable training images"] = f"{bad}, trained with weight 0"
    return facts | {"Evaluated": f"{today:%Y-%m-%d %H:%M} UTC"}
