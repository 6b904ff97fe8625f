"""Normals from geometry, and light: diffuse, ambient, specular, cast shadow."""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.colour import warmth_to_gain
from hyperface_jax.data.synth.conditions import Conditions
from hyperface_jax.data.synth.fields import Array
from hyperface_jax.data.synth.raster import shadow

_WRAP = np.float32(0.18)  # light bleeds this far past the terminator in skin


def light_direction(conditions: Conditions) -> Array:
    """Unit vector towards the directional light, float32[3]."""
    azimuth = np.deg2rad(conditions.light_azimuth)
    elevation = np.deg2rad(conditions.light_elevation)
    level = np.cos(elevation)
    return np.array(
        [np.sin(azimuth) * level, -np.sin(elevation), np.cos(azimuth) * level],
        np.float32,
    )


def grid_normals(position: Array) -> Array:
    """Unit normals of a grid float32[3, r, c], towards the camera in front."""
    a = np.empty_like(position)
    a[:, :, 1:-1] = position[:, :, 2:] - position[:, :, :-2]
    a[:, :, 0] = position[:, :, 1] - position[:, :, 0]
    a[:, :, -1] = position[:, :, -1] - position[:, :, -2]
    b = np.empty_like(position)
    b[:, 1:-1] = position[:, 2:] - position[:, :-2]
    b[:, 0] = position[:, 1] - position[:, 0]
    b[:, -1] = position[:, -1] - position[:, -2]
    normal = np.empty_like(position)
    normal[0] = a[1] * b[2] - a[2] * b[1]
    normal[1] = a[2] * b[0] - a[0] * b[2]
    normal[2] = a[0] * b[1] - a[1] * b[0]
    length = np.einsum("irc,irc->rc", normal, normal)
    normal *= 1 / np.sqrt(length + np.float32(1e-12))
    return normal


@dataclasses.dataclass(frozen=True)
class Surface:
    """Points of the scene in camera axes.

    `position` float32[3, n] mm, `normal` float32[3, n], `albedo` float32[3, n]
    linear RGB, `gloss` float32[n].
    """

    position: Array
    normal: Array
    albedo: Array
    gloss: Array


def illuminate(surface: Surface, number: np.ndarray, conditions: Conditions) -> Array:
    """Radiance, linear RGB float32[3, k], of the points numbered int[k]."""
    normal, albedo = surface.normal[:, number], surface.albedo[:, number]
    light = light_direction(conditions)
    lit = light @ normal
    diffuse = np.maximum((lit + _WRAP) * (1 / (1 + _WRAP)), 0)
    visible = shadow(surface.position, number, light)
    diffuse *= visible * np.float32(conditions.light_intensity)
    # Ambient light comes mostly from above and from the camera's side.
    ambient = np.float32(0.62) - np.float32(0.22) * normal[1]
    ambient += np.float32(0.22) * np.maximum(normal[2], 0)
    ambient *= np.float32(conditions.ambient)
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half) + np.float32(1e-6)
    shine = np.maximum(half @ normal, 0)
    shine *= shine
    shine *= shine
    shine *= shine  # to the power of 8
    shine *= shine  # 16
    shine *= (
        surface.gloss[number] * visible * np.float32(5.0 * conditions.light_intensity)
    )
    tone = warmth_to_gain(conditions.light_warmth)
    fill = warmth_to_gain(-0.3 * conditions.light_warmth)
    out = np.empty_like(albedo)
    for channel in range(3):
        total = tone[channel] * diffuse + fill[channel] * ambient
        out[channel] = albedo[channel] * total + tone[channel] * shine
    return out
