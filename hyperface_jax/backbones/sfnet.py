"""SFNet, the networks of the SphereFace papers, in OpenSphere's two PyTorch layouts.

Four stages at 1/2, 1/4, 1/8, 1/16 of the input size; a stage is one stride-2
convolution and n residual blocks of two 3x3 convolutions; then one Linear. The number
in the name counts convolutions. Module names follow the state_dict: `layer2_1` is
`layer2.1`.
Sources: OpenSphere `model/backbone/sfnet.py` and `sfnet_deprecated.py` (branch v0).
"""

from functools import partial
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from hyperface_jax.backbones.batch_norm import BatchNorm
from hyperface_jax.backbones.layers import (
    KAIMING_FAN_OUT,
    XAVIER_NORMAL,
    Conv,
    DropPath,
    Initializer,
    computed_again,
    drop_path_rates,
    linear,
    relu,
)
from hyperface_jax.backbones.network import Network


class _ConvBlock(nn.Module):
    """First of a stage, halving the size: convolution, [BatchNorm], ReLU."""

    features: int
    norm: bool
    kernel_init: Initializer
    group: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, weight: Array | None) -> Array:
        x = Conv(
            self.features,
            stride=2,
            use_bias=not self.norm,
            kernel_init=self.kernel_init,
            name="conv1",
        )(x)
        if not self.norm:
            return relu(x)
        batch_norm = BatchNorm(group=self.group, name="bn1")
        return batch_norm(x, train=train, weight=weight, slope=0.0)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; ReLU after (older: before) the sum."""

    features: int
    norm: bool
    older_layout: bool
    kernel_init: Initializer
    drop_path: float
    group: int

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        conv = partial(
            Conv,
            self.features,
            use_bias=not self.norm,
            kernel_init=self.kernel_init,
        )
        norm = partial(BatchNorm, group=self.group)
        rest = {"train": train, "weight": weight}
        branch = conv(name="conv1")(x)
        if self.norm:
            branch = norm(name="bn1")(branch, **rest, slope=0.0)
        else:
            branch = relu(branch)
        branch = conv(name="conv2")(branch)
        if self.norm:
            branch = norm(name="bn2")(branch, **rest)
        drop_path = DropPath(self.drop_path)
        if self.older_layout:
            return x + drop_path(relu(branch), train=train)
        return relu(x + drop_path(branch, train=train))


class SFNet(Network, kw_only=True):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32; see `Network`.

    Attributes:
      blocks: residual blocks of each stage; the stages have 1, 2, 4, 8 times `width`
        channels.
      norm: BatchNorm after each convolution and on the embedding (never with
        `older_layout`).
      older_layout: OpenSphere's `*_deprecated`: ReLU before the sum, Xavier init.
    """

    blocks: tuple[int, int, int, int]
    norm: bool = False
    older_layout: bool = False

    flattened: ClassVar[str | None] = "fc"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """See `Backbone.apply`."""
        # OpenSphere's first release drew the residual convolutions of the older layout
        # from N(0, .01); Xavier everywhere is its later, published state.
        kernel_init = XAVIER_NORMAL if self.older_layout else KAIMING_FAN_OUT
        rates = iter(drop_path_rates(self.drop_path, sum(self.blocks)))
        x = images.astype(self.dtype)
        block = computed_again(_ResidualBlock, self.remat)
        for stage, blocks in enumerate(self.blocks):
            features = self.width * 2**stage
            layer = f"layer{stage + 1}"
            x = _ConvBlock(
                features,
                self.norm,
                kernel_init,
                self.batch_norm_group,
                name=f"{layer}_0",
            )(x, train=train, weight=weight)
            for i in range(blocks):
                x = block(
                    features,
                    self.norm,
                    self.older_layout,
                    kernel_init,
                    next(rates),
                    self.batch_norm_group,
                    name=f"{layer}_{i + 1}",
                )(x, train, weight)

        x = x.reshape(x.shape[0], -1)  # order H, W, C
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = linear(self.embedding_dim, x.shape[-1], name="fc")(x)
        if self.norm:
            batch_norm = BatchNorm(group=self.batch_norm_group, name="features")
            x = batch_norm(x, train=train, weight=weight)
        return x


SFNet4 = partial(SFNet, blocks=(0, 0, 0, 0))
SFNet10 = partial(SFNet, blocks=(0, 1, 2, 0))
SFNet20 = partial(SFNet, blocks=(1, 2, 4, 1))
SFNet36 = partial(SFNet, blocks=(2, 4, 8, 2))
SFNet64 = partial(SFNet, blocks=(3, 8, 16, 3))
