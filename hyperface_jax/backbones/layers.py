"""Layers that the backbones share, with PyTorch's arithmetic, on NHWC arrays.

Flax has layers of the same names that compute something else: its BatchNorm keeps the
biased variance, its PReLU has one slope for all channels, its stride-2 "SAME" pads on
one side only. B examples, H x W pixels, C channels.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Initializer = Callable[..., Array]

XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(±1/√fan_in): variance 1/(3 fan_in), what PyTorch gives a Linear by default.
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default for biases, U(±1/√fan_in); their shape does not tell fan_in."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _per_channel(vector: Float[Array, " C"], ndim: int) -> Array:
    """[C] -> [1, ..., 1, C] with `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


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
    ) -> Float[Array, "B ... C"]:
        """Normalises `x`.

        Args:
          x: any floating dtype.
          train: use this batch's statistics and update the running ones.
          weight: examples of weight 0 (unreadable images) take no part in the
            statistics, all others count once. If all are 0 the running values stay.
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
        y = x.astype(jnp.float32) - _per_row(mean, x)
        y = y * _per_row(factor, x)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            y = y + _per_channel(bias, x.ndim)
        return y.astype(x.dtype)


def _per_row(values: Array, x: Array) -> Array:
    """[G, C] of G groups of rows -> what broadcasts to x [B, ..., C]."""
    if len(values) == 1:
        return _per_channel(values, x.ndim)
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
    centred = x.astype(jnp.float32) - _per_channel(shift, x.ndim)
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


class PReLU(nn.Module):
    """max(x, 0) + slope·min(x, 0), one `slope` a channel, param [C] (He, 2015)."""

    slope_init: Initializer = nn.initializers.constant(0.25)

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Same shape and dtype as `x`."""
        slope = self.param("slope", self.slope_init, (x.shape[-1],), jnp.float32)
        # In float32, so that the slope's gradient, a sum over all pixels, is too.
        wide = x.astype(jnp.float32)
        wide = jnp.where(wide >= 0, wide, _per_channel(slope, x.ndim) * wide)
        return wide.astype(x.dtype)


class Conv(nn.Module):
    """Square convolution with PyTorch's symmetric padding (size - 1) // 2.

    Params `kernel` [size, size, C, features] and `bias` [features], float32. Computed
    in the dtype of the input, the bias added in float32 (its gradient is a long sum).
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = False
    kernel_init: Initializer = KAIMING_FAN_OUT

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        """[B, H, W, C] -> [B, H / stride, W / stride, features], dtype of `x`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        padding = (self.size - 1) // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            init = torch_bias(math.prod(shape[:-1]))
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = (y.astype(jnp.float32) + _per_channel(bias, 4)).astype(x.dtype)
        return y


def linear(features: int, fan_in: int, name: str) -> nn.Dense:
    """Linear layer, wholly in float32, kernel [fan_in, features], PyTorch's init.

    Full float32 also where float32 products are shortened by default (TF32, bfloat16
    passes): under 1 % of the work of a deep network, and the embedding depends on it.
    """
    return nn.Dense(
        features,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=TORCH_LINEAR,
        bias_init=torch_bias(fan_in),
        name=name,
    )


class DropPath(nn.Module):
    """Stochastic depth (Huang, 2016): zeroes a residual branch for whole examples.

    An example stays with probability 1 - rate and is then divided by it. Draws from the
    rng stream "dropout"; without training or at rate 0 it is the identity.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B ..."], *, train: bool
    ) -> Float[Array, "B ..."]:
        """Same shape and dtype as `x`."""
        if not train or self.rate == 0:
            return x
        shape = x.shape[:1] + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates of `blocks` residual blocks, growing linearly from 0 to `last`."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]
