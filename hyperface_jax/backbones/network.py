"""What the networks have in common: settings, and what they say about themselves."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

COLOR_ORDERS = ("RGB", "BGR")


class Network(nn.Module):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32.

    Attributes:
      width: channels of the first stage; 64 is the published network.
      embedding_dim: D.
      dtype: of the computation up to the Linear; parameters are float32.
      dropout: rate on the flattened features before the Linear.
      drop_path: stochastic-depth rate of the last residual block.
      batch_norm_group: see `batch_norm.BatchNorm`.
      remat: see `layers.computed_again`; of the residual blocks.
      batch_norm_epsilon: added to variances, where `any_epsilon`.
      frozen: paths of parameters that get no gradient.
      stride: pixels of the image a pixel of the last feature map.
      any_size: sizes need not be multiples of `stride`; the rest is not looked at.
      flattened: the Linear whose kernel's rows are the last map in the order H, W, C,
        where PyTorch has C, H, W; None: no kernel is.
      any_epsilon: the network looks at `batch_norm_epsilon`.
    """

    width: int = 64
    embedding_dim: int = 512
    dtype: jnp.dtype = jnp.dtype("float32")
    dropout: float = 0.0
    drop_path: float = 0.0
    batch_norm_group: int = 0
    remat: bool = False
    batch_norm_epsilon: float = 1e-5

    frozen: ClassVar[tuple[tuple[str, ...], ...]] = ()
    stride: ClassVar[int] = 16
    any_size: ClassVar[bool] = False
    flattened: ClassVar[str | None] = None
    any_epsilon: ClassVar[bool] = False

    @nn.nowrap
    def positions(self, params: Mapping[str, Any]) -> int:
        """Pixels of the last feature map that the parameters are for."""
        rows = params[self.flattened]["kernel"].shape[0] if self.flattened else 0
        return rows // (8 * self.width)


def as_trained(
    images: Float[Array, "B H W 3"], color_order: str, value_range: tuple[float, float]
) -> Float[Array, "B H W 3"]:
    """RGB in [-1, 1] as the channels and values that a network was trained with."""
    if color_order == "BGR":
        images = images[..., ::-1]
    low, high = value_range
    if (low, high) != (-1, 1):
        images = (images + 1) * ((high - low) / 2) + low
    return images


def check_input(color_order: str, value_range: tuple[float, float]) -> None:
    """Raises a ValueError unless `as_trained` knows what to do."""
    if color_order not in COLOR_ORDERS:
        raise ValueError(
            f"color_order is {color_order!r}, expected one of {', '.join(COLOR_ORDERS)}"
        )
    finite = all(isinstance(v, numbers.Real) and math.isfinite(v) for v in value_range)
    if len(value_range) != 2 or not finite or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range is {value_range}, expected (low, high)")
