"""Batch normalisation with PyTorch's arithmetic, over a batch or groups of it.

Flax's BatchNorm keeps the biased variance as its running value; PyTorch's, and so every
published face network, the unbiased one. B examples, C channels, G groups of examples.

Most of what a deep network's kernels read and write on a GPU is elementwise work on
feature maps, this layer's above all. So its training has a backward pass of its own:
two passes over the maps, and nothing is kept but the input, in its dtype. The same
formulas differentiated by JAX move a third more (benchmarks/RESULTS.md).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from hyperface_jax.backbones.layers import Initializer, per_channel


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, 2015).

    Normalises with the biased variance and keeps the unbiased one, as PyTorch does.
    Statistics and arithmetic are float32, the result has the dtype of the input. Under
    jit the statistics are those of the global batch, however it is sharded, or of each
    `group` images in a row: then the running values follow the groups' mean.

    Params `scale`, `bias` [C]; variables `mean`, `var` [C] in "batch_stats".

    Attributes:
      momentum: share of the old running value that stays (1 - PyTorch's momentum).
      epsilon: added to the variance.
      use_scale: learn a factor a channel.
      use_bias: learn an offset a channel.
      scale_init: initialiser of the factor.
      frozen_scale: the factor is a parameter, but gets no gradient.
      group: images that share their statistics; 0 is the whole batch.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones
    frozen_scale: bool = False
    group: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B ... C"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
        slope: Float[Array, " C"] | float | None = None,
    ) -> Float[Array, "B ... C"]:
        """Normalises `x`.

        Args:
          x: any floating dtype.
          train: use this batch's statistics and update the running ones.
          weight: examples of weight 0 (unreadable images) take no part in the
            statistics, all others count once. If all are 0 the running values stay.
          slope: results that are not above 0 are multiplied by it: 0 is ReLU, one a
            channel PReLU, None the identity. Done here, so that the backward pass
            needs no copy of what it is done to.
        """
        shape = (x.shape[-1],)
        mean_of = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var_of = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale, bias = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
            scale = jax.lax.stop_gradient(scale) if self.frozen_scale else scale
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        if slope is not None:
            slope = jnp.broadcast_to(jnp.asarray(slope, jnp.float32), shape)
        if not train:
            mean, var = mean_of.value[None], var_of.value[None]
            factor = jax.lax.rsqrt(var + self.epsilon) * scale[None]
            return _affine(x, mean, factor, bias, slope).astype(x.dtype)

        given = x, weight, mean_of.value, scale, bias, slope
        # custom_vjp hides the type of its result.
        found: Any = normalise_batch(*given, self.epsilon, self.group)
        y, mean, var, count = found
        if not self.is_initializing():
            present = (count > 0).astype(jnp.float32)
            share = (present / jnp.maximum(jnp.sum(present), 1))[:, None]
            keep = jnp.where(jnp.any(count > 0), self.momentum, 1.0)
            unbiased = var * (count / jnp.maximum(count - 1, 1))[:, None]
            for kept, new in ((mean_of, mean), (var_of, unbiased)):
                of_all = jnp.sum(share * new, axis=0)
                kept.value = keep * kept.value + (1 - keep) * of_all
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def normalise_batch(
    x: Float[Array, "B ... C"],
    weight: Float[Array, " B"] | None,
    shift: Float[Array, " C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    slope: Float[Array, " C"] | None,
    epsilon: float,
    group: int,
) -> tuple[Array, Float[Array, "G C"], Float[Array, "G C"], Float[Array, " G"]]:
    """What training does to `x`, with the moments of `group_moments`.

    The moments have no gradient of their own (they go into running values), nor have
    `weight` and `shift`.

    Args:
      x: any floating dtype, that of the result.
      weight: see `BatchNorm`.
      shift: near the mean.
      scale: factor a channel.
      bias: offset a channel.
      slope: see `BatchNorm`.
      epsilon: added to the variance.
      group: see `BatchNorm`.
    """
    return _forward(x, weight, shift, scale, bias, slope, epsilon, group)[0]


def _forward(x, weight, shift, scale, bias, slope, epsilon, group):
    mean, var, count = group_moments(x, weight, shift, group)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = _affine(x, mean, inverse * scale[None], bias, slope).astype(x.dtype)
    kept = (x, weight, mean, inverse, count, scale, bias, slope)
    return (y, mean, var, count), kept


def _backward(epsilon, group, kept, gradients):
    """Ioffe and Szegedy's gradient, section 3; examples of weight 0 move no moments."""
    del epsilon, group
    x, weight, mean, inverse, count, scale, bias, slope = kept
    g = gradients[0].astype(jnp.float32)
    centred = x.astype(jnp.float32) - _per_row(mean, x)
    of_slope = None
    if slope is not None:
        y = centred * _per_row(inverse * scale[None], x) + per_channel(bias, x.ndim)
        above = y > 0
        of_slope = jnp.sum(jnp.where(above, 0, g * y), axis=tuple(range(x.ndim - 1)))
        g = jnp.where(above, g, per_channel(slope, x.ndim) * g)
    sums, products = (_group_sums(values, len(mean)) for values in (g, g * centred))
    share = 1 / jnp.maximum(count, 1)[:, None]
    moved = centred * _per_row(share * products * inverse**2, x)
    moved = moved + _per_row(share * sums, x)
    if weight is not None:
        moved = jnp.where(_present(weight, x.ndim), moved, 0)
    of_x = (g - moved) * _per_row(inverse * scale[None], x)
    of_scale, of_bias = jnp.sum(products * inverse, 0), jnp.sum(sums, 0)
    return of_x.astype(x.dtype), None, None, of_scale, of_bias, of_slope


normalise_batch.defvjp(_forward, _backward)


def _affine(x, mean, factor, bias, slope) -> Array:
    """float32; mean and factor [G, C]."""
    y = (x.astype(jnp.float32) - _per_row(mean, x)) * _per_row(factor, x)
    y = y + per_channel(bias, x.ndim)
    return y if slope is None else jnp.where(y > 0, y, per_channel(slope, x.ndim) * y)


def _present(weight: Float[Array, " B"], ndim: int) -> Array:
    """[B] -> bool [B, 1, ..., 1] with `ndim` axes."""
    return (weight > 0).reshape((-1,) + (1,) * (ndim - 1))


def _group_sums(values: Float[Array, "B ... C"], groups: int) -> Float[Array, "G C"]:
    if groups == 1:  # no other shape, which a sharded batch would have to move for
        return jnp.sum(values, axis=tuple(range(values.ndim - 1)))[None]
    parts = values.reshape(groups, -1, values.shape[-1])
    return jnp.sum(parts, axis=1)


def _per_row(values: Array, x: Array) -> Array:
    """[G, C] of G groups of rows -> what broadcasts to x [B, ..., C]."""
    if len(values) == 1:
        return per_channel(values, x.ndim)
    rows = jnp.repeat(values, len(x) // len(values), axis=0)
    return rows.reshape((len(x),) + (1,) * (x.ndim - 2) + (-1,))


def group_moments(
    x: Float[Array, "B ... C"],
    weight: Float[Array, " B"] | None,
    shift: Float[Array, " C"],
    group: int,
) -> tuple[Float[Array, "G C"], Float[Array, "G C"], Float[Array, " G"]]:
    """`batch_moments` of each `group` rows, or of all of them (G = 1) where it is 0."""
    if group == 0 or group == len(x):
        return jax.tree.map(lambda a: a[None], batch_moments(x, weight, shift))
    if group < 0 or len(x) % group:
        raise ValueError(
            f"BatchNorm's group is {group}, expected a divisor of the {len(x)} images "
            "that are computed at once"
        )
    parts = x.reshape(-1, group, *x.shape[1:])
    if weight is None:
        return jax.vmap(lambda part: batch_moments(part, None, shift))(parts)
    return jax.vmap(lambda part, w: batch_moments(part, w, shift))(
        parts, weight.reshape(-1, group)
    )


def batch_moments(
    x: Float[Array, "B ... C"],
    weight: Float[Array, " B"] | None,
    shift: Float[Array, " C"],
) -> tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, ""]]:
    """Mean, biased variance and number of values a channel, in float32.

    One pass over `x`: E[(x-s)²] - E[x-s]². The shift s changes nothing in exact
    arithmetic; the running mean as s keeps the difference from cancelling.
    """
    values = math.prod(x.shape[:-1])
    if values < 2:
        raise ValueError(
            f"BatchNorm in training got {values} value a channel (shape "
            f"{list(x.shape)}), expected at least 2: use a larger batch"
        )
    axes = tuple(range(x.ndim - 1))
    centred = x.astype(jnp.float32) - per_channel(shift, x.ndim)
    count = jnp.float32(values)
    if weight is not None:
        present = _present(weight, x.ndim)
        # where, not a product: what stands in an unreadable image may be NaN.
        centred = jnp.where(present, centred, 0)
        count = jnp.sum(present).astype(jnp.float32) * (values // x.shape[0])
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(centred, axes) / divisor
    var = jnp.sum(centred * centred, axes) / divisor - mean * mean
    return mean + shift, jnp.maximum(var, 0), count
