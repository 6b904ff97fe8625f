"""Batch normalisation with PyTorch's arithmetic, over a batch or groups of it.

Flax's BatchNorm keeps the biased variance as its running value; PyTorch's, and so every
published face network, the unbiased one. B examples, C channels, G groups of examples.

What is elementwise on whole feature maps stands under `jax.checkpoint`: the backward
pass computes it again from what the convolution left, in that array's dtype, instead of
keeping float32 copies.
"""

import math
from collections.abc import Callable

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
        activation: Callable[[Array], Array] = lambda y: y,
    ) -> Float[Array, "B ... C"]:
        """Normalises `x`.

        Args:
          x: any floating dtype.
          train: use this batch's statistics and update the running ones.
          weight: examples of weight 0 (unreadable images) take no part in the
            statistics, all others count once. If all are 0 the running values stay.
          activation: elementwise function of the result, float32. Applied here, so
            that the backward pass needs no copy of what it is applied to.
        """
        shape = (x.shape[-1],)
        mean_of = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var_of = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = mean_of.value[None], var_of.value[None]  # [G, C]
        if train:
            mean, var, count = group_moments(x, weight, mean_of.value, self.group)
            if not self.is_initializing():
                present = (count > 0).astype(jnp.float32)
                share = (present / jnp.maximum(jnp.sum(present), 1))[:, None]
                keep = jnp.where(jnp.any(count > 0), self.momentum, 1.0)
                unbiased = var * (count / jnp.maximum(count - 1, 1))[:, None]
                for kept, new in ((mean_of, mean), (var_of, unbiased)):
                    of_all = jnp.sum(share * new, axis=0)
                    kept.value = keep * kept.value + (1 - keep) * of_all

        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
            scale = jax.lax.stop_gradient(scale) if self.frozen_scale else scale
            factor = factor * scale[None]
        bias = jnp.zeros(shape, jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)

        @jax.checkpoint
        def normalise(x, mean, factor, bias):
            y = (x.astype(jnp.float32) - _per_row(mean, x)) * _per_row(factor, x)
            return activation(y + per_channel(bias, x.ndim)).astype(x.dtype)

        return normalise(x, mean, factor, bias)


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


@jax.checkpoint
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
        present = weight > 0
        rows = present.reshape((-1,) + (1,) * (x.ndim - 1))
        # where, not a product: what stands in an unreadable image may be NaN.
        centred = jnp.where(rows, centred, 0)
        count = jnp.sum(present).astype(jnp.float32) * (values // x.shape[0])
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(centred, axes) / divisor
    var = jnp.sum(centred * centred, axes) / divisor - mean * mean
    return mean + shift, jnp.maximum(var, 0), count
