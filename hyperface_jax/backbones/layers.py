"""Layers that the backbones share, with PyTorch's arithmetic, on NHWC arrays.

Flax has layers of the same names that compute something else: its PReLU has one slope
for all channels, its stride-2 "SAME" pads on one side only. B examples, H x W pixels, C
channels.
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


def per_channel(vector: Float[Array, " C"], ndim: int) -> Array:
    """[C] -> [1, ..., 1, C] with `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), its slope at 0 is 0; NaN stays NaN.

    As `jax.nn.relu`, whose backward pass keeps an array of zeros, too.
    """
    return jnp.where(x <= 0, 0, x)


class PReLU(nn.Module):
    """max(x, 0) + slope·min(x, 0), one `slope` a channel, param [C] (He, 2015).

    Here it follows BatchNorm everywhere, which does it in the same pass.
    """

    slope_init: Initializer = nn.initializers.constant(0.25)

    @nn.compact
    def __call__(self, channels: int) -> Float[Array, " C"]:
        """The slopes, for `BatchNorm`."""
        return self.param("slope", self.slope_init, (channels,), jnp.float32)


class Conv(nn.Module):
    """Square convolution with PyTorch's symmetric padding.

    Params `kernel` [size, size, C / groups, features] and `bias` [features], float32.
    Computed in the dtype of the input, the bias added in float32 (its gradient is a
    long sum).

    Attributes:
      features: channels of the result.
      size: side of the kernel.
      stride: of its positions.
      padding: rows and columns of zeros on each side; -1 is (size - 1) // 2.
      groups: channels are cut into so many parts, convolved each on its own.
      use_bias: learn an offset a channel.
      kernel_init: initialiser of the kernel.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = -1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = KAIMING_FAN_OUT

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        """[B, H, W, C] -> [B, H / stride, W / stride, features], dtype of `x`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        padding = (self.size - 1) // 2 if self.padding < 0 else self.padding
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if self.use_bias:
            init = torch_bias(math.prod(shape[:-1]))
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = (y.astype(jnp.float32) + per_channel(bias, 4)).astype(x.dtype)
        return y


def linear(
    features: int,
    fan_in: int,
    name: str,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = TORCH_LINEAR,
    bias_init: Initializer | None = None,
) -> nn.Dense:
    """Linear layer, wholly in float32, kernel [fan_in, features], PyTorch's init.

    Full float32 also where float32 products are shortened by default (TF32, bfloat16
    passes): under 1 % of the work of a deep network, and the embedding depends on it.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=kernel_init,
        bias_init=bias_init or torch_bias(fan_in),
        name=name,
    )


def computed_again(block: type[nn.Module], remat: bool) -> Callable[..., nn.Module]:
    """The block itself, or one whose backward pass starts from its input alone.

    The second keeps nothing of its inside and computes it twice: for a network of such
    blocks a third more work. Blocks are called as block(x, train, weight).
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block


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
