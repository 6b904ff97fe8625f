"""Smooth scalar fields over the face surface, shared by shape and albedo.

The faces built from these fields are procedural and depict nobody.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 unless a docstring says otherwise


def bump(x: Array, y: Array, cx: float, cy: float, sx: float, sy: float) -> Array:
    """Gaussian of height 1 at (cx, cy) with standard deviations sx, sy (mm)."""
    dx = (x - np.float32(cx)) * np.float32(1.0 / sx)
    dy = (y - np.float32(cy)) * np.float32(1.0 / sy)
    return np.exp(np.float32(-0.5) * (dx * dx + dy * dy))


def pair(x: Array, y: Array, cx: float, cy: float, sx: float, sy: float) -> Array:
    """Two mirrored bumps at (+-cx, cy)."""
    return bump(np.abs(x), y, cx, cy, sx, sy)


def ramp(value: Array, low: float, high: float) -> Array:
    """Smoothstep: 0 at `low`, 1 at `high` (`low` may exceed `high`)."""
    t = np.clip((value - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1)
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


def box_blur(field: Array, radius: int) -> Array:
    """Separable box mean of a 2-D field with edge padding; same shape, float32."""
    out = field.astype(np.float64)
    width = 2 * radius + 1
    for axis in (0, 1):
        pads = [(0, 0), (0, 0)]
        pads[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(out, pads, mode="edge"), axis=axis)
        upper = np.take(total, range(width, total.shape[axis]), axis=axis)
        lower = np.take(total, range(0, total.shape[axis] - width), axis=axis)
        out = (upper - lower) / width
    return out.astype(np.float32)


def value_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]
) -> Array:
    """Bilinear noise, standard normal at the lattice; float32[shape]."""
    lattice = rng.standard_normal((cells[0] + 1, cells[1] + 1)).astype(np.float32)
    return upsample(lattice, shape)


def upsample(lattice: Array, shape: tuple[int, int]) -> Array:
    """Bilinear interpolation of lattice [a, b, ...] to [*shape, ...]."""
    rows = _linear_weights(lattice.shape[0], shape[0])
    cols = _linear_weights(lattice.shape[1], shape[1])
    flat = rows @ lattice.reshape(lattice.shape[0], -1)
    out = cols @ flat.reshape(shape[0], lattice.shape[1], -1)
    return out.reshape(*shape, *lattice.shape[2:])


@functools.lru_cache(maxsize=64)
def _linear_weights(source: int, target: int) -> Array:
    """Matrix float32[target, source] of linear-interpolation weights."""
    position = np.linspace(0, source - 1, target, dtype=np.float32)
    nodes = np.arange(source, dtype=np.float32)
    weights = np.clip(1 - np.abs(position[:, None] - nodes[None, :]), 0, 1)
    weights.flags.writeable = False  # shared through the cache
    return weights
