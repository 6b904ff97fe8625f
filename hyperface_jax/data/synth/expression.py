"""Displacements of the head by expression, each for an activation of 1."""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.fields import Array, bump, pair, ramp
from hyperface_jax.data.synth.geometry import HeadSurface, mouth_line
from hyperface_jax.data.synth.identity import Identity


@dataclasses.dataclass(frozen=True)
class ExpressionBasis:
    """Displacement fields float32[3, rows, columns] in mm."""

    smile: Array
    mouth_open: Array
    brow_raise: Array


def build_expressions(identity: Identity, head: HeadSurface) -> ExpressionBasis:
    """Smile, mouth opening and brow raising of one head."""
    return ExpressionBasis(
        _smile(identity, head), _open(identity, head), _raise(identity, head)
    )


def _smile(i: Identity, head: HeadSurface) -> Array:
    u, v = head.u, head.v
    corner = pair(u, v, i.mouth_width + 2, i.mouth_y, 10, 11) * head.front
    cheek = pair(u, v, 36, 38, 14, 13) * head.front
    lips = bump(u, v, 0, i.mouth_y, 16, 10) * head.front
    x = np.sign(u) * 6.5 * corner * np.clip(np.abs(u) / 10, 0, 1)
    y = -6.0 * corner - 3.0 * cheek + 1.0 * lips
    z = 4.0 * cheek - 4.0 * corner - 1.5 * lips
    return np.stack([x, y, z]).astype(np.float32)


def _open(i: Identity, head: HeadSurface) -> Array:
    u, v = head.u, head.v
    below = v - mouth_line(i, u)
    lip = np.clip(1 - (u / (i.mouth_width + 1)) ** 2, 0, 1) ** 0.6
    drop = ramp(below, 0.2, 1.2) * ramp(below, 30, 8) * lip * 6.0
    jaw = ramp(below, 0.5, 9.0) * head.front * 9.0
    lift = -2.2 * lip * ramp(below, -0.2, -1.2) * ramp(below, -14, -2)
    y = drop + jaw + lift
    narrow = -0.10 * u * bump(u, v, 0, i.mouth_y + 3, 22, 10) * head.front
    return np.stack([narrow, y, -0.25 * jaw]).astype(np.float32)


def _raise(i: Identity, head: HeadSurface) -> Array:
    u, v = head.u, head.v
    brow = ramp(np.abs(u), 62, 42) * bump(u, v, 0, i.brow_y - 3, 1e6, 9)
    y = -5.0 * brow * head.front
    return np.stack([0 * y, y, 0.15 * y]).astype(np.float32)
