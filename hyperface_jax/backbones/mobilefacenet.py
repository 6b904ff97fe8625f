"""MobileFaceNet, the small network for telephones, as in InsightFace's PyTorch.

Inverted bottlenecks (1x1 expansion, depthwise 3x3, 1x1 without activation) at 1/2, 1/4,
1/8, 1/16 of the input size; in place of flattening, a depthwise convolution as large as
the last map; one Linear without bias and BatchNorm. `mbf` has 2.06 million parameters,
`mbf_large` 6.31.

Two things differ from the paper (Chen, 2018), as in the official code: channels are
doubled (`mbf_large`: quadrupled) but the expanded maps are not, and the second
convolution of `mbf` has pairs of channels a group. With float16 InsightFace computes
the last 1x1 convolution and what follows in float32; here they follow `dtype` up to the
Linear as in the other networks.

Module names follow the state_dict: `layers_3/layers_0/layers_1/layers_0` is
`layers.3.layers.0.layers.1.layers.0`.
Source: InsightFace `recognition/arcface_torch`, `mobilefacenet.py`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from hyperface_jax.backbones.batch_norm import BatchNorm
from hyperface_jax.backbones.layers import (
    KAIMING_FAN_OUT,
    Conv,
    DropPath,
    PReLU,
    computed_again,
    drop_path_rates,
    linear,
)
from hyperface_jax.backbones.network import Network


class _ConvBlock(nn.Module):
    """Convolution, BatchNorm, [PReLU]."""

    features: int
    size: int = 1
    stride: int = 1
    padding: int = -1
    groups: int = 1
    prelu: bool = True
    batch_norm_group: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        x = Conv(
            self.features,
            size=self.size,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            name="layers_0",
        )(x)
        settings: dict[str, Any] = {"train": train, "weight": weight}
        if self.prelu:
            settings["slope"] = PReLU(name="layers_2")(self.features)
        return BatchNorm(group=self.batch_norm_group, name="layers_1")(x, **settings)


class _Bottleneck(nn.Module):
    """1x1 to `expanded` channels, depthwise 3x3, 1x1 to `features`; [plus input]."""

    features: int
    expanded: int
    stride: int
    residual: bool
    drop_path: float
    batch_norm_group: int

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        block = partial(_ConvBlock, batch_norm_group=self.batch_norm_group)
        y = block(self.expanded, name="layers_0")(x, train, weight)
        y = block(
            self.expanded,
            size=3,
            stride=self.stride,
            groups=self.expanded,
            name="layers_1",
        )(y, train, weight)
        y = block(self.features, prelu=False, name="layers_2")(y, train, weight)
        if not self.residual:
            return y
        return x + DropPath(self.drop_path)(y, train=train)


class _Stage(nn.Module):
    """Residual bottlenecks one after the other, one for each drop-path rate."""

    features: int
    expanded: int
    drop_paths: tuple[float, ...]
    batch_norm_group: int
    remat: bool

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        block = computed_again(_Bottleneck, self.remat)
        for i, drop_path in enumerate(self.drop_paths):
            x = block(
                self.features,
                self.expanded,
                stride=1,
                residual=True,
                drop_path=drop_path,
                batch_norm_group=self.batch_norm_group,
                name=f"layers_{i}",
            )(x, train, weight)
        return x


class _Head(nn.Module):
    """Depthwise convolution of the map's size, BN; Linear without bias, BN."""

    embedding_dim: int
    dropout: float
    batch_norm_group: int

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        batch, side, _, channels = x.shape
        x = _ConvBlock(
            channels,
            size=side,
            padding=0,
            groups=channels,
            prelu=False,
            batch_norm_group=self.batch_norm_group,
            name="layers_0",
        )(x, train, weight)
        x = x.reshape(batch, channels)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = linear(
            self.embedding_dim,
            channels,
            name="layers_2",
            use_bias=False,
            kernel_init=KAIMING_FAN_OUT,
        )(x)
        batch_norm = BatchNorm(group=self.batch_norm_group, name="layers_3")
        return batch_norm(x, train=train, weight=weight)


class MobileFaceNet(Network, kw_only=True):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32; see `Network`.

    The images are squares. All numbers of channels are proportional to `width`: stem
    and first two stages scale·width, then 2·scale·width, the last map 8·width.

    Attributes:
      blocks: residual bottlenecks at 1/2, 1/4, 1/8, 1/16 of the input size; a single
        one at 1/2 is a plain convolution instead.
      scale: channels of the first stage a unit of `width`.
    """

    blocks: tuple[int, int, int, int]
    scale: int

    @nn.nowrap
    def positions(self, params: Mapping[str, Any]) -> int:
        """Pixels of the last feature map that the parameters are for."""
        kernel = params["features"]["layers_0"]["layers_0"]["kernel"]
        return kernel.shape[0] * kernel.shape[1]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """See `Backbone.apply`."""
        height, width = images.shape[1:3]
        if height != width:
            raise ValueError(f"images are {height}x{width}, expected squares")
        group = self.batch_norm_group
        block = partial(_ConvBlock, batch_norm_group=group)
        bottleneck = computed_again(_Bottleneck, self.remat)
        plain = self.blocks[0] == 1
        rates = iter(drop_path_rates(self.drop_path, sum(self.blocks) - plain))

        def stage(index: int, features: int, expanded: int, blocks: int, x: Array):
            module = _Stage(
                features,
                expanded,
                drop_paths=tuple(next(rates) for _ in range(blocks)),
                batch_norm_group=group,
                remat=self.remat,
                name=f"layers_{index}",
            )
            return module(x, train, weight)

        unit, first = self.width, self.scale * self.width
        x = images.astype(self.dtype)
        x = block(first, size=3, stride=2, name="layers_0")(x, train, weight)
        if plain:
            x = block(first, size=3, groups=unit, name="layers_1")(x, train, weight)
        else:
            x = stage(1, first, 2 * unit, self.blocks[0], x)
        # Channels, expanded to where the map is halved, expanded to in the rest.
        stages = (
            (first, 2 * unit, 2 * unit),
            (2 * first, 4 * unit, 4 * unit),
            (2 * first, 8 * unit, 4 * unit),
        )
        for i, (features, halving, expanded) in enumerate(stages, start=1):
            x = bottleneck(
                features,
                halving,
                stride=2,
                residual=False,
                drop_path=0.0,
                batch_norm_group=group,
                name=f"layers_{2 * i}",
            )(x, train, weight)
            x = stage(2 * i + 1, features, expanded, self.blocks[i], x)

        x = block(8 * unit, name="conv_sep")(x, train, weight)
        head = _Head(self.embedding_dim, self.dropout, group, name="features")
        return head(x, train, weight)


MBF = partial(MobileFaceNet, blocks=(1, 4, 6, 2), scale=2)
MBFLarge = partial(MobileFaceNet, blocks=(2, 8, 12, 4), scale=4)
