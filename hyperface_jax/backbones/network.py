"""What the networks have in common: settings, and what they say about themselves."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn


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
      frozen: paths of parameters that get no gradient.
      stride: pixels of the image a pixel of the last feature map.
      any_size: sizes need not be multiples of `stride`; the rest is not looked at.
      flattened: the Linear whose kernel's rows are the last map in the order H, W, C,
        where PyTorch has C, H, W; None: no kernel is.
    """

    width: int = 64
    embedding_dim: int = 512
    dtype: jnp.dtype = jnp.dtype("float32")
    dropout: float = 0.0
    drop_path: float = 0.0
    batch_norm_group: int = 0
    remat: bool = False

    frozen: ClassVar[tuple[tuple[str, ...], ...]] = ()
    stride: ClassVar[int] = 16
    any_size: ClassVar[bool] = False
    flattened: ClassVar[str | None] = None

    @nn.nowrap
    def positions(self, params: Mapping[str, Any]) -> int:
        """Pixels of the last feature map that the parameters are for."""
        rows = params[self.flattened]["kernel"].shape[0] if self.flattened else 0
        return rows // (8 * self.width)
