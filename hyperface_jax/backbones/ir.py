"""IR, the residual network of AdaFace, CurricularFace, TFace and CVLface.

The body of `iresnet` but for two things: where a block keeps the number of channels its
shortcut has no parameters, also in the first stage, and the BatchNorm on the embedding
has neither scale nor bias. Published weights of AdaFace expect the channels in the
order blue, green, red and were trained with dropout 0.4. Here the embedding keeps its
norm, where AdaFace's code returns direction and norm apart.

Module names follow the state_dict: `body_3/res_layer_1` is `body.3.res_layer.1`.
Source: AdaFace `net.py`, mode "ir", whose IR_101 is `ir100` here. Its 152 and 200 are
of another, bottlenecked kind and not here.
"""

from functools import partial
from typing import ClassVar

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


class _Block(nn.Module):
    """BN, conv, BN, PReLU, strided conv, BN, plus the shortcut; nothing after the sum.

    The shortcut is a 1x1 convolution with BatchNorm where the number of channels
    changes, otherwise every `stride`-th pixel: a maximum over one pixel.
    """

    features: int
    stride: int
    drop_path: float
    group: int

    @nn.compact
    def __call__(self, x: Array, train: bool, weight: Array | None) -> Array:
        def norm(name: str, y: Array, **settings) -> Array:
            batch_norm = BatchNorm(group=self.group, name=name)
            return batch_norm(y, train=train, weight=weight, **settings)

        branch = norm("res_layer_0", x)
        branch = Conv(self.features, name="res_layer_1")(branch)
        slope = PReLU(name="res_layer_3")(self.features)
        branch = norm("res_layer_2", branch, slope=slope)
        branch = Conv(self.features, stride=self.stride, name="res_layer_4")(branch)
        branch = norm("res_layer_5", branch)
        if x.shape[-1] == self.features:
            x = x[:, :: self.stride, :: self.stride]
        else:
            conv = partial(Conv, self.features, size=1, stride=self.stride)
            x = norm("shortcut_layer_1", conv(name="shortcut_layer_0")(x))
        return x + DropPath(self.drop_path)(branch, train=train)


class IR(Network, kw_only=True):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32; see `Network`.

    Attributes:
      blocks: residual blocks of each stage; the stages have 1, 2, 4, 8 times `width`
        channels, the stem `width`.
    """

    blocks: tuple[int, int, int, int]

    flattened: ClassVar[str | None] = "output_layer_3"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """See `Backbone.apply`."""
        norm = partial(BatchNorm, group=self.batch_norm_group)
        x = Conv(self.width, name="input_layer_0")(images.astype(self.dtype))
        slope = PReLU(name="input_layer_2")(self.width)
        x = norm(name="input_layer_1")(x, train=train, weight=weight, slope=slope)
        rates = drop_path_rates(self.drop_path, sum(self.blocks))
        block = computed_again(_Block, self.remat)
        places = [(s, i) for s, blocks in enumerate(self.blocks) for i in range(blocks)]
        for index, (stage, i) in enumerate(places):
            x = block(
                self.width * 2**stage,
                stride=1 if i else 2,
                drop_path=rates[index],
                group=self.batch_norm_group,
                name=f"body_{index}",
            )(x, train, weight)

        x = norm(name="output_layer_0")(x, train=train, weight=weight)
        x = x.reshape(x.shape[0], -1)  # order H, W, C
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = linear(
            self.embedding_dim,
            x.shape[-1],
            name="output_layer_3",
            kernel_init=KAIMING_FAN_OUT,
            bias_init=nn.initializers.zeros,
        )(x)
        last = norm(use_scale=False, use_bias=False, name="output_layer_4")
        return last(x, train=train, weight=weight)


IR18 = partial(IR, blocks=(2, 2, 2, 2))
IR34 = partial(IR, blocks=(3, 4, 6, 3))
IR50 = partial(IR, blocks=(3, 4, 14, 3))
IR100 = partial(IR, blocks=(3, 13, 30, 3))
