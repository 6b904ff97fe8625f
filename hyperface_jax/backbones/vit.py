"""ViT, the vision transformer of InsightFace, without a class token.

Patches of 9x9 pixels, the last 4 of 112 unused, make 12x12 tokens; a learnt position is
added; blocks of 8-headed attention and an MLP with ReLU6 follow, each behind a
LayerNorm; the last LayerNorm's tokens side by side go through two Linears without bias,
each with BatchNorm.

| name  | channels, blocks | million parameters | drop_path / mask_ratio published |
|-------|------------------|--------------------|----------------------------------|
| vit_t | 256, 12          | 19.1               | .1 / .1; WebFace42M .05 / 0      |
| vit_s | 512, 12          | 76.0               | .1 / .1; WebFace42M .05 / 0      |
| vit_b | 512, 24          | 113.8              | .1 / .1; WebFace42M .05 / .05    |
| vit_l | 768, 24          | 255.7              | WebFace42M .05 / .05             |
| vit_h | 1024, 48         | 756.4              | WebFace42M .1 / 0                |

Masking (He, 2022): in training every image loses a random share `mask_ratio` of its
tokens before the blocks, and after them a learnt token stands in their places. The
official code passes the ratio on to nobody and always drops a tenth where it is not 0
(so for .1 as here, and .05 trained as .1); here the ratio is the one asked for.

Module names follow the state_dict: `blocks_0/attn/qkv` is `blocks.0.attn.qkv`.
Source: InsightFace `recognition/arcface_torch`, `vit.py`. N tokens, C channels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from hyperface_jax.backbones.batch_norm import BatchNorm
from hyperface_jax.backbones.layers import (
    TORCH_LINEAR,
    Conv,
    DropPath,
    computed_again,
    drop_path_rates,
    linear,
    per_channel,
    relu,
)
from hyperface_jax.backbones.network import Network

# timm cuts this normal distribution at ±2, a hundred standard deviations.
_INIT = nn.initializers.normal(0.02)


def relu6(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """min(max(x, 0), 6), its slope at 0 and at 6 is 0; NaN stays NaN."""
    return jnp.where(x >= 6, 6, relu(x))


class LayerNorm(nn.Module):
    """Normalises each token over its channels (Ba, 2016), in float32.

    Params `scale`, `bias` [C]. Computed again in the backward pass, as `BatchNorm`.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Same shape as `x`, of the module's dtype."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)

        @jax.checkpoint
        def normalise(x, scale, bias):
            x = x.astype(jnp.float32)
            centred = x - jnp.mean(x, axis=-1, keepdims=True)
            var = jnp.mean(centred * centred, axis=-1, keepdims=True)
            y = centred * jax.lax.rsqrt(var + 1e-5)
            y = y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)
            return y.astype(self.dtype)

        return normalise(x, scale, bias)


class _Linear(nn.Module):
    """Linear layer in the dtype of its input, the bias added in float32."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", _INIT, shape, jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            shape = (self.features,)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            y = (y.astype(jnp.float32) + per_channel(bias, y.ndim)).astype(x.dtype)
        return y


@jax.checkpoint
def attention(qkv: Float[Array, "B N 3 heads c"]) -> Float[Array, "B N heads c"]:
    """softmax(q·k / √c)·v of each head, dtype of the input, the softmax in float32.

    The backward pass computes the [B, heads, N, N] weights again from q, k and v.
    """
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


class _Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, channels = x.shape
        qkv = _Linear(3 * channels, use_bias=False, name="qkv")(x)
        y = attention(qkv.reshape(batch, tokens, 3, self.heads, -1))
        return _Linear(channels, name="proj")(y.reshape(x.shape))


class _MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = relu6(_Linear(4 * x.shape[-1], name="fc1")(x))
        return _Linear(x.shape[-1], name="fc2")(y)


class _Block(nn.Module):
    """LayerNorm, attention, sum; LayerNorm, MLP, sum."""

    heads: int
    drop_path: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _Attention(self.heads, name="attn")(LayerNorm(x.dtype, name="norm1")(x))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = _MLP(name="mlp")(LayerNorm(x.dtype, name="norm2")(x))
        return x + DropPath(self.drop_path)(y, train=train)


class _PatchEmbed(nn.Module):
    channels: int
    patch: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = Conv(
            self.channels,
            size=self.patch,
            stride=self.patch,
            padding=0,
            use_bias=True,
            kernel_init=TORCH_LINEAR,
            name="proj",
        )(images)
        return x.reshape(x.shape[0], -1, self.channels)  # order H, W


def shuffled(key: Array, batch: int, tokens: int) -> Array:
    """[B, N]: for each example the numbers of its tokens in random order."""
    return jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=1)


def restored(
    kept: Float[Array, "B K C"], order: Array, filling: Float[Array, "1 1 C"]
) -> Float[Array, "B N C"]:
    """Puts tokens order[:, :K] [B, N] back in their places, `filling` in the others."""
    missing = order.shape[1] - kept.shape[1]
    fill = jnp.broadcast_to(filling, (kept.shape[0], missing, kept.shape[2]))
    every = jnp.concatenate([kept, fill], axis=1)
    return jnp.take_along_axis(every, jnp.argsort(order, axis=1)[:, :, None], axis=1)


class ViT(Network, kw_only=True):
    """Images [B, H, W, 3] -> embeddings [B, embedding_dim] float32; see `Network`.

    Attributes:
      channels: of a token where `width` is 64; in general channels·width // 64, a
        multiple of `heads`.
      depth: blocks.
      heads: of the attention.
      mask_ratio: share of the tokens that are left out in training.
    """

    channels: int
    depth: int
    heads: int = 8
    mask_ratio: float = 0.0

    stride: ClassVar[int] = 9
    any_size: ClassVar[bool] = True

    def __post_init__(self):
        """Refuses a width that does not fit the heads."""
        channels = self.channels * self.width // 64
        if channels < 1 or channels % self.heads:
            raise ValueError(
                f"width is {self.width}, which makes {channels} channels a token, "
                f"expected a multiple of the {self.heads} heads"
            )
        super().__post_init__()

    @nn.nowrap
    def positions(self, params: Mapping[str, Any]) -> int:
        """Tokens that the parameters are for."""
        return params["pos_embed"].shape[1]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """See `Backbone.apply`."""
        channels = self.channels * self.width // 64
        embed = _PatchEmbed(channels, self.stride, name="patch_embed")
        x = embed(images.astype(self.dtype))
        batch, tokens = x.shape[:2]
        position = self.param("pos_embed", _INIT, (1, tokens, channels), jnp.float32)
        mask_token = self.param("mask_token", _INIT, (1, 1, channels), jnp.float32)
        x = (x.astype(jnp.float32) + position).astype(self.dtype)

        order = None
        if train and self.mask_ratio > 0:
            order = shuffled(self.make_rng("dropout"), batch, tokens)
            kept = max(1, int(tokens * (1 - self.mask_ratio)))
            x = jnp.take_along_axis(x, order[:, :kept, None], axis=1)
        block = computed_again(_Block, self.remat)
        for i, drop_path in enumerate(drop_path_rates(self.drop_path, self.depth)):
            x = block(self.heads, drop_path, name=f"blocks_{i}")(x, train)
        x = LayerNorm(jnp.dtype("float32"), name="norm")(x)
        if order is not None:
            x = restored(x, order, mask_token)

        x = x.reshape(batch, tokens * channels)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        dense = partial(linear, use_bias=False, kernel_init=_INIT)
        norm = partial(BatchNorm, epsilon=2e-5, group=self.batch_norm_group)
        x = dense(channels, x.shape[-1], name="feature_0")(x)
        x = norm(name="feature_1")(x, train=train, weight=weight)
        x = dense(self.embedding_dim, channels, name="feature_2")(x)
        return norm(name="feature_3")(x, train=train, weight=weight)


ViTT = partial(ViT, channels=256, depth=12)
ViTS = partial(ViT, channels=512, depth=12)
ViTB = partial(ViT, channels=512, depth=24)
ViTL = partial(ViT, channels=768, depth=24)
ViTH = partial(ViT, channels=1024, depth=48)
