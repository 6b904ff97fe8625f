"""Painted reflectance of the head: skin, lips, brows, beard, marks, hair.

All colours are linear RGB; fields are float32[3, rows, columns].
"""

import numpy as np

from hyperface_jax.data.synth.colour import ita_to_linear, lab_to_linear
from hyperface_jax.data.synth.fields import (
    Array,
    box_blur,
    bump,
    pair,
    ramp,
    value_noise,
)
from hyperface_jax.data.synth.geometry import HeadSurface, mouth_line
from hyperface_jax.data.synth.hair import strand_shade
from hyperface_jax.data.synth.identity import Identity


def skin_colour(i: Identity) -> Array:
    """Mean skin reflectance, linear RGB float32[3]."""
    return ita_to_linear(i.ita, i.skin_redness, i.skin_radius)


def paint(
    i: Identity, head: HeadSurface, hair: Array, rng: np.random.Generator
) -> Array:
    """Reflectance of the whole head; `hair` is the cover of hair.grow."""
    skin = skin_colour(i)
    colour = np.repeat(skin, hair.size).reshape(3, *hair.shape)
    colour = _tint_skin(i, head, colour, rng)
    colour = _paint_lips(i, head, colour)
    colour = colour * _occlusion(i, head)
    colour = _paint_beard(i, head, colour, rng)
    colour = _paint_brows(i, head, colour, rng)
    strands = strand_shade(i, rng, hair.shape)
    tone = np.array(i.hair_colour, np.float32)[:, None, None] * strands
    colour = _mix(colour, tone, hair)
    return np.clip(colour, 0.002, 0.95).astype(np.float32)


def _mix(base: Array, over: Array, cover: Array) -> Array:
    return base + (over - base) * cover


def _tint_skin(
    i: Identity, head: HeadSurface, colour: Array, rng: np.random.Generator
) -> Array:
    u, v = head.u, head.v
    blotch = value_noise(rng, u.shape, (16, 18))
    colour = colour * np.exp(0.05 * blotch)
    flush = pair(u, v, 38, 36, 14, 13) + bump(u, v, 0, i.nose_length, 9, 8)
    flush = 0.02 * i.skin_redness * flush
    colour = colour * np.stack([1 + 0.2 * flush, 1 - 0.7 * flush, 1 - 0.6 * flush])
    under = pair(u, v, i.eye_distance - 2, 9, 10, 3.5) * (0.08 + 0.22 * i.age)
    lid = pair(u, v, i.eye_distance, -4, 12, 5) * 0.13
    colour = colour * (1 - under - lid)
    if i.freckles > 0:
        spots = rng.uniform(size=u.shape) < 0.05 * i.freckles
        where = pair(u, v, 22, 24, 22, 14) + 0.3 * bump(u, v, 0, -40, 30, 12)
        spot = box_blur(spots.astype(np.float32), 1) * 3.5 * np.clip(where, 0, 1)
        brown = np.array([0.30, 0.45, 0.55], np.float32)[:, None, None]
        colour = colour * (1 - brown * np.clip(spot, 0, 1))
    for x, y, radius in i.moles:
        spot = bump(u, v, x, y, radius, radius) * head.front
        colour = colour * (1 - 0.8 * spot)
    return colour


def _paint_lips(i: Identity, head: HeadSurface, colour: Array) -> Array:
    u, v = head.u, head.v
    below = v - mouth_line(i, u)
    across = np.clip(np.abs(u) / i.mouth_width, 0, 1.2)
    taper = np.clip(1 - across**2.2, 0, 1)
    bow = i.lip_upper * taper * (1 - 0.25 * np.exp(-((u / 3.5) ** 2)))
    full = i.lip_lower * np.clip(1 - across**2.6, 0, 1)
    cover = ramp(below, 1.0, 0.0) * ramp(below + bow, -0.8, 0.8)
    cover += ramp(below, 0.0, 1.0) * ramp(full - below, -0.8, 0.8)
    cover = cover * ramp(across, 1.04, 0.94) * head.front
    lightness = max(50.0 + i.skin_radius * np.sin(np.deg2rad(i.ita)), 20.0)
    lip = lab_to_linear(
        lightness * 0.92 - i.lip_darkness, i.skin_redness + i.lip_redness, 11.0
    )
    colour = _mix(colour, lip[:, None, None], 0.9 * cover)
    slit = np.exp(-0.5 * (below / 0.9) ** 2) * ramp(across, 1.1, 0.95)
    return colour * (1 - 0.75 * slit * head.front)


def _occlusion(i: Identity, head: HeadSurface) -> Array:
    """Ambient occlusion from the relief: hollows are darker, ridges lighter."""
    wide = head.z - box_blur(head.z, 9)
    tight = head.z - box_blur(head.z, 3)
    shade = np.clip(1 + 0.035 * wide * head.front + 0.06 * tight * head.front, 0.4, 1.1)
    tip = i.nose_length
    nostril = pair(head.u, head.v, 0.5 * i.nose_width - 1, tip + 6.0, 3.0, 1.9)
    return shade * (1 - 0.75 * nostril)


def _paint_brows(
    i: Identity, head: HeadSurface, colour: Array, rng: np.random.Generator
) -> Array:
    t = (np.abs(head.u) - i.brow_gap) / i.brow_length
    centre = i.brow_y + 34 * i.brow_slope * (t - 0.4)
    centre = centre - i.brow_arch * (1 - (np.clip(t, 0, 1) / 0.62 - 1) ** 2)
    half = i.brow_thickness * np.clip(1.15 - 0.75 * t, 0.3, 1.1)
    cover = ramp(np.abs(head.v - centre) / half, 1.35, 0.55)
    cover = cover * ramp(t, -0.08, 0.06) * ramp(t, 1.02, 0.88) * head.front
    hairs = np.clip(0.85 + 0.2 * value_noise(rng, t.shape, (60, 100)), 0.3, 1)
    tone = np.array(i.brow_colour, np.float32)[:, None, None]
    return _mix(colour, tone, 0.92 * cover * hairs)


def _paint_beard(
    i: Identity, head: HeadSurface, colour: Array, rng: np.random.Generator
) -> Array:
    u, v = head.u, head.v
    below = v - mouth_line(i, u)
    side = ramp(np.abs(u) + 0.55 * (v - i.mouth_y), 24, 36)
    jaw = ramp(v, i.nose_length + 2, i.mouth_y) * side
    jaw = np.maximum(jaw, ramp(below, i.lip_lower + 4, i.lip_lower + 10))
    reach = np.clip(np.abs(u) / (i.mouth_width + 7), 0, 1.2)
    strip = ramp(below, -0.6 * i.lip_upper, -i.lip_upper - 1.5)
    top = i.nose_length + 9 + 12 * reach**2
    strip = strip * ramp(v - top, -2, 3) * ramp(reach, 1.05, 0.75)
    hairs = np.clip(1 + 0.15 * value_noise(rng, u.shape, (90, 100)), 0.2, 1.2)
    tone = np.array(i.hair_colour, np.float32)[:, None, None] * 0.8
    full = np.maximum(i.beard * jaw, i.moustache * strip)
    shadow = 0.45 * i.stubble * np.maximum(jaw, strip)
    cover = np.clip(np.maximum(0.9 * full, shadow) * hairs, 0, 0.95)
    return _mix(colour, tone, cover)
