"""Resampling as linear algebra: sizes and methods may be traced values.

Pixel centres are at half integers, as in OpenCV: output i reads the input at
(i + .5)·n_in/n_out - .5, edges repeated, no anti-aliasing except for "area".
"""

import jax.numpy as jnp
from jaxtyping import Array

from hyperface_jax.geometry import Scalar

METHODS = ("nearest", "linear", "area", "cubic", "lanczos4")


def resize_matrix(method: Scalar, n_in: Scalar, n_out: Scalar, size: int) -> Array:
    """[size, size] matrix that maps n_in samples to n_out; rows beyond n_out are 0.

    Args:
      method: index into `METHODS`, may be traced.
      n_in: number of input samples, at most `size`, may be traced.
      n_out: number of output samples, at most `size`, may be traced.
      size: static size of the matrix.

    Returns:
      float32 with rows summing to 1 (those below n_out).
    """
    i = jnp.arange(size, dtype=jnp.float32)[:, None]
    j = jnp.arange(size, dtype=jnp.float32)[None, :]
    step = n_in / n_out
    at = (i + 0.5) * step - 0.5
    nearest = (jnp.clip(jnp.floor(i * step), 0, n_in - 1) == j).astype(jnp.float32)
    linear = _taps(at, j, n_in, range(0, 2), lambda d: jnp.maximum(1 - jnp.abs(d), 0))
    overlap = jnp.minimum((i + 1) * step, j + 1) - jnp.maximum(i * step, j)
    # "area" averages when shrinking and is "linear" when growing, as in OpenCV.
    area = jnp.where(step > 1, jnp.maximum(overlap, 0) / step, linear)
    cubic = _taps(at, j, n_in, range(-1, 3), _cubic_kernel)
    lanczos = _taps(at, j, n_in, range(-3, 5), _lanczos4_kernel)
    lanczos = lanczos / jnp.sum(lanczos, axis=1, keepdims=True)
    matrix = jnp.stack([nearest, linear, area, cubic, lanczos])[method]
    return jnp.where((i < n_out) & (j < n_in), matrix, 0)


def _taps(at: Array, j: Array, n_in: Scalar, offsets: range, kernel) -> Array:
    """Sums kernel(distance) into the column of each tap, repeated at the edges."""
    base = jnp.floor(at)
    total = jnp.zeros(jnp.broadcast_shapes(at.shape, j.shape), jnp.float32)
    for offset in offsets:
        tap = base + offset
        column = jnp.clip(tap, 0, n_in - 1)
        total += jnp.where(column == j, kernel(at - tap), 0)
    return total


def _cubic_kernel(d: Array, a: float = -0.75) -> Array:
    d = jnp.abs(d)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return jnp.where(d <= 1, near, jnp.where(d < 2, far, 0))


def _lanczos4_kernel(d: Array) -> Array:
    return jnp.where(jnp.abs(d) < 4, jnp.sinc(d) * jnp.sinc(d / 4), 0)


def bilinear(image: Array, y: Array, x: Array) -> Array:
    """Image [H, W, C] at real coordinates y, x [h, w]; edges repeated."""
    height, width = image.shape[:2]
    y = jnp.clip(y, 0, height - 1)
    x = jnp.clip(x, 0, width - 1)
    top = jnp.floor(y).astype(jnp.int32)
    left = jnp.floor(x).astype(jnp.int32)
    bottom = jnp.minimum(top + 1, height - 1)
    right = jnp.minimum(left + 1, width - 1)
    dy, dx = (y - top)[..., None], (x - left)[..., None]
    upper = image[top, left] * (1 - dx) + image[top, right] * dx
    lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
    return upper * (1 - dy) + lower * dy
