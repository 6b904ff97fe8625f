"""Optimizers over the two parts {backbone, prototypes}, with PyTorch's rules.

SGD is PyTorch's: weight decay is added to the gradient before momentum, so that
trajectories of the official code are reproduced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hyperface_jax import geometry, low_precision

OPTIMIZERS = ("sgd", "adamw")
DECAY_MASKS = ("all", "no_norm", "matrices")
MOMENTUM_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class PartSettings:
    """What may differ between backbone and prototypes.

    Attributes:
      learning_rate_factor: multiplies the schedule.
      weight_decay: L2 coefficient (sgd: added to the gradient; adamw: decoupled).
      decay_mask: "all" parameters as the official code does; "no_norm": all but scales
        and shifts of BatchNorm and LayerNorm, as AdaFace's code does; "matrices":
        arrays of two or more dimensions only (no bias or PReLU slope either).
      clip_norm: largest global norm of this part's gradient; 0 is off.
      momentum_dtype: "float32", or "bfloat16" with stochastic rounding (sgd only):
        half of the memory of the momentum.
    """

    learning_rate_factor: float = 1.0
    weight_decay: float = 5e-4
    decay_mask: str = "all"
    clip_norm: float = 0.0
    momentum_dtype: str = "float32"


def make_optimizer(
    name: str,
    *,
    learning_rate: Callable[[Any], Any],
    backbone: PartSettings,
    prototypes: PartSettings,
    momentum: float = 0.9,
    nesterov: bool = False,
    b2: float = 0.999,
    clip_norm: float = 0.0,
    frozen: Sequence[tuple[str, ...]] = (),
) -> optax.GradientTransformation:
    """Optimizer over a tree {"backbone": ..., "prototypes": ...} and maybe "head".

    The head's other parameters (a bias) belong to the prototypes' part, as in the
    official code: one rate, one decay, one clipping.

    Args:
      name: "sgd" or "adamw".
      learning_rate: step -> rate, shared by both parts up to their factors.
      backbone: settings of the backbone's parameters.
      prototypes: settings of the class vectors.
      momentum: SGD's momentum, or AdamW's first moment.
      nesterov: Nesterov's form of momentum.
      b2: AdamW's second moment.
      clip_norm: largest norm of all gradients together, before the parts' own.
      frozen: paths of the backbone's parameters that have no gradient; they are not
        decayed either (`Backbone.frozen`).

    Raises:
      ValueError: `name`, or a name in the settings, is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}, expected one of {OPTIMIZERS}")

    def part(settings: PartSettings) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(
            settings.weight_decay, _decay_mask(settings.decay_mask, frozen)
        )
        if settings.momentum_dtype not in MOMENTUM_DTYPES:
            raise ValueError(
                f"momentum_dtype is {settings.momentum_dtype!r}, expected one of "
                f"{MOMENTUM_DTYPES}"
            )
        if name == "sgd":
            half = settings.momentum_dtype == "bfloat16"
            trace = low_precision.bfloat16_trace if half else optax.trace
            rule = [decay, trace(momentum, nesterov)]
        else:
            rule = [optax.scale_by_adam(momentum, b2, nesterov=nesterov), decay]
        clip = (
            [optax.clip_by_global_norm(settings.clip_norm)]
            if settings.clip_norm
            else []
        )
        factor = settings.learning_rate_factor
        return optax.chain(
            *clip,
            *rule,
            optax.scale_by_learning_rate(lambda step: factor * learning_rate(step)),
        )

    parts = optax.partition(
        {"backbone": part(backbone), "prototypes": part(prototypes)},
        lambda params: {
            key: jax.tree.map(lambda _, part=_PART_OF[key]: part, value)
            for key, value in params.items()
        },
    )
    if clip_norm:
        return optax.chain(optax.clip_by_global_norm(clip_norm), parts)
    return parts


_PART_OF = {"backbone": "backbone", "prototypes": "prototypes", "head": "prototypes"}


def _decay_mask(name: str, frozen: Sequence[tuple[str, ...]]):
    if name not in DECAY_MASKS:
        raise ValueError(f"decay_mask is {name!r}, expected one of {DECAY_MASKS}")

    def mask(params):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        # No other layer's parameters are called "scale".
        norms = {path[:-1] for path in paths if path[-1].key == "scale"}

        def decayed(path, parameter) -> bool:
            keys = tuple(entry.key for entry in path)[1:]  # without "backbone"
            wanted = {
                "all": True,
                "no_norm": path[:-1] not in norms,
                "matrices": parameter.ndim >= 2,
            }
            return keys not in frozen and wanted[name]

        return jax.tree_util.tree_map_with_path(decayed, params)

    return mask


def update(
    tx: optax.GradientTransformation,
    gradients: Any,
    opt_state: Any,
    params: Any,
    *,
    prototype_norm: str,
    ok: jax.Array | bool = True,
) -> tuple[Any, Any]:
    """One update; under "project" the prototypes go back to the sphere after it.

    Normalising after the update is the official trajectory (which normalises in
    place before each forward pass) without a second [C, D] array.

    Args:
      tx: any transformation over `params`.
      gradients: as `params`.
      opt_state: of `tx`.
      params: a dictionary with "prototypes" [C, D], or [C, K, D], among others.
      prototype_norm: see `losses.hyperspherical_softmax`.
      ok: bool []; where false, parameters and state stay what they are, to the bit.

    Returns:
      New parameters and optimizer state.
    """
    updates, new_state = tx.update(gradients, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    new_params, new_state = select(ok, (new_params, new_state), (params, opt_state))
    if prototype_norm == "project":
        on_sphere = _back_to_sphere(new_params["prototypes"], ok)
        new_params = new_params | {"prototypes": on_sphere}
    return new_params, new_state


def select(ok: jax.Array | bool, new: Any, old: Any) -> Any:
    """`new` where `ok`, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def _back_to_sphere(rows: jax.Array, ok: jax.Array | bool) -> jax.Array:
    """`geometry.l2_normalize` of rows that were updated, of others nothing.

    Without the barrier XLA computes the update a second time inside the division. It
    reads the old momentum there, after the new one was written: a copy of a [C, D]
    array and three more passes over one, as compiled for GPUs.
    """
    norms = geometry.magnitude(rows)[..., None]
    rows, norms = jax.lax.optimization_barrier((rows, norms))
    return jnp.where(ok, rows / jnp.maximum(norms, geometry.MIN_NORM), rows)


def global_norm(tree: Any) -> jax.Array:
    """L2 norm of all leaves together, in float32."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)
    ]
    return jnp.sqrt(sum(squares))
