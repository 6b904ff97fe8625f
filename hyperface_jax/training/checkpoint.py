"""Checkpoints of the train state with Orbax: async, the last k and the best.

A thin seam: it turns Orbax's long tracebacks into one line that names the file.
"""

import textwrap
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from hyperface_jax import hosts
from hyperface_jax.training.train_state import TrainState

FOLDER = "checkpoints"


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Whether a checkpoint was begun in a workdir; makes no folder.

    On a bucket it may be incomplete: `Checkpoints.latest_step` knows.
    """
    folder = epath.Path(workdir) / FOLDER
    return folder.exists() and any(p.name.isdigit() for p in folder.iterdir())


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager."""

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep_last: int = 2,
        best_metric: str = "",
        clean: bool = True,
    ):
        """Opens them; `clean` removes what a killed run left half-written."""
        # Any: Orbax's policies do not match its own protocols.
        policies: Any = ocp.training.preservation_policies
        decisions: Any = ocp.training.save_decision_policies
        keep: list[Any] = [policies.LatestN(keep_last)]
        if best_metric:
            keep.append(
                policies.BestN(
                    n=1,
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._folder = epath.Path(workdir) / FOLDER
        self._best_metric = best_metric
        self._pending: Any = None  # Orbax's answer to the last save
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=clean,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            try:
                self._finish()
            finally:
                self._checkpointer.close()
        except Exception as error:
            if exc[0] is None:  # else it has been said already
                raise ValueError(_unwritten(self._folder, error)) from error

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint by the named metric, if any has it."""
        metrics = {
            c.step: c.metrics
            for c in self._checkpointer.checkpoints
            if isinstance(c.metrics, dict)
        }
        scored = [
            (values[self._best_metric], step)
            for step, values in metrics.items()
            if self._best_metric in values
        ]
        return max(scored)[1] if scored else None

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts writing the state; returns before it is on disk."""
        step = int(state.step)
        if step == self.latest_step:
            return
        score: Any = None
        if self._best_metric:
            value = metrics.get(self._best_metric, np.nan)
            # Of one host: which checkpoint is best must not hang on a last bit.
            value = float(hosts.gather(np.asarray(value, np.float32))[0])
            score = None if np.isnan(value) else {self._best_metric: value}
        try:
            self._finish()
            self._pending = self._checkpointer.save_async(
                step, as_tree(state), metrics=score
            )
        except Exception as error:  # of this one, or of the one before
            raise ValueError(_unwritten(self._folder, error)) from error

    def _finish(self) -> None:
        """Waits for the save before: an answer never asked for keeps thread and files.

        Three file descriptors a save end a run of 340 checkpoints (limit 1024).
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (default: the newest), placed like `template`.

        Raises:
          ValueError: there is none, its arrays are others than the template's, or its
            files are damaged; one line that names what was found and expected.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self._folder}")
        where = self._folder / str(step)
        wanted = as_tree(template)
        try:
            saved = self._checkpointer.metadata(step).metadata
        except Exception as error:  # Orbax raises a different type for every damage.
            raise ValueError(_damaged(where, error)) from error
        _check_same_arrays(where, saved, wanted)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            wanted,
        )
        try:
            restored = self._checkpointer.load(step, abstract)
        except Exception as error:
            raise ValueError(_damaged(where, error)) from error
        return _from_tree(template, restored)

    def restore_weights(
        self, step: int | None = None, *, use_ema: bool = True
    ) -> tuple[int, Any, Any]:
        """Backbone and statistics alone; nothing else of the checkpoint is read.

        Args:
          step: default: the newest.
          use_ema: the moving averages, where there are any.

        Returns:
          (step, params, batch_stats) on the first device.

        Raises:
          ValueError: there is no checkpoint, or it is damaged.
        """

        def of(saved: Any) -> Any:
            if use_ema and "ema" in saved:
                return {"ema": dict(saved["ema"])}
            stats = {k: saved[k] for k in ("batch_stats",) if k in saved}
            return {"params": {"backbone": saved["params"]["backbone"]}} | stats

        step, found = self._restore_part(step, of)
        weights = found.get("ema") or found["params"] | found
        return step, weights["backbone"], weights.get("batch_stats", {})

    def restore_prototypes(self, step: int | None = None) -> Any:
        """Class vectors alone [rows, D] or [rows, K, D], padding included."""

        def of(saved: Any) -> Any:
            return {"params": {"prototypes": saved["params"]["prototypes"]}}

        return self._restore_part(step, of)[1]["params"]["prototypes"]

    def _restore_part(self, step: int | None, of: Any) -> tuple[int, Any]:
        """The step, and the arrays that `of` picks from the tree of what is saved."""
        step = self.latest_step if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self._folder}")
        where = self._folder / str(step)
        try:
            wanted = of(self._checkpointer.metadata(step).metadata)
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                wanted,
                is_leaf=lambda x: hasattr(x, "shape"),
            )
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            with context:
                return step, self._checkpointer.load(step, abstract)
        except Exception as error:
            raise ValueError(_damaged(where, error)) from error


def as_tree(state: TrainState) -> dict[str, Any]:
    """The state as plain dicts of arrays, so that no class is needed to read it.

    The optimizer's state is a flat dict by path: Optax's nesting of empty tuples is
    its own affair and must not decide whether a checkpoint can be read.
    """
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    fields["opt_state"] = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _from_tree(template: TrainState, tree: dict[str, Any]) -> TrainState:
    """Inverse of `as_tree`; `template` gives the nesting of the optimizer's state."""
    structure = jax.tree.structure(template.opt_state)
    names = as_tree(template)["opt_state"]
    opt_state = structure.unflatten([tree["opt_state"][name] for name in names])
    return template.replace(**tree | {"opt_state": opt_state})


def _named_shapes(tree: Any) -> dict[str, tuple]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(leaf.shape),
            np.dtype(leaf.dtype).name,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: hasattr(x, "shape")
        )
    }


def _check_same_arrays(where: epath.Path, saved: Any, wanted: Any) -> None:
    found, expected = _named_shapes(saved), _named_shapes(wanted)
    if not found:
        raise ValueError(_damaged(where, ValueError("no arrays found")))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"checkpoint {where}: {name} is {found.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}"
            )


def _damaged(where: epath.Path, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = textwrap.shorten(lines[0] if lines else "", 120, placeholder=" ...")
    return (
        f"checkpoint {where}: cannot be read ({type(error).__name__}: {reason}); "
        "delete this folder to resume from an earlier one"
    )


def _unwritten(folder: epath.Path, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if "No space left" in str(error):
        reason = "no space left on the disk"
    return f"checkpoints in {folder} cannot be written ({reason[:200]})"
