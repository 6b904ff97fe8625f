"""Backbones: face images in, embeddings out. The only package that imports flax.linen.

    backbone = create_backbone("iresnet50", dtype="bfloat16")
    params, batch_stats = backbone.init(jax.random.key(0), image_size=112)
    embeddings, batch_stats = backbone.apply(params, batch_stats, images, train=True)

Everything outside sees `init` and `apply`, two pure functions of pytrees of arrays; the
Linen module behind them is private.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperface_jax.backbones.ir import IR18, IR34, IR50, IR100
from hyperface_jax.backbones.iresnet import (
    IResNet18,
    IResNet34,
    IResNet50,
    IResNet100,
    IResNet200,
)
from hyperface_jax.backbones.mobilefacenet import MBF, MBFLarge
from hyperface_jax.backbones.network import Network, as_trained, check_input
from hyperface_jax.backbones.sfnet import SFNet4, SFNet10, SFNet20, SFNet36, SFNet64
from hyperface_jax.backbones.vit import ViT, ViTB, ViTH, ViTL, ViTS, ViTT

__all__ = ["BACKBONES", "DTYPES", "Backbone", "create_backbone"]

DTYPES = ("float32", "bfloat16")

Tree = Mapping[str, Any]

BACKBONES: dict[str, Callable[..., Network]] = {
    "sfnet4": SFNet4,
    "sfnet10": SFNet10,
    "sfnet20": SFNet20,
    "sfnet36": SFNet36,
    "sfnet64": SFNet64,
    "sfnet4_bn": partial(SFNet4, norm=True),
    "sfnet10_bn": partial(SFNet10, norm=True),
    "sfnet20_bn": partial(SFNet20, norm=True),
    "sfnet36_bn": partial(SFNet36, norm=True),
    "sfnet64_bn": partial(SFNet64, norm=True),
    "sfnet4_deprecated": partial(SFNet4, older_layout=True),
    "sfnet10_deprecated": partial(SFNet10, older_layout=True),
    "sfnet20_deprecated": partial(SFNet20, older_layout=True),
    "sfnet36_deprecated": partial(SFNet36, older_layout=True),
    "sfnet64_deprecated": partial(SFNet64, older_layout=True),
    "iresnet18": IResNet18,
    "iresnet34": IResNet34,
    "iresnet50": IResNet50,
    "iresnet100": IResNet100,
    "iresnet200": IResNet200,
    "ir18": IR18,
    "ir34": IR34,
    "ir50": IR50,
    "ir100": IR100,
    "mbf": MBF,
    "mbf_large": MBFLarge,
    "vit_t": ViTT,
    "vit_s": ViTS,
    "vit_b": ViTB,
    "vit_l": ViTL,
    "vit_h": ViTH,
}
"""Name -> constructor of the network, taking the keywords of `create_backbone`.

`_bn`: with BatchNorm. `_deprecated`: OpenSphere's older layout, the one of all its
VGGFace2 recipes. `iresnet`: InsightFace's; `ir`: AdaFace's and CurricularFace's.
"""


@dataclass(frozen=True)
class Backbone:
    """A network as two pure functions.

    Attributes:
      name: key in `BACKBONES`.
      embedding_dim: D.
      module: the Linen module; private to this package.
      needs_key: training draws random numbers (dropout, stochastic depth, masking).
      frozen: paths of parameters that get no gradient, e.g. ("features", "scale"). An
        optimizer must leave them alone: weight decay would shrink them all the same.
      color_order: in which the weights take the channels; images are RGB all the same.
      value_range: that the weights take; images are in [-1, 1] all the same.
    """

    name: str
    embedding_dim: int
    module: Network
    needs_key: bool = False
    frozen: tuple[tuple[str, ...], ...] = ()
    color_order: str = "RGB"
    value_range: tuple[float, float] = (-1.0, 1.0)

    def init(self, key: Array, image_size: int) -> tuple[Tree, Tree]:
        """Fresh parameters and batch statistics, all float32.

        Works under `jax.eval_shape` and `jax.jit` (with `image_size` static).

        Args:
          key: PRNG key.
          image_size: height and width of the images, a multiple of 16; for a ViT any
            from 9.

        Returns:
          (params, batch_stats), nested dicts; batch_stats is {} without BatchNorm.
        """
        self._positions(image_size, image_size)
        image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        # Lazy: no convolution runs, only the initialisers.
        module: Any = self.module  # Linen does not know the types of what it returns
        variables = module.lazy_init({"params": key}, image, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(
        self,
        params: Tree,
        batch_stats: Tree,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        weight: Float[Array, " B"] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B D"], Tree]:
        """Embeds images.

        Args:
          params: as from `init` for this image size.
          batch_stats: running statistics, {} without BatchNorm.
          images: RGB, floating, normalised to [-1, 1].
          train: batch statistics and what is random instead of evaluation.
          weight: in training, images of weight 0 take no part in batch statistics.
          key: PRNG key; in training required where `needs_key`, otherwise unused.

        Returns:
          (embeddings float32 [B, D], not normalised; the new batch_stats, of the same
          tree structure, which are the old ones without training).
        """
        self._check_images(params, images, weight)
        images = as_trained(images, self.color_order, self.value_range)
        variables = {"params": params, "batch_stats": batch_stats}
        module: Any = self.module
        if not train:
            return module.apply(variables, images, train=False), batch_stats
        if self.needs_key and key is None:
            raise ValueError(
                f"{self.name} has dropout, drop_path or mask_ratio: training needs a "
                "key, got None"
            )
        embeddings, changed = module.apply(
            variables,
            images,
            train=True,
            weight=weight,
            rngs={"dropout": key} if self.needs_key else None,
            mutable=["batch_stats"],
        )
        return embeddings, changed.get("batch_stats", {})

    def _check_images(self, params: Tree, images: Array, weight: Array | None) -> None:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images are {list(images.shape)}, expected [B, H, W, 3]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}, expected floating values in [-1, 1]"
            )
        batch, height, width, _ = images.shape
        found, expected = self._positions(height, width), self.module.positions(params)
        if found != expected:
            raise ValueError(
                f"images are {height}x{width}, {found} pixels of the last map, the "
                f"parameters of {self.name} are for {expected}"
            )
        if weight is not None and weight.shape != (batch,):
            raise ValueError(f"weight is {list(weight.shape)}, expected [{batch}]")

    def _positions(self, height: int, width: int) -> int:
        """Pixels of the last map of images that the network can take."""
        stride, any_size = self.module.stride, self.module.any_size
        whole = any_size or not (height % stride or width % stride)
        if min(height, width) < stride or not whole:
            what = f"at least {stride}" if any_size else f"multiples of {stride}"
            raise ValueError(f"image size is {height}x{width}, expected {what}")
        return (height // stride) * (width // stride)


def create_backbone(
    name: str,
    *,
    embedding_dim: int = 512,
    width: int = 64,
    dtype: str = "float32",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    mask_ratio: float = 0.0,
    batch_norm_group: int = 0,
    remat: bool = False,
    batch_norm_epsilon: float = 1e-5,
    color_order: str = "RGB",
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Backbone:
    """Looks up a network of `BACKBONES` and sets its size.

    Args:
      name: key in `BACKBONES`.
      embedding_dim: D.
      width: channels of the first stage, the others have 2, 4, 8 times as many; 64 is
        the published network. MobileFaceNet and ViT: all channels are proportional.
      dtype: "float32" or "bfloat16", of the computation. Parameters, statistics and the
        embedding are float32 in both.
      dropout: rate in [0, 1) before the Linear.
      drop_path: stochastic-depth rate in [0, 1) of the last residual block, growing
        linearly from 0 at the first.
      mask_ratio: share in [0, 1) of a ViT's tokens that training leaves out; the other
        networks have no tokens.
      batch_norm_group: BatchNorm's statistics are those of so many images in a row, as
        in PyTorch on devices of that batch; 0 takes the whole batch.
      remat: compute residual blocks again in the backward pass instead of keeping
        their inside: less memory, a third more work, the same numbers.
      batch_norm_epsilon: added to variances; other than 1e-5 (MagFace) for IResNet.
      color_order: "RGB", or "BGR" for weights that were trained so.
      value_range: of the pixels that the weights take.
    """
    if name not in BACKBONES:
        raise ValueError(
            f"backbone is {name!r}, expected one of {', '.join(BACKBONES)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    for field, value in {"embedding_dim": embedding_dim, "width": width}.items():
        if value < 1:
            raise ValueError(f"{field} is {value}, expected at least 1")
    rates = {"dropout": dropout, "drop_path": drop_path, "mask_ratio": mask_ratio}
    for field, value in rates.items():
        if not 0 <= value < 1:
            raise ValueError(f"{field} is {value}, expected at least 0 and below 1")
    check_input(color_order, value_range)
    module = BACKBONES[name](
        embedding_dim=embedding_dim,
        width=width,
        dtype=jnp.dtype(dtype),
        dropout=dropout,
        drop_path=drop_path,
        batch_norm_group=batch_norm_group,
        remat=remat,
        batch_norm_epsilon=batch_norm_epsilon,
    )
    if batch_norm_epsilon != 1e-5 and not module.any_epsilon:
        raise ValueError(
            f"batch_norm_epsilon is {batch_norm_epsilon}, expected 1e-05 for {name}"
        )
    if mask_ratio > 0:
        if not isinstance(module, ViT):
            raise ValueError(
                f"mask_ratio is {mask_ratio}, expected 0: {name} has no tokens"
            )
        module = module.clone(mask_ratio=mask_ratio)
    return Backbone(
        name=name,
        embedding_dim=embedding_dim,
        module=module,
        needs_key=any(rates.values()),
        frozen=module.frozen,
        color_order=color_order,
        value_range=value_range,
    )
