"""Everything that changes with time, as closures `step -> value`.

A step is a traced integer, so a schedule never recompiles a train step, and resuming
is right because the step is in the checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]
"""step -> value; both may be traced scalars."""

LEARNING_RATES = ("constant", "multistep", "cosine", "polynomial")


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step: jnp.full_like(step, value, dtype=jnp.result_type(float))


def stairs(start: float, increment: float, steps: Sequence[int]) -> Schedule:
    """Start + increment·#{s in steps : s <= step}; step 0 is the first update.

    The margin schedule of SphereFace-R's NFN and SFN heads. The official code counts
    its own forward passes from 1 and changes after more than s of them, which is the
    same update.
    """
    bounds = tuple(steps)

    def schedule(step):
        passed = sum((jnp.asarray(step) >= s).astype(float) for s in bounds)
        return jnp.asarray(start + increment * passed, jnp.result_type(float))

    return schedule


def linear_ramp(start: float, end: float, steps: int) -> Schedule:
    """From start to end in `steps` steps, then end."""
    return optax.linear_schedule(start, end, max(steps, 1))


def sphereface_annealing(
    minimum: float = 5.0, base: float = 1000.0, rate: float = 0.12
) -> Schedule:
    """λ(step) = max(minimum, base/(1 + rate·step)): SphereFace's released training."""

    def schedule(step):
        return jnp.maximum(minimum, base / (1.0 + rate * jnp.asarray(step, float)))

    return schedule


def learning_rate(
    name: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
    power: float = 1.0,
    final: float = 0.0,
) -> Schedule:
    """Learning rate with linear warm-up from 0.

    Args:
      name: "constant"; "multistep": times `decay` at each milestone; "cosine" or
        "polynomial" (with `power`): from peak to `final` at total_steps.
      peak: value after warm-up.
      total_steps: length of the run, warm-up included.
      warmup_steps: steps of linear growth before the rest.
      milestones: steps, counted from the start of training, for "multistep".
      decay: factor for "multistep".
      power: exponent for "polynomial" (1 is InsightFace's linear decay).
      final: last value for "cosine" and "polynomial".

    Raises:
      ValueError: `name` is unknown.
    """
    rest = max(total_steps - warmup_steps, 1)
    if name == "constant":
        main = optax.constant_schedule(peak)
    elif name == "multistep":
        main = optax.piecewise_constant_schedule(
            peak, {max(s - warmup_steps, 0): decay for s in milestones}
        )
    elif name == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=final / peak)
    elif name == "polynomial":
        main = optax.polynomial_schedule(peak, final, power, rest)
    else:
        raise ValueError(f"schedule is {name!r}, expected one of {LEARNING_RATES}")
    if warmup_steps == 0:
        return main
    # Counting from 1 makes the first update move: peak/warmup rather than 0.
    ramp = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([ramp, main], [warmup_steps])
