"""IResNet, the pre-activation residual network of ArcFace, as in InsightFace's PyTorch.

A stem at full size, four stages at 1/2, 1/4, 1/8, 1/16 of it, one Linear, BatchNorm on
the embedding. Module names follow the state_dict: `layer2_0/downsample_1` is
`layer2.0.downsample.1`. Source: InsightFace `recognition/arcface_torch`, `iresnet.py`.
"""

from functools import partial
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from hyperface_jax.backbones.batch_norm import BatchNorm
from hyperface_jax.backbones.layers import (
    Conv,
    DropPath,
    PReLU,
    computed_again,
    drop_path_rates,
    linear,
)
from hyperface_jax.backbones.network import Network

_conv = partial(Conv, kernel_init=nn.initializers.normal(0.1))


class _Block(nn.Module):
    """BN, conv, BN, PReLU, strided conv, BN, plus the shortcut; nothing after the sum.

    The first block of every stage has a 1x1 convolution with BatchNorm as its shortcut,
    also where the number of channels stays.
    """

    features: int
    stride: int
    drop_path: float
    group: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        def norm(name: str, y: Array, **settings) -> Array:
            settings |= {"train": train, "weight": weight}
            batch_norm = BatchNorm(epsilon=self.epsilon, group=self.group, name=name)
            return batch_norm(y, **settings)

        branch = norm("bn1", x)
        branch = _conv(self.features, name="conv1")(branch)
        slope = PReLU(name="prelu")(self.features)
        branch = norm("bn2", branch, slope=slope)
        branch = _conv(self.features, stride=self.stride, name="conv2")(branch)
        branch = norm("bn3", branch)
        if self.stride != 1:
            x = _conv(self.features, size=1, stride=self.stride, name="downsample_0")(x)
            x = norm("downsample_1", x)
        return x + DropPath(self.drop_path)(branch, train=train)


class IResNet(Network, kw_only=True):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32; see `Network`.

    Attributes:
      blocks: residual blocks of each stage; the stages have 1, 2, 4, 8 times `width`
        channels, the stem `width`.
    """

    blocks: tuple[int, int, int, int]

    frozen: ClassVar[tuple[tuple[str, ...], ...]] = (("features", "scale"),)
    flattened: ClassVar[str | None] = "fc"
    any_epsilon: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """See `Backbone.apply`."""
        rates = iter(drop_path_rates(self.drop_path, sum(self.blocks)))
        x = _conv(self.width, name="conv1")(images.astype(self.dtype))
        epsilon = self.batch_norm_epsilon
        norm = partial(BatchNorm, epsilon=epsilon, group=self.batch_norm_group)
        slope = PReLU(name="prelu")(self.width)
        x = norm(name="bn1")(x, train=train, weight=weight, slope=slope)
        block = computed_again(_Block, self.remat)
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                x = block(
                    self.width * 2**stage,
                    stride=1 if i else 2,
                    drop_path=next(rates),
                    group=self.batch_norm_group,
                    epsilon=epsilon,
                    name=f"layer{stage + 1}_{i}",
                )(x, train, weight)

        x = norm(name="bn2")(x, train=train, weight=weight)
        x = x.reshape(x.shape[0], -1)  # order H, W, C
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = linear(self.embedding_dim, x.shape[-1], name="fc")(x)
        # A free scale here would compete with the magnitude function and its s.
        return norm(frozen_scale=True, name="features")(x, train=train, weight=weight)


IResNet18 = partial(IResNet, blocks=(2, 2, 2, 2))
IResNet34 = partial(IResNet, blocks=(3, 4, 6, 3))
IResNet50 = partial(IResNet, blocks=(3, 4, 14, 3))
IResNet100 = partial(IResNet, blocks=(3, 13, 30, 3))
IResNet200 = partial(IResNet, blocks=(6, 26, 60, 6))
