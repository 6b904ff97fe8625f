"""The training loop: batch, step, log, validate, save. Nothing else."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hyperface_jax import config as config_lib
from hyperface_jax import hosts, model, sharding, workdir
from hyperface_jax.config import Config
from hyperface_jax.evaluation import protocols
from hyperface_jax.planning import plan
from hyperface_jax.training import initial, run_evaluation
from hyperface_jax.training.checkpoint import Checkpoints, has_checkpoint
from hyperface_jax.training.experiment import Experiment, create_experiment
from hyperface_jax.training.metric_writer import MetricWriter, create_metric_writer
from hyperface_jax.training.train_state import TrainState

log = logging.getLogger(__name__)

_EMPTY_BATCHES = 8  # in a row, of this host


class NonFiniteError(ValueError):
    """The loss or a gradient was not finite."""


@dataclasses.dataclass
class Clock:
    """Seconds since the last log line, by what they were spent on."""

    started: float = dataclasses.field(default_factory=time.monotonic)
    waiting: float = 0.0
    evaluating: float = 0.0
    steps: int = 0

    def report(self, batch_size: int) -> dict[str, float]:
        """Rates of the window; evaluation does not count as training."""
        training = max(time.monotonic() - self.started - self.evaluating, 1e-9)
        return {
            "images_per_second": self.steps * batch_size / training,
            "data_wait_share": self.waiting / training,
            "seconds_training": training,
            "seconds_evaluating": self.evaluating,
        }


def train_and_evaluate(config: Config, path: epath.PathLike) -> TrainState:
    """Trains, or resumes, in a workdir; evaluates; writes results and report.

    Args:
      config: see `config.default_config`.
      path: the workdir.

    Returns:
      The final state.
    """
    config_lib.validate(config)
    run_evaluation.check_options(config)
    folder = workdir.create(path)
    if (folder / model.DESCRIPTION).exists():
        raise ValueError(
            f"--workdir {folder}: holds a model, expected another folder (to start "
            "from it: --config.init_from)"
        )
    hosts.check_shared(folder)
    known = has_checkpoint(folder) and (folder / workdir.CONFIG).exists()
    saved = config_lib.load(folder / workdir.CONFIG) if known else None
    config, start = initial.begin(config, saved)
    run = create_experiment(config)
    plan.check_head(run)
    facts = _facts(run)
    hosts.check_agreement(config_lib.flatten(facts))
    with Checkpoints(
        folder,
        keep_last=run.config.log.keep_last,
        best_metric=run.config.log.best_metric,
    ) as checkpoints:
        hosts.check_agreement({"last checkpoint": checkpoints.latest_step})
        resuming = checkpoints.latest_step is not None
        if resuming and checkpoints.latest_step > run.config.train.steps:
            raise ValueError(
                f"train.steps is {run.config.train.steps}, but the run in {folder} is "
                f"at step {checkpoints.latest_step} already: it can only be made longer"
            )
        _claim(folder, facts, run.config, resuming)
        state = run.create_state()
        if config.init_from and not resuming:
            start = start or model.load(config.init_from)
            state = initial.put_into(state, start)
            if hosts.is_first():
                initial.remember(folder, run.config, start)
        if resuming:
            state = checkpoints.restore(state)
            done = int(state.step) >= run.config.train.steps
            log.info(
                "%s at step %d: %s",
                folder,
                int(state.step),
                "finished, evaluating again" if done else "resuming",
            )
        _describe(run, state)
        writer = create_metric_writer(
            folder,
            start_step=int(state.step),
            tensorboard=run.config.log.tensorboard,
        )
        try:
            state = train(run, state, checkpoints, writer)
        finally:
            writer.close()
        best_step = checkpoints.best_step
    run_evaluation.evaluate_and_report(run, state, folder, best_step=best_step)
    return state


def train(
    run: Experiment, state: TrainState, checkpoints: Checkpoints, writer: MetricWriter
) -> TrainState:
    """Steps from where the state is to the end of the run."""
    c = run.config
    start, stop = int(state.step), c.train.steps
    if start >= stop:
        return state
    reader = run.reader()
    batches = run.batches(reader, start)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    sums: Any = None
    clock, empty = Clock(), 0
    log.info("compiling the step; the first batches take a while")
    with (
        tqdm(
            total=stop, initial=start, unit="step", disable=not hosts.is_first()
        ) as bar,
        logging_redirect_tqdm(),
    ):
        for step in range(start + 1, stop + 1):
            waited = time.monotonic()
            batch = next(batches)
            clock.waiting += time.monotonic() - waited
            empty = 0 if batch["weight"].any() else empty + 1
            if empty >= min(_EMPTY_BATCHES, stop - start):
                raise _no_image(step, empty, reader.bad_records)
            state, metrics = run.step(state, sharding.put_batch(run.mesh, batch))
            clock.steps += 1
            # Sums stay on the device: between log lines the host never waits for it.
            sums = metrics if sums is None else add(sums, metrics)
            validation: dict[str, float] = {}
            if c.eval.every_steps and step % c.eval.every_steps == 0:
                validation = _validate(run, state, clock)
            saves = step % c.log.checkpoint_every_steps == 0 or step == stop
            if step % c.log.every_steps == 0 or saves or validation:
                _check_finite(state, checkpoints)
                # Six digits: a constant margin of float32(1.4) reads 1.4.
                row = {k: float(f"{v / clock.steps:.6g}") for k, v in sums.items()}
                row |= clock.report(c.train.batch_size) | validation
                bad = np.array(len(reader.bad_records))
                row["bad_records"] = float(hosts.gather(bad).sum())
                writer.write(step, row)
                bar.set_postfix_str(_postfix(row), refresh=False)
                bar.update(clock.steps)
                sums, clock = None, Clock()
            if saves:
                checkpoints.save(state, validation)
    return state


def _validate(run: Experiment, state: TrainState, clock: Clock) -> dict[str, float]:
    # The wait for steps still under way is training time, not evaluation.
    jax.block_until_ready(state.step)
    begun = time.monotonic()
    results = run_evaluation.evaluate_state(run, state, hardest=0)
    clock.evaluating += time.monotonic() - begun
    metrics = protocols.flat_metrics(results)
    best = run.config.log.best_metric
    if best and metrics and best not in metrics:
        log.warning(
            "log.best_metric is %s, which is not measured: no best checkpoint is "
            "kept. Expected one of %s",
            best,
            ", ".join(metrics),
        )
    headline = {k: v for k, v in metrics.items() if k == best} or metrics
    for key, value in list(headline.items())[:1]:
        log.info("step %d: %s = %.4f", int(state.step), key, value)
    return metrics


def _no_image(step: int, batches: int, bad_records: Mapping[int, str]) -> ValueError:
    """The source has gone: a small batch may be unlucky, but not so many."""
    what = f"step {step}: no image of {batches} batches in a row can be read"
    return ValueError(f"{what}, the first: {next(iter(bad_records.values()))}")


def _check_finite(state: TrainState, checkpoints: Checkpoints) -> None:
    failed = int(state.nonfinite_step)
    if failed < 0:
        return
    last = checkpoints.latest_step
    kept = (
        "there is no checkpoint" if last is None else f"step {last} is the last saved"
    )
    raise NonFiniteError(
        f"loss or gradient not finite at step {failed}; parameters were not updated; "
        f"{kept}. A lower learning rate, a warm-up or detach=cosine may help"
    )


def _facts(run: Experiment) -> dict[str, Any]:
    """What identifies a run; every host must have the same."""
    return {
        "config": run.config.to_dict(),
        "data": {
            "name": run.train_set.name,
            "fingerprint": run.train_set.fingerprint,
            "identities": run.train_set.num_classes,
            "images": len(run.train_set),
            "licence": run.train_set.licence,
        },
        "versions": workdir.versions(),
    }


def _claim(
    folder: epath.Path, facts: dict[str, Any], config: Config, resuming: bool
) -> None:
    """Writes config and versions; first checks them against a run to be resumed.

    Without a checkpoint there is nothing to contradict: a run that was stopped early
    because of a wrong word on the command line can be started anew.
    """
    path = folder / workdir.CONFIG
    if resuming and path.exists():
        saved = workdir.read_json(path)
        for line in config_lib.check_resumable(saved["config"], config):
            log.info("the run is extended: %s", line)
        if saved["data"]["fingerprint"] != facts["data"]["fingerprint"]:
            raise ValueError(
                f"the workdir holds a run on other data: {saved['data']}, expected "
                f"{facts['data']} (use another --workdir)"
            )
    hosts.barrier("all hosts have read the config of the workdir")
    if hosts.is_first():
        workdir.write_json(path, facts | {"commit": workdir.commit()})


def _describe(run: Experiment, state: TrainState) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params["backbone"]))
    c = run.config
    log.info(
        "%s: %d identities, %d images; %s, %.2f M parameters; %s, %s, m = %g, s = %s; "
        "%d steps of %d images on %s",
        run.train_set.name,
        run.train_set.num_classes,
        len(run.train_set),
        c.backbone.name,
        count / 1e6,
        c.head.loss,
        c.head.norm,
        c.head.margin,
        "none" if c.head.norm == "nfn" else c.head.scale,
        c.train.steps,
        c.train.batch_size,
        workdir.versions()["devices"],
    )


def _postfix(row: dict[str, float]) -> str:
    return (
        f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}, "
        f"target {row['target_angle']:.1f} deg, {row['images_per_second']:.0f} images/s"
    )
