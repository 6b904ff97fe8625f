"""One update as a pure function (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hyperface_jax import geometry, optimizer, schedules
from hyperface_jax.backbones import Backbone
from hyperface_jax.carried import Carried
from hyperface_jax.classifier import Head
from hyperface_jax.sampling import Sampler
from hyperface_jax.training.train_state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    *,
    backbone: Backbone,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    head: Head,
    tx: optax.GradientTransformation,
    learning_rate: schedules.Schedule,
    margin: schedules.Schedule,
    prototype_norm: str = "project",
    sampler: Sampler | None = None,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Binds the static parts of a step; the caller jits it once, donating the state.

    Args:
      backbone: from `backbones.create_backbone`.
      augment: (key, uint8 images [B, H, W, 3]) -> float images in [-1, 1].
      head: the loss.
      tx: optimizer over the parts of `TrainState.params`.
      learning_rate: schedule, reported only (the optimizer has its own copy).
      margin: schedule, reported only (the loss has its own copy).
      prototype_norm: "project" puts the prototypes back on the sphere.
      sampler: draws the classes that take part, or None for all.
      accumulate: the batch is cut into so many parts, one after the other; gradients
        are those of the whole batch, BatchNorm's statistics those of each part, as is
        what a loss looks at in its batch (`adaptive`).
      ema_decay: decay a step of the moving average of the weights; 0 is off.

    Returns:
      A function of a state and a batch {"image": uint8 [B, H, W, 3], "label": int32
      [B], "weight": float32 [B]}; examples of weight 0 take no part. Metrics are
      scalars; "loss" is the weighted mean.
    """

    def forward(params, batch_stats, part, state, key, total_weight, ids):
        augment_key, model_key = jax.random.split(key)
        embeddings, batch_stats = backbone.apply(
            params["backbone"],
            batch_stats,
            augment(augment_key, part["image"]),
            train=True,
            weight=part["weight"],
            key=model_key,
        )
        carried = Carried(
            trained=params.get("head", {}),
            memory=state.memory,
            weight=part["weight"],
            key=jax.random.fold_in(model_key, 1),
        )
        losses, aux = head(
            embeddings, part["label"], params["prototypes"], state.step, ids, carried
        )
        loss = jnp.sum(losses * part["weight"]) / total_weight
        sums = _weighted_sums(aux, part["weight"])
        return loss, (batch_stats, sums, aux.get("seen"))

    def update(state, batch, key, ids=None):
        loss, stats, sums, seen, gradients, total = _gradients(
            forward, state, batch, key, ids, accumulate
        )
        memory = state.memory
        if seen is not None:
            memory = head.remember(memory, seen, state.step)
        norms = {part: optimizer.global_norm(g) for part, g in gradients.items()}
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        ok = finite & (state.nonfinite_step < 0)
        params, opt_state = optimizer.update(
            *(tx, gradients, state.opt_state, state.params),
            prototype_norm=prototype_norm,
            ok=ok,
        )
        new = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=stats,
            opt_state=opt_state,
            memory=memory,
            ema=_moving_average(state.ema, params["backbone"], stats, ema_decay),
        )
        metrics = _report(sums, total) | {
            "loss": loss,
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "margin": jnp.asarray(margin(state.step), jnp.float32),
            "grad_norm_backbone": norms["backbone"],
            "grad_norm_prototypes": norms["prototypes"],
            **_scalars(params.get("head", {}), memory),
        }
        return _latch(state, new, ok), metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        if sampler is None:
            return update(state, batch, key)
        return _of_drawn_classes(update, sampler, state, batch, key)

    return train_step


def _gradients(forward, state: TrainState, batch: Batch, key, ids, accumulate: int):
    """Loss, statistics, sums of metrics, what was seen, gradients, total weight.

    With `accumulate` parts: one after the other, each with the statistics of the last;
    what a loss remembers is moved by their whole, once.
    """
    total = jnp.maximum(jnp.sum(batch["weight"]), 1)
    value_and_grad = jax.value_and_grad(forward, has_aux=True)
    if accumulate == 1:
        (loss, (stats, sums, seen)), gradients = value_and_grad(
            state.params, state.batch_stats, batch, state, key, total, ids
        )
        return loss, stats, sums, seen, gradients, total

    def body(carry, part_and_key):
        stats, sofar = carry
        part, part_key = part_and_key
        (loss, (stats, sums, seen)), gradients = value_and_grad(
            state.params, stats, part, state, part_key, total, ids
        )
        return (stats, jax.tree.map(jnp.add, sofar, (loss, sums, gradients))), seen

    # Row i goes to part i mod accumulate: each device keeps its own rows.
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
    )
    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    rest = jax.tree.map(lambda x: x[1:], (parts, keys))
    (loss, (stats, sums, seen)), gradients = value_and_grad(
        *(state.params, state.batch_stats, first[0], state, first[1]),
        *(total, ids),
    )
    (stats, (loss, sums, gradients)), seen_then = jax.lax.scan(
        body, (stats, (loss, sums, gradients)), rest
    )
    seen = jax.tree.map(
        lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1).reshape(
            -1, *a.shape[1:]
        ),
        seen,
        seen_then,
    )
    return loss, stats, sums, seen, gradients, total


def _of_drawn_classes(update, sampler: Sampler, state: TrainState, batch: Batch, key):
    """The update of a state that holds the drawn classes only, put back into the whole.

    The latch is inside: nothing passes over all rows of the classes.
    """
    key, draw_key = jax.random.split(key)
    ids = sampler.draw(draw_key, batch["label"])
    part, metrics = update(sampler.take(state, ids), batch, key, ids)
    return sampler.put(state, ids, part), metrics


def _scalars(*trees: Any) -> Metrics:
    """What a loss trains and remembers, as far as it is scalars, for the log."""
    found = {}
    for tree in trees:
        for name, leaf in tree.items():
            if not isinstance(leaf, dict):
                found[f"loss_{name}"] = leaf
    return found


def _weighted_sums(aux: dict[str, jax.Array], weight: jax.Array) -> dict[str, Any]:
    """Sums over examples, so that parts of a batch can be added."""
    norm = aux["magnitude"]
    values = {
        "target_angle": jnp.rad2deg(geometry.angle(aux["target_cos"])),
        "accuracy": aux["correct"],
        "probability": aux["probability"],
        "penalty": aux["penalty"],
        "magnitude": norm,
        "magnitude_square": norm * norm,
    }
    sums = {name: jnp.sum(value * weight) for name, value in values.items()}
    return jax.lax.stop_gradient(sums)


def _report(sums: dict[str, jax.Array], total: jax.Array) -> Metrics:
    mean = {name: value / total for name, value in sums.items()}
    variance = mean.pop("magnitude_square") - mean["magnitude"] ** 2
    mean["magnitude_mean"] = mean.pop("magnitude")
    mean["magnitude_std"] = jnp.sqrt(jnp.maximum(variance, 0))
    return mean | {"examples": total}


def _moving_average(ema, weights, batch_stats, decay: float):
    if not ema:
        return ema
    # Not decay * old + (1 - decay) * new: rounded, the two do not add up to 1.
    return jax.tree.map(
        lambda old, new: old + (1 - decay) * (new - old),
        ema,
        {"backbone": weights, "batch_stats": batch_stats},
    )


def _latch(old: TrainState, new: TrainState, ok: jax.Array) -> TrainState:
    """Keeps the old state for good from the first step that was not finite.

    `optimizer.update` has done so for its part already.
    """
    kept = optimizer.select(
        ok,
        new.replace(params=None, opt_state=None),
        old.replace(params=None, opt_state=None),
    )
    failed = jnp.where((old.nonfinite_step < 0) & ~ok, old.step, old.nonfinite_step)
    return kept.replace(
        params=new.params, opt_state=new.opt_state, nonfinite_step=failed
    )
