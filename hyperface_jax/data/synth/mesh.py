"""Everything of an identity that does not change between photographs."""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.albedo import paint, skin_colour
from hyperface_jax.data.synth.expression import ExpressionBasis, build_expressions
from hyperface_jax.data.synth.eyes import EyePatch, build_eye_patches
from hyperface_jax.data.synth.fields import Array
from hyperface_jax.data.synth.geometry import HeadSurface, build_head
from hyperface_jax.data.synth.hair import Sheet, curtain, grow, neck, thicken
from hyperface_jax.data.synth.identity import Identity


@dataclasses.dataclass(frozen=True)
class FaceMesh:
    """A prepared identity, read-only; about 4 MB.

    `position` and `albedo` are float32[3, rows, columns] of the neutral head
    with hair; `sheets` are further grids (neck, long hair).
    """

    identity: Identity
    head: HeadSurface
    position: Array
    albedo: Array
    gloss: Array  # [rows, columns], strength of the specular reflection
    expressions: ExpressionBasis
    eyes: tuple[EyePatch, EyePatch]
    sheets: tuple[Sheet, ...]
    mouth: Sheet  # inside of the mouth, seen when it opens
    landmarks: np.ndarray  # int64[5]: eyes, nose tip, mouth corners in the grid
    luminance: float  # mean skin reflectance, what a light meter sees


def prepare(identity: Identity) -> FaceMesh:
    """Build mesh and texture once per identity (some 50 ms)."""
    rng = np.random.default_rng(identity.texture_seed)
    head = build_head(identity)
    hair = grow(identity, head, rng)
    albedo = paint(identity, head, hair.cover, rng)
    bare = np.stack([head.x, head.y, head.z]).astype(np.float32)
    skin = skin_colour(identity)
    sheets = [neck(identity, skin)]
    long_hair = curtain(identity, rng)
    if long_hair is not None:
        sheets.append(long_hair)
    return FaceMesh(
        identity=identity,
        head=head,
        position=bare + thicken(head, hair.thickness),
        albedo=albedo,
        gloss=(0.05 - 0.035 * hair.cover).astype(np.float32),
        expressions=build_expressions(identity, head),
        eyes=build_eye_patches(identity, head),
        sheets=tuple(sheets),
        mouth=_mouth_sheet(identity, head),
        landmarks=_landmarks(identity, head),
        luminance=float(skin @ np.array([0.21, 0.72, 0.07], np.float32)),
    )


def _landmarks(i: Identity, head: HeadSurface) -> np.ndarray:
    points = (
        (-i.eye_distance, 0.0),
        (i.eye_distance, 0.0),
        (0.0, i.nose_length - 1.0),
        (-i.mouth_width, i.mouth_y),
        (i.mouth_width, i.mouth_y),
    )
    distance = [
        np.where(head.front > 0.2, (head.u - x) ** 2 + (head.v - y) ** 2, 1e9)
        for x, y in points
    ]
    return np.array([int(np.argmin(d)) for d in distance])


def _mouth_sheet(i: Identity, head: HeadSurface) -> Sheet:
    """Dark inside of the mouth with the upper teeth, behind the lips."""
    x, y = np.meshgrid(
        np.linspace(-i.mouth_width, i.mouth_width, 44, dtype=np.float32),
        np.linspace(i.mouth_y - 4, i.mouth_y + 18, 26, dtype=np.float32),
    )
    x = x * np.sqrt(np.clip(1 - ((y - i.mouth_y - 4) / 19) ** 2, 0.04, 1))
    # Behind the closed surface everywhere, so that it shows through a gap only.
    middle = head.z.shape[1] // 2
    z = np.interp(y, head.v[:, 0], head.z[:, middle]) - 7.0 - 0.018 * x * x
    z = np.minimum(z, np.interp(i.mouth_y, head.v[:, 0], head.z[:, middle]) - 6.0)
    teeth = (y < i.mouth_y + 4.5) & (np.abs(x) < 0.8 * i.mouth_width)
    gap = 0.85 + 0.15 * np.cos(x * np.float32(2 * np.pi / 7.5))
    white = np.array([0.62, 0.58, 0.50], np.float32)[:, None, None] * gap
    dark = np.array([0.06, 0.015, 0.012], np.float32)[:, None, None]
    albedo = np.where(teeth, white, dark)
    return Sheet(np.stack([x, y, z]).astype(np.float32), albedo.astype(np.float32))
