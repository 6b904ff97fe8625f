"""Point splatting with a depth buffer.

Vertices are denser than pixels, so that each covers 2x2 pixels and no triangles
are needed. Depth and vertex number share one int32 key, whose maximum per pixel
is the nearest vertex: no sorting and no loop over points.
"""

import numpy as np

from hyperface_jax.data.synth.fields import Array

_ID_BITS = 16
_DEPTH_LEVELS = 2 ** (31 - _ID_BITS) - 2
_DEPTH_RANGE = (-260.0, 220.0)  # mm
_CELLS = 128  # side of the shadow buffer, 3 mm each


def splat(x: Array, y: Array, depth: Array, size: int) -> np.ndarray:
    """Nearest vertex of each pixel: int32[size, size], -1 where there is none.

    `x`, `y` float32[n] in pixels, `depth` float32[n] in mm, larger is nearer;
    n must be below 65536.
    """
    if len(x) >= 2**_ID_BITS:
        raise ValueError(f"{len(x)} vertices exceed {2**_ID_BITS}")
    inside = (x > -0.5) & (x < size + 0.5) & (y > -0.5) & (y < size + 0.5)
    number = np.flatnonzero(inside).astype(np.int32)
    low, high = _DEPTH_RANGE
    scale = np.float32(_DEPTH_LEVELS / (high - low))
    level = (depth[number] - np.float32(low)) * scale
    key = np.clip(level, 1, _DEPTH_LEVELS).astype(np.int32) << _ID_BITS
    key |= number
    # One pixel of border on every side takes what falls just outside.
    stride = size + 2
    column = (x[number] + np.float32(0.5)).astype(np.int32)
    row = (y[number] + np.float32(0.5)).astype(np.int32)
    cell = row * stride + column
    buffer = np.zeros(stride * stride, np.int32)
    for step in (0, 1, stride, stride + 1):
        np.maximum.at(buffer, cell + step, key)
    nearest = _close_gaps(buffer.reshape(stride, stride))[1:-1, 1:-1]
    return np.where(nearest > 0, nearest & (2**_ID_BITS - 1), -1)


def _close_gaps(key: np.ndarray) -> np.ndarray:
    """Fill pixels that lie behind both of two opposite neighbours, in place.

    Stretched parts of the surface leave gaps of one or two pixels, through which
    the background or the far side would shine; outlines do not grow.
    """
    for before, after in ((1, 1), (1, 2), (2, 1)):
        reach = before + after
        across = np.minimum(key[:, :-reach], key[:, reach:])
        np.maximum(key[:, before:-after], across, out=key[:, before:-after])
        along = np.minimum(key[:-reach], key[reach:])
        np.maximum(key[before:-after], along, out=key[before:-after])
    return key


def shadow(
    points: Array, receivers: np.ndarray, light: Array, bias: float = 7.0
) -> Array:
    """Light 0..1 reaching the points float32[3, n] numbered `receivers`.

    A depth buffer seen from the unit vector `light`, in cells of 3 mm; a point
    more than `bias` mm behind the nearest one of its cell lies in shadow.
    """
    helper = np.array([0.0, 1.0, 0.0]) if abs(light[1]) < 0.9 else np.eye(3)[0]
    right = np.cross(helper, light)
    right = right / np.linalg.norm(right)
    basis = np.stack([right, np.cross(light, right), light]).astype(np.float32)
    basis[:2] /= np.float32(3.0)
    buffer = np.full(_CELLS * _CELLS, -1e6, np.float32)
    cell, depth = _light_cells(basis @ points)
    np.maximum.at(buffer, cell, depth)
    cell, depth = _light_cells(basis @ points[:, receivers])
    behind = buffer[cell] - depth - np.float32(bias)
    return 1 - np.clip(behind * np.float32(1 / 8.0), 0, 1)


def _light_cells(seen: Array) -> tuple[np.ndarray, Array]:
    """Cell number int32[n] and depth float32[n] of points seen from the light."""
    grid = np.clip(seen[:2] + np.float32(_CELLS / 2), 0, _CELLS - 1).astype(np.int32)
    return grid[1] * _CELLS + grid[0], seen[2]
