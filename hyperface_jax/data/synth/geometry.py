"""Head surface of an identity: a (row, column) grid of 3-D points.

The head is a stack of elliptical cross-sections whose width and depth vary with
height, plus a relief (nose, brow ridge, lips ...) added along z. Millimetres;
x to the image right, y down, z towards the camera; the origin is between the
eyes in x and y and on the ear axis in z.
"""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.fields import Array, bump, pair, ramp
from hyperface_jax.data.synth.identity import Identity

ROWS, COLUMNS = 190, 176
_SIDE = np.deg2rad(118.0)  # columns reach this far round from the front
_ROUND = 14.0  # mm over which the chin closes
_TOP = -122.0  # y of the crown


@dataclasses.dataclass(frozen=True)
class HeadSurface:
    """Neutral head; every array is float32[ROWS, COLUMNS].

    `u`, `v` are the frontal coordinates (mm) at which features are placed; they
    stay with the vertex when it moves.
    """

    theta: Array  # radians, 0 in front, + towards the image right
    u: Array
    v: Array
    x: Array
    y: Array
    z: Array
    front: Array  # 1 in front, 0 at the sides: where relief applies


def build_head(identity: Identity) -> HeadSurface:
    """Head surface without hair."""
    height = _row_heights(identity)
    column = np.linspace(-1, 1, COLUMNS)
    angle = _SIDE * (0.68 * column + 0.32 * column**3)  # dense in front
    theta, v = np.meshgrid(angle.astype(np.float32), height.astype(np.float32))
    width, depth = _profiles(identity, height)
    sine, cosine = np.sin(theta), np.cos(theta)
    x = (width.astype(np.float32)[:, None]) * sine
    z = (depth.astype(np.float32)[:, None]) * cosine
    # The lower jaw rises from the chin towards the ears.
    rise = ramp(v, identity.mouth_y, identity.chin_y) * (1 - cosine)
    y = v - np.float32(26.0) * rise
    front = ramp(cosine, 0.05, 0.45)
    u = x.copy()
    z = z + front * _relief(identity, u, v)
    x = x + np.sign(theta) * _ears(identity, theta, v)
    skew = identity.nose_skew * bump(u, v, 0, identity.nose_length, 12, 14)
    return HeadSurface(theta, u, v, x + skew, y, z, front)


def _ears(i: Identity, theta: Array, v: Array) -> Array:
    """Outward displacement (mm) of the ears: flaps narrowing to the lobe."""
    height = (v - 18.0) / 29.0
    shape = np.sqrt(np.clip(1 - height**2, 0, 1)) * (1 - 0.25 * height)
    flap = np.exp(-((np.abs(theta) - np.deg2rad(97.0)) ** 2) / 0.018)
    return i.ear_size * shape * flap


def _row_heights(identity: Identity) -> np.ndarray:
    """Height of each row: coarse over the scalp, dense in the face and at the chin."""
    crown = np.linspace(_TOP, -48.0, 44)
    lower = np.linspace(-48.0, identity.chin_y - _ROUND, ROWS - 44 - 21 + 2)[1:-1]
    close = np.sin(np.linspace(0, 1, 21) * np.pi / 2) * _ROUND
    return np.concatenate([crown, lower, identity.chin_y - _ROUND + close])


def _profiles(identity: Identity, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and depth of the cross-section at each height."""
    i = identity
    fine = np.arange(-140.0, 160.0, 1.0)
    width = np.interp(
        fine,
        [-75, -40, i.cheekbone_y - 8, i.jaw_y, i.chin_y - 6, i.chin_y + 14],
        [i.temple_width] * 2
        + [i.face_width, i.jaw_width, i.chin_width, 0.65 * i.chin_width],
    )
    depth = np.interp(
        fine,
        [-105, -65, -25, 0, 35, i.mouth_y, i.chin_y - 12],
        i.face_depth
        + np.array([-26 - i.forehead_slope, -i.forehead_slope, 2, -3, -3, -2, -2])
        + np.array([0, 0, 0, 0, 0, 0.3, 1]) * i.chin_forward,
    )
    width = _smooth(fine, width, max(i.jaw_softness, 3.0))
    depth = _smooth(fine, depth, 6.0)
    crown = np.clip((-48.0 - y) / (-48.0 - _TOP), 0, 1)
    chin = np.clip((y - i.chin_y + _ROUND) / _ROUND, 0, 1)
    close = np.sqrt(np.maximum(1 - crown**2.4, 1e-4)) * np.sqrt(
        np.maximum(1 - chin**2, 1e-4)
    )
    return np.interp(y, fine, width) * close, np.interp(y, fine, depth) * close


def _smooth(x: np.ndarray, values: np.ndarray, sigma: float) -> np.ndarray:
    step = x[1] - x[0]
    reach = int(3 * sigma / step)
    offset = np.arange(-reach, reach + 1) * step
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _relief(i: Identity, u: Array, v: Array) -> Array:
    """Forward displacement (mm) of the features."""
    e = i.eye_distance
    z = -i.socket_depth * pair(u, v, e - 1, -1, 13, 9)
    z += 2.6 * pair(u, v, e, 0.5, 8.5, 6.0)  # the eyeball under the lids
    z -= 0.5 * i.socket_depth * pair(u, v, 13, 2, 6, 10)  # inner corners
    ridge = ramp(np.abs(u), 54, 30) * (0.75 + 0.25 * ramp(np.abs(u), 4, 16))
    z += i.brow_ridge * ridge * bump(u, v, 0, i.brow_y + 2.5, 1e6, 6.0)
    z += i.cheekbone * pair(u, v, 45, i.cheekbone_y, 15, 12)
    z += i.cheek_fill * pair(u, v, 40, 60, 14, 17)
    z += 2.0 * pair(u, v, 24, 42, 11, 13)  # front of the cheeks
    z += _nose(i, u, v) + _mouth(i, u, v)
    z += 4.0 * bump(u, v, 0, i.chin_y - 13, 0.55 * i.chin_width, 9)
    z -= 2.6 * bump(u, v, 0, i.mouth_y + 1.6 * i.lip_lower + 7, 17, 5)
    return z + _lines(i, u, v)


def _nose(i: Identity, u: Array, v: Array) -> Array:
    tip = i.nose_length
    knots = [-22, -6, 4, 0.55 * tip, tip - 3, tip, tip + 7, tip + 12]
    height = [
        0,
        0.8 * i.nose_bridge,
        i.nose_bridge,
        0.5 * (i.nose_bridge + i.nose_tip) + i.nose_hump,
        i.nose_tip * 0.94,
        i.nose_tip * 0.92,
        0.30 * i.nose_tip,
        0,
    ]
    rows = v[:, 0].astype(np.float64)
    profile = _smooth_rows(np.interp(rows, knots, height), 1).astype(np.float32)
    half = np.interp(rows, [-20, 0, tip], [8.0, i.nose_bridge_width, i.nose_bulb + 1.5])
    across = np.abs(u) / half.astype(np.float32)[:, None]
    z = profile[:, None] * np.exp(np.float32(-0.7) * across**2.2)
    z += 0.16 * i.nose_tip * bump(u, v, 0, tip - 1, i.nose_bulb, i.nose_bulb * 0.8)
    wing = i.nose_width - 3.5
    z += 0.42 * i.nose_tip * pair(u, v, wing, tip + 2.0, 4.2, 5.0)
    z -= 1.8 * pair(u, v, i.nose_width + 3.5, tip + 4, 3.0, 6)  # crease of the wing
    return z


def _smooth_rows(values: np.ndarray, passes: int) -> np.ndarray:
    kernel = np.array([1, 2, 3, 2, 1]) / 9.0
    for _ in range(passes):
        values = np.convolve(np.pad(values, 2, mode="edge"), kernel, mode="valid")
    return values


def _mouth(i: Identity, u: Array, v: Array) -> Array:
    line = mouth_line(i, u)
    below = v - line
    inside = np.clip(1 - (u / (i.mouth_width + 1)) ** 2, 0, 1)
    z = i.muzzle * bump(u, v, 0, i.mouth_y, 25, 17)
    upper = np.exp(-0.5 * ((below + 0.5 * i.lip_upper) / (0.42 * i.lip_upper)) ** 2)
    lower = np.exp(-0.5 * ((below - 0.5 * i.lip_lower) / (0.42 * i.lip_lower)) ** 2)
    z += inside**0.8 * (0.42 * i.lip_upper * upper + 0.45 * i.lip_lower * lower)
    z -= 2.2 * inside**0.5 * np.exp(-0.5 * (below / 1.3) ** 2)
    z -= 1.5 * pair(u, v, i.mouth_width + 2, i.mouth_y, 3.5, 4)  # corners
    return z - 0.9 * bump(u, v, 0, i.mouth_y - i.lip_upper - 6, 3.0, 5)  # philtrum


def mouth_line(i: Identity, u: Array) -> Array:
    """Height v at which the lips meet, for frontal coordinate u."""
    across = np.clip(np.abs(u) / i.mouth_width, 0, 1.3)
    return (i.mouth_y - i.mouth_curve * across**2).astype(np.float32)


def _lines(i: Identity, u: Array, v: Array) -> Array:
    """Age: nasolabial folds, bags under the eyes, furrows."""
    t = np.clip((v - i.nose_length) / (i.mouth_y + 8 - i.nose_length), 0, 1)
    fold = i.nose_width + 4 + (i.mouth_width + 7 - i.nose_width - 4) * t
    window = ramp(v, i.nose_length - 6, i.nose_length + 4)
    window = window * ramp(v, i.mouth_y + 14, i.mouth_y)
    z = -(0.25 + 1.5 * i.age) * window * np.exp(-0.5 * ((np.abs(u) - fold) / 2.6) ** 2)
    z -= 1.6 * i.age * pair(u, v, i.eye_distance, 13, 11, 1.8)
    furrows = 0.5 + 0.5 * np.cos((v + 40) * np.float32(2 * np.pi / 9))
    z -= 1.1 * i.age * furrows * bump(u, v, 0, -43, 26, 9)
    return z - 1.3 * i.age * pair(u, v, 4.5, i.brow_y + 1, 1.3, 6)
