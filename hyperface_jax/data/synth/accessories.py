"""Glasses in three dimensions, and occluders painted on the picture."""

import colorsys

import numpy as np

from hyperface_jax.data.synth.conditions import OCCLUDERS, Conditions
from hyperface_jax.data.synth.fields import Array, ramp
from hyperface_jax.data.synth.mesh import FaceMesh


def glasses(mesh: FaceMesh, conditions: Conditions) -> tuple[Array, Array] | None:
    """Points float32[3, k] (mm, head frame) and albedo [3, k], None without."""
    if conditions.glasses == 0:
        return None
    i, size = mesh.identity, conditions.glasses_size
    rx, ry = 21.0 * size, 16.0 * size
    thick = {1: 0.9, 2: 2.4, 3: 1.6}[conditions.glasses]
    centre = max(i.eye_distance, rx + 5.0)
    surface = mesh.head.z[np.abs(mesh.head.v[:, 0]).argmin()].max()
    front = float(surface) + 5.0
    angle = np.linspace(0, 2 * np.pi, 170, endpoint=False)
    band = np.linspace(-thick, thick, 2 + 2 * int(thick))
    if conditions.glasses == 3:
        band = np.linspace(-ry, thick, 20)
    t, w = np.meshgrid(angle, band)
    cosine, sine = np.cos(t), np.sin(t)
    x = np.sign(cosine) * np.abs(cosine) ** 0.75 * (rx + w * rx / ry)
    y = np.sign(sine) * np.abs(sine) ** 0.75 * (ry + w) + 2.0
    rims = [np.stack([x + s * centre, y, 0 * x]).reshape(3, -1) for s in (-1, 1)]
    gap = np.linspace(-(centre - rx), centre - rx, 30)
    bx, bw = np.meshgrid(gap, np.linspace(-thick, thick, 3))
    parts = [*rims, np.stack([bx, bw - 3.0, 0 * bx]).reshape(3, -1)]
    flat = np.concatenate(parts, axis=1)
    flat[2] = front - 0.0045 * flat[0] ** 2
    edge = centre + rx
    back = np.linspace(front - 0.0045 * edge**2, -5.0, 90)
    az, aw = np.meshgrid(back, np.linspace(-thick, thick, 4) - 3.0)
    splay = edge + (i.face_width + 3 - edge) * ramp(az.astype(np.float32), 70, 0)
    arms = [np.stack([s * splay, aw, az]).reshape(3, -1) for s in (-1, 1)]
    points = np.concatenate([flat, *arms], axis=1).astype(np.float32)
    tone = np.array(colorsys.hsv_to_rgb(conditions.occluder_hue, 0.4, 1.0))
    albedo = np.repeat(tone * conditions.glasses_shade, points.shape[1])
    return points, albedo.reshape(3, -1).astype(np.float32)


def occluder_colour(conditions: Conditions) -> Array:
    """Linear RGB float32[3] of the occluder."""
    hue, value = conditions.occluder_hue, conditions.occluder_value
    saturation = abs(np.sin(17.0 * hue))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def dress(mesh: FaceMesh, albedo: Array, conditions: Conditions) -> Array:
    """Paint a mask or a hat on the head's albedo [3, r, c]; a new array if so."""
    kind = OCCLUDERS[conditions.occluder]
    i, head = mesh.identity, mesh.head
    side = np.abs(head.theta)
    if kind == "mask":
        top = np.float32(0.55 * i.nose_length) + 14 * (side / 1.4) ** 2
        cover = ramp(head.v - top, -1.0, 1.0) * ramp(side, 1.45, 1.35)
    elif kind == "hat":
        edge = np.float32(-0.35 * i.hairline - 0.55 * conditions.occluder_size)
        cover = ramp(head.v - edge - 8 * side, 1.0, -1.0)
    else:
        return albedo
    colour = occluder_colour(conditions)[:, None, None]
    return albedo + (colour - albedo) * cover


def occlude(image: Array, conditions: Conditions) -> Array:
    """Lay a blob or a bar over the linear picture float32[size, size, 3]."""
    kind = OCCLUDERS[conditions.occluder]
    if kind not in ("blob", "bar"):
        return image
    size = image.shape[0]
    grid = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(112 / size)
    x = grid[None, :] - np.float32(conditions.occluder_x)
    y = grid[:, None] - np.float32(conditions.occluder_y)
    angle = np.deg2rad(conditions.occluder_angle)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    extent = conditions.occluder_size
    if kind == "bar":
        cover = ramp(np.abs(across) - 0.35 * extent, 1.0, -1.0)
        shade = 1 - 0.3 * across / extent
    else:
        bearing = np.arctan2(across, along)
        radius = np.hypot(along / 1.3, across)
        edge = extent * (1 + 0.15 * np.sin(3 * bearing + conditions.occluder_hue * 6))
        cover = ramp(radius - edge, 1.2, -1.2)
        shade = 1.15 - 0.5 * (radius / extent) ** 2
    light = 0.5 * (conditions.ambient + conditions.light_intensity)
    colour = occluder_colour(conditions) * np.float32(light)
    over = np.clip(shade, 0.3, 1.4).astype(np.float32)[:, :, None] * colour
    return image + (over - image) * cover.astype(np.float32)[:, :, None]
