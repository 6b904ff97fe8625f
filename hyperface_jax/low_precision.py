"""Optimizer state in bfloat16 that does not stagnate.

A bfloat16 number has 8 bits: added to a momentum of 1, anything below 1/256 is lost by
rounding to nearest, step after step. Rounding up or down at random, with the
probability that keeps the mean, loses nothing on average.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def round_stochastically(key: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """float32 -> bfloat16, up or down at random so that the mean is x.

    Infinities and NaN stay what they are.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    luck = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    carried = (bits + luck) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(carried, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


class Bfloat16TraceState(NamedTuple):
    """Momentum in bfloat16, and how often it was rounded."""

    count: Array
    trace: Any


def bfloat16_trace(
    decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """`optax.trace` whose state is bfloat16; the step is taken before rounding.

    Args:
      decay: momentum.
      nesterov: Nesterov's form.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)
        return Bfloat16TraceState(jnp.int32(0), zeros)

    def update(updates, state, params=None):
        del params
        new = jax.tree.map(
            lambda g, t: g + decay * t.astype(g.dtype), updates, state.trace
        )
        key = jax.random.fold_in(jax.random.key(0), state.count)
        leaves, structure = jax.tree.flatten(new)
        keys = jax.random.split(key, max(len(leaves), 1))
        kept = [round_stochastically(k, x) for k, x in zip(keys, leaves, strict=False)]
        state = Bfloat16TraceState(state.count + 1, structure.unflatten(kept))
        if nesterov:
            new = jax.tree.map(lambda g, t: g + decay * t, updates, new)
        return new, state

    return optax.GradientTransformation(init, update)
