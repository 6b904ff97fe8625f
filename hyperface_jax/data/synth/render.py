"""Render a photograph of a synthetic person.

The pictures are procedural: the faces depict nobody. An identity's mesh and
texture are built once by `prepare`; `render` takes either the prepared mesh
(fast) or the identity (prepares it first, for convenience).
"""

import numpy as np
from numpy.typing import NDArray

from hyperface_jax.data.synth.accessories import dress, glasses, occlude
from hyperface_jax.data.synth.conditions import Conditions
from hyperface_jax.data.synth.eyes import paint_eye
from hyperface_jax.data.synth.fields import Array
from hyperface_jax.data.synth.identity import Identity
from hyperface_jax.data.synth.mesh import FaceMesh, prepare
from hyperface_jax.data.synth.pose import alignment, project, rotation
from hyperface_jax.data.synth.raster import splat
from hyperface_jax.data.synth.sensor import background, develop
from hyperface_jax.data.synth.shading import Surface, grid_normals, illuminate

__all__ = ["FaceMesh", "landmarks", "prepare", "render"]

_SUPERSAMPLING = 2
_COARSE_SIZE = 64  # up to here half of the vertices suffice
_PLAIN_GLOSS = 0.02  # of neck, long hair and glasses


def render(
    subject: Identity | FaceMesh,
    conditions: Conditions,
    size: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Picture uint8[size, size, 3] RGB, before JPEG.

    `size` is a multiple of 16. `rng` draws the sensor noise only: equal
    arguments and generator states give equal pictures.
    """
    if size <= 0 or size % 16:
        raise ValueError(f"size {size} is not a positive multiple of 16")
    mesh = prepare(subject) if isinstance(subject, Identity) else subject
    head = _expression(mesh, conditions)
    turn = rotation(conditions)
    affine = _alignment(mesh, head, turn, conditions)
    step = 2 if size <= _COARSE_SIZE else 1
    surface = _scene(mesh, head, turn, conditions, step)
    picture = _rasterise(surface, affine, conditions, size)
    picture = occlude(picture, conditions)
    return develop(picture, mesh.luminance, conditions, rng)


def landmarks(
    subject: Identity | FaceMesh, conditions: Conditions, size: int
) -> NDArray[np.float32]:
    """Eyes, nose tip and mouth corners in pixels of the picture, float32[5, 2]."""
    mesh = prepare(subject) if isinstance(subject, Identity) else subject
    turn = rotation(conditions)
    head = _expression(mesh, conditions)
    affine = _alignment(mesh, head, turn, conditions)
    points = turn @ head.reshape(3, -1)[:, mesh.landmarks]
    flat = project(points, conditions.distance)
    pixels = affine[:, :2] @ flat + affine[:, 2:]
    return (pixels.T * np.float32(size / 112)).astype(np.float32)


def _expression(mesh: FaceMesh, c: Conditions) -> Array:
    """Head grid float32[3, r, c] with the expression, before rotation."""
    head = mesh.position.copy()
    basis = mesh.expressions
    activations = (
        (basis.smile, c.smile),
        (basis.mouth_open, c.mouth_open),
        (basis.brow_raise, c.brow_raise),
    )
    for field, amount in activations:
        if amount:
            head += np.float32(amount) * field
    return head


def _alignment(mesh: FaceMesh, head: Array, turn: Array, c: Conditions) -> Array:
    points = turn @ head.reshape(3, -1)[:, mesh.landmarks]
    return alignment(project(points, c.distance), c)


def _scene(
    mesh: FaceMesh, head: Array, turn: Array, c: Conditions, step: int
) -> Surface:
    """The rotated head with everything on it.

    Only every `step`-th column of the head and row of the other sheets is used.
    """
    sheets = mesh.sheets + ((mesh.mouth,) if c.mouth_open > 0.03 else ())
    grids = [(head[:, :, ::step], _head_albedo(mesh, c)[:, :, ::step])]
    grids += [(s.position[:, ::step], s.albedo[:, ::step]) for s in sheets]
    extra = glasses(mesh, c)
    count = sum(g[0].size for g in grids) + (extra[0].size if extra else 0)
    position, normal, albedo = np.empty((3, 3, count // 3), np.float32)
    start = 0
    for points, colour in grids:
        end = start + points.size // 3
        position[:, start:end] = turn @ points.reshape(3, -1)
        turned = position[:, start:end].reshape(points.shape)
        normal[:, start:end] = grid_normals(turned).reshape(3, -1)
        albedo[:, start:end] = colour.reshape(3, -1)
        start = end
    if extra:
        position[:, start:] = turn @ extra[0]
        normal[:, start:] = turn[:, 2:]
        albedo[:, start:] = extra[1]
    gloss = np.full(count // 3, _PLAIN_GLOSS, np.float32)
    skin = mesh.gloss[:, ::step]
    gloss[: skin.size] = skin.ravel()
    return Surface(position, normal, albedo, gloss)


def _head_albedo(mesh: FaceMesh, c: Conditions) -> Array:
    """Reflectance float32[3, rows, columns] with eyes, mask and hat."""
    albedo = mesh.albedo.reshape(3, -1).copy()
    for patch in mesh.eyes:
        albedo[:, patch.index] = paint_eye(
            mesh.identity, patch, albedo[:, patch.index], c
        )
    return dress(mesh, albedo.reshape(mesh.albedo.shape), c)


def _rasterise(surface: Surface, affine: Array, c: Conditions, size: int) -> Array:
    """Linear picture float32[size, size, 3] over the background."""
    fine = size * _SUPERSAMPLING
    position = surface.position
    pixels = affine[:, :2] @ project(position, c.distance) + affine[:, 2:]
    pixels *= np.float32(fine / 112)
    nearest = splat(pixels[0], pixels[1], position[2], fine)
    # Light only what is seen. The last entry of the mask and of the table stands
    # for "nothing here" (number -1) and holds zeros.
    seen = np.zeros(position.shape[1] + 1, bool)
    seen[nearest] = True
    seen[-1] = True
    number = np.flatnonzero(seen[:-1])
    table = np.zeros((len(number) + 1, 4), np.float32)
    table[:-1, :3] = illuminate(surface, number, c).T
    table[:-1, 3] = 1.0
    entry = np.cumsum(seen, dtype=np.int32) - np.int32(1)
    samples = table[entry[nearest]]
    rows = samples[0::2] + samples[1::2]
    layer = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return layer[:, :, :3] + (1 - layer[:, :, 3:]) * background(c, size)
