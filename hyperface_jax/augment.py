"""Normalisation and augmentation on the device: pure functions with a random key.

`make_augment` is called inside the train step: uint8 in, float in [-1, 1] out. Each
example has its own key, so the result does not depend on how a batch is sharded.
Probabilities and ranges of crop, low resolution and photometric change are those of
AdaFace's augmenter (CVPR 2022, repository mk-minchul/AdaFace) at p = .2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hyperface_jax import resample

# Rec. 601 luma, what Pillow and torchvision use for grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentSettings:
    """Each is a probability an image, or a range; 0 switches an operation off.

    Attributes:
      flip: probability of a mirror image.
      shift: largest shift in x and in y, as a share of the side (uniform).
      scale: largest relative change of size (uniform in 1 ± scale).
      rotate: largest rotation in degrees (uniform).
      erase: probability that a random rectangle becomes grey.
      crop: probability that all but a random crop becomes black.
      low_resolution: probability of shrinking to .2-1 of the side and back.
      photometric: probability of changes of brightness, contrast and saturation.
      grey: probability of losing all colour.
    """

    flip: float = 0.5
    shift: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    erase: float = 0.0
    crop: float = 0.0
    low_resolution: float = 0.0
    photometric: float = 0.0
    grey: float = 0.0


def normalize(images: Array) -> Array:
    """uint8 [..., 3] RGB -> float32 in [-1, 1]: (x - 127.5)/127.5."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def make_augment(settings: AugmentSettings) -> Callable[[Array, Array], Array]:
    """(key, uint8 [B, H, W, 3]) -> float32 [B, H, W, 3] in [-1, 1], H = W.

    Operations that are off are not traced.
    """
    steps: list[Callable[[Array, Array], Array]] = []
    if settings.crop:
        steps.append(_sometimes(settings.crop, random_crop_mask))
    if settings.low_resolution:
        steps.append(_sometimes(settings.low_resolution, low_resolution))
    if settings.photometric:
        steps.append(_sometimes(settings.photometric, photometric))
    if settings.grey:
        steps.append(_sometimes(settings.grey, lambda key, image: grey(image)))
    if settings.shift or settings.scale or settings.rotate:
        steps.append(
            lambda key, image: random_similarity(
                key, image, settings.shift, settings.scale, settings.rotate
            )
        )
    if settings.erase:
        steps.append(_sometimes(settings.erase, random_erase))
    if settings.flip:
        steps.append(_sometimes(settings.flip, lambda key, image: image[:, ::-1]))

    def one(key: Array, image: Array) -> Array:
        image = image.astype(jnp.float32)
        for index, step in enumerate(steps):
            image = step(jax.random.fold_in(key, index), image)
        return normalize(image)

    def augment(key: Array, images: Array) -> Array:
        if not steps:
            return normalize(images)
        return jax.vmap(one)(jax.random.split(key, images.shape[0]), images)

    return augment


def _sometimes(probability: float, operation):
    """Applies `operation` to an image with the given probability."""

    def step(key: Array, image: Array) -> Array:
        chance, inner = jax.random.split(key)
        applied = operation(inner, image)
        return jnp.where(jax.random.bernoulli(chance, probability), applied, image)

    return step


def grey(image: Array) -> Array:
    """Luma in all three channels; float [H, W, 3] in 0..255."""
    luma = jnp.tensordot(image, jnp.asarray(_LUMA, image.dtype), 1)
    return jnp.broadcast_to(luma[..., None], image.shape)


def photometric(key: Array, image: Array) -> Array:
    """Brightness, contrast and saturation times U(.5, 1.5) each, in random order."""
    factor_key, order_key = jax.random.split(key)
    factors = jax.random.uniform(factor_key, (3,), minval=0.5, maxval=1.5)

    def blend(other, factor):
        return lambda x: jnp.clip(factor * x + (1 - factor) * other(x), 0, 255)

    operations = [
        blend(jnp.zeros_like, factors[0]),
        blend(lambda x: jnp.broadcast_to(jnp.mean(grey(x)), x.shape), factors[1]),
        blend(grey, factors[2]),
    ]
    for index in jax.random.permutation(order_key, 3):
        image = jax.lax.switch(index, operations, image)
    return image


def _random_box(key: Array, size: int, area: tuple, ratio: tuple) -> Array:
    """Boolean [size, size], True in a random box of the given share and aspect."""
    keys = jax.random.split(key, 4)
    share = jax.random.uniform(keys[0], minval=area[0], maxval=area[1])
    log_ratio = jax.random.uniform(
        keys[1], minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
    )
    side = size * jnp.sqrt(share)
    width = jnp.clip(side * jnp.exp(0.5 * log_ratio), 1, size)
    height = jnp.clip(side * jnp.exp(-0.5 * log_ratio), 1, size)
    left = jax.random.uniform(keys[2]) * (size - width)
    top = jax.random.uniform(keys[3]) * (size - height)
    at = jnp.arange(size) + 0.5
    columns = (at >= left) & (at < left + width)
    rows = (at >= top) & (at < top + height)
    return rows[:, None] & columns[None, :]


def random_crop_mask(key: Array, image: Array) -> Array:
    """Black outside a random box (area .2-1, aspect 3/4-4/3), the box in its place."""
    box = _random_box(key, image.shape[0], (0.2, 1.0), (3 / 4, 4 / 3))
    return jnp.where(box[..., None], image, 0)


def random_erase(key: Array, image: Array) -> Array:
    """Mid-grey inside a random box (area .02-.25, aspect .3-3.3)."""
    box = _random_box(key, image.shape[0], (0.02, 0.25), (0.3, 3.3))
    return jnp.where(box[..., None], 127.5, image)


def low_resolution(key: Array, image: Array) -> Array:
    """Shrinks to a side of U(.2, 1)·H and back, each with a random interpolation."""
    size = image.shape[0]
    side_key, down_key, up_key = jax.random.split(key, 3)
    share = jax.random.uniform(side_key, minval=0.2, maxval=1.0)
    side = jnp.maximum(jnp.floor(share * size), 1)
    methods = len(resample.METHODS)
    down = resample.resize_matrix(
        jax.random.randint(down_key, (), 0, methods), size, side, size
    )
    up = resample.resize_matrix(
        jax.random.randint(up_key, (), 0, methods), side, size, size
    )
    both = up @ down  # [H, H]: shrinking and growing is one linear map a side
    result = jnp.einsum("ij,jkc,lk->ilc", both, image, both)
    return jnp.clip(result, 0, 255)


def random_similarity(
    key: Array, image: Array, shift: float, scale: float, rotate: float
) -> Array:
    """Random shift, scale and rotation about the centre; bilinear, edges repeated."""
    size = image.shape[0]
    draw = jax.random.uniform(key, (4,), minval=-1, maxval=1)
    angle = jnp.deg2rad(rotate) * draw[0]
    factor = 1 / (1 + scale * draw[1])
    centre = (size - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    y, x = y - centre, x - centre
    source_y = factor * (jnp.cos(angle) * y - jnp.sin(angle) * x)
    source_x = factor * (jnp.sin(angle) * y + jnp.cos(angle) * x)
    return resample.bilinear(
        image,
        source_y + centre + shift * size * draw[2],
        source_x + centre + shift * size * draw[3],
    )
