"""Hair: where it grows on the head, its thickness, and a curtain of long hair."""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.fields import Array, ramp, value_noise
from hyperface_jax.data.synth.geometry import HeadSurface
from hyperface_jax.data.synth.identity import Identity

CURTAIN_ROWS, CURTAIN_COLUMNS = 104, 104


@dataclasses.dataclass(frozen=True)
class Hair:
    """Cover 0..1 and thickness (mm) of the hair, float32[rows, columns]."""

    cover: Array
    thickness: Array


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A further grid of points: position float32[3, r, c] (mm), albedo [3, r, c]."""

    position: Array
    albedo: Array


def grow(i: Identity, head: HeadSurface, rng: np.random.Generator) -> Hair:
    """Hair of one head: where it covers and how far it stands out."""
    side = np.rad2deg(np.abs(head.theta))
    line = -i.hairline
    heights = [
        line + i.hair_peak,
        line - 0.3 * i.hair_recession,
        line + 6 - i.hair_recession,
        -20.0,
        i.sideburn,
        i.sideburn - 4,
        0.0,
        60.0,
    ]
    limit = np.interp(side, [0, 14, 32, 60, 70, 82, 88, 112], heights)
    if i.fringe > 0:
        hang = i.fringe * (1 + 0.8 * i.fringe_slant * np.sin(head.theta * 1.5))
        limit = np.maximum(limit, line + hang - 60.0 * ramp(side, 46.0, 72.0))
    strands = value_noise(rng, (1, head.v.shape[1]), (1, 70))
    limit = limit + (1.5 + 2.5 * (i.fringe > 0)) * strands
    inner = (limit - head.v).astype(np.float32)
    cover = ramp(inner, -2.0, 3.0)
    volume = i.hair_volume
    if i.baldness > 0:
        cover = cover * ramp(side.astype(np.float32), 58, 74)
        cover = cover * ramp(head.v, -72, -40)
        volume = 0.3 * volume
    # Hair lifts off gradually, so that no step tears the surface open.
    lift = 0.25 * ramp(inner, -3, 4) + 0.75 * ramp(inner, -3, 34)
    lift = lift * (0.4 + 0.6 * ramp(head.v, 10, -50)) * cover
    return Hair(cover, (np.float32(volume) * lift).astype(np.float32))


def thicken(head: HeadSurface, thickness: Array) -> Array:
    """Displacement float32[3, rows, columns] (mm) of the surface by hair."""
    up = -ramp(head.v, -50, -110)
    out = np.stack([np.sin(head.theta), up, np.cos(head.theta)])
    return (out * (thickness / np.linalg.norm(out, axis=0))).astype(np.float32)


def strand_shade(
    i: Identity, rng: np.random.Generator, shape: tuple[int, int]
) -> Array:
    """Light and dark strands, mean about 1, float32[shape]."""
    fine = value_noise(rng, shape, (4 + int(16 * i.hair_wave), shape[1] // 2))
    coarse = value_noise(rng, shape, (6, 22))
    return np.exp(0.30 * fine + 0.20 * coarse).astype(np.float32)


def curtain(i: Identity, rng: np.random.Generator) -> Sheet | None:
    """Long hair hanging at the sides and behind; None if the hair is short."""
    if i.hair_length < 0 or i.baldness > 0:
        return None
    angle = np.linspace(np.deg2rad(62), np.deg2rad(298), CURTAIN_COLUMNS)
    height = np.linspace(-70, min(i.hair_length, 125.0), CURTAIN_ROWS)
    theta, y = np.meshgrid(angle.astype(np.float32), height.astype(np.float32))
    wave = 1 + 0.07 * i.hair_wave * np.sin(y / 9 + 2 * np.sin(3 * theta))
    radius = np.interp(height, [-70, -20, 60, 160], [0.9, 1.0, 1.05, 1.1])
    wide = (i.temple_width + 0.9 * i.hair_volume) * radius[:, None] * wave
    x = wide * np.sin(theta)
    z = 78.0 * radius[:, None] * wave * np.cos(theta) + 4.0
    colour = np.array(i.hair_colour, np.float32)[:, None, None]
    shade = strand_shade(i, rng, theta.shape)
    # Hair behind the face lies in its shadow.
    shade = shade * (0.35 + 0.65 * ramp(np.cos(theta), -0.5, 0.4))
    position = np.stack([x, y, z]).astype(np.float32)
    return Sheet(position, (colour * shade).astype(np.float32))


def neck(i: Identity, skin: Array) -> Sheet:
    """Throat and neck, float32 grids; `skin` is linear RGB [3]."""
    angle = np.linspace(np.deg2rad(-115), np.deg2rad(115), 100)
    height = np.linspace(58.0, 150.0, 50)
    theta, y = np.meshgrid(angle.astype(np.float32), height.astype(np.float32))
    wide = 0.80 * i.jaw_width + 6 + np.maximum(y - 150, 0) * 0.9
    x = wide * np.sin(theta)
    z = 40.0 * np.cos(theta) - 4.0
    shade = 0.55 + 0.35 * ramp(y, 90, 170)
    albedo = skin[:, None, None] * shade
    return Sheet(np.stack([x, y, z]).astype(np.float32), albedo.astype(np.float32))
