"""Eyes, painted per photograph: lids, white, iris, pupil, lashes and highlight."""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.conditions import Conditions
from hyperface_jax.data.synth.fields import Array, ramp
from hyperface_jax.data.synth.geometry import HeadSurface
from hyperface_jax.data.synth.identity import Identity

_IRIS, _PUPIL = 6.0, 2.5  # radii, mm
_WHITE = np.array([0.43, 0.39, 0.37], np.float32)[:, None]
_INNER = np.array([0.40, 0.16, 0.13], np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class EyePatch:
    """Vertices around one eye.

    `index` int64[k] into the flattened head grid; `along`, `across` float32[k]
    are mm from the eye centre along and below the tilted axis.
    """

    index: np.ndarray
    along: Array
    across: Array
    side: float  # -1 image left, +1 image right


def build_eye_patches(i: Identity, head: HeadSurface) -> tuple[EyePatch, EyePatch]:
    """The two patches, image left first."""
    return _patch(i, head, -1.0), _patch(i, head, 1.0)


def _patch(i: Identity, head: HeadSurface, side: float) -> EyePatch:
    dx, dy = head.u - side * i.eye_distance, head.v
    near = (np.abs(dx) < i.eye_width + 4) & (np.abs(dy) < 14) & (head.front > 0.2)
    index = np.flatnonzero(near)
    dx, dy = dx.ravel()[index], dy.ravel()[index]
    sine, cosine = np.sin(side * i.eye_tilt), np.cos(i.eye_tilt)
    along = cosine * dx - sine * dy
    across = sine * dx + cosine * dy
    return EyePatch(index, along.astype(np.float32), across.astype(np.float32), side)


def paint_eye(i: Identity, patch: EyePatch, base: Array, c: Conditions) -> Array:
    """Reflectance float32[3, k] of the patch over the skin `base` [3, k]."""
    a, b = patch.along, patch.across
    half = i.eye_width
    arch = np.clip(1 - np.abs(a / half) ** 2.2, 0, 1)
    # The lid is higher towards the nose, as in most eyes.
    lean = 1 - 0.12 * patch.side * a / half
    gape = float(np.clip(1 - c.eye_closure, 0.02, 1.3))
    low = 0.50 * i.eye_open * arch
    high = low - (low + i.eye_open * arch * lean) * gape
    soft = 0.7
    inside = ramp(b - high, -soft, soft) * ramp(low - b, -soft, soft)
    inside = inside * ramp(np.abs(a), half + 0.5, half - 1.0)
    eye = _eyeball(i, a, b, high, c)
    out = base + (eye - base) * inside
    lash = np.exp(-0.5 * ((b - high + 0.5) / 1.0) ** 2) * ramp(
        np.abs(a), half + 2.0, half - 1.0
    )
    crease = np.exp(-0.5 * ((b - high + i.lid_crease + 1.5) / 0.9) ** 2) * arch
    lower = np.exp(-0.5 * ((b - low - 0.6) / 0.8) ** 2) * arch
    return out * (1 - 0.85 * lash) * (1 - 0.4 * crease) * (1 - 0.3 * lower)


def _eyeball(i: Identity, a: Array, b: Array, high: Array, c: Conditions) -> Array:
    """White, iris, pupil and highlight, float32[3, k]."""
    dx = a - np.float32(3.6 * c.gaze_x)
    dy = b - np.float32(2.2 * c.gaze_y - 0.8)
    radius = np.sqrt(dx * dx + dy * dy)
    corner = ramp(np.abs(a), 0.75 * i.eye_width, 1.05 * i.eye_width)
    eye = _WHITE + (_INNER - _WHITE) * (0.6 * corner)
    iris = np.array(i.eye_colour, np.float32)[:, None]
    ring = iris * (1.25 - 0.8 * ramp(radius, 4.2, _IRIS))
    eye = eye + (ring - eye) * ramp(radius, _IRIS + 0.6, _IRIS - 0.6)
    eye = eye * ramp(radius, _PUPIL - 0.7, _PUPIL + 0.7)
    eye = eye * (0.45 + 0.55 * ramp(b - high, 0.0, 3.5))  # shadow of the lid
    spot_x = dx - np.float32(2.2 * np.sin(np.deg2rad(c.light_azimuth)))
    spot_y = dy + np.float32(2.2 * np.sin(np.deg2rad(c.light_elevation)))
    spot = np.exp(-(spot_x * spot_x + spot_y * spot_y) / 1.6)
    return eye + (0.6 + c.light_intensity) * 0.8 * spot
