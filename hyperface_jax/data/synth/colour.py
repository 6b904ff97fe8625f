"""Colour conversions: CIELAB and skin ITA to linear RGB, sRGB transfer, light tint.

Linear RGB means the sRGB primaries (D65) before the transfer curve, in 0..1.
"""

import numpy as np

from hyperface_jax.data.synth.fields import Array

# ITA spans published ranges for human skin, very light (> 55) to dark (< -30).
ITA_RANGE = (-58.0, 68.0)

_XYZ_TO_RGB = np.array(
    [
        [3.2406, -1.5372, -0.4986],
        [-0.9689, 1.8758, 0.0415],
        [0.0557, -0.2040, 1.0570],
    ]
)
_D65 = np.array([0.9505, 1.0, 1.089])
_LUT_SIZE = 4096


def lab_to_linear(lightness: float, a: float, b: float) -> Array:
    """CIELAB (D65, L* in 0..100) to linear RGB, float32[3] clipped to 0..1."""
    fy = (lightness + 16.0) / 116.0
    f = np.array([fy + a / 500.0, fy, fy - b / 200.0])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D65
    return np.clip(_XYZ_TO_RGB @ xyz, 0.0, 1.0).astype(np.float32)


def ita_to_linear(ita: float, a: float = 10.0, radius: float = 21.5) -> Array:
    """Skin reflectance of individual typology angle `ita` (degrees), float32[3].

    ITA = atan((L* - 50) / b*) in CIELAB, so a person lies on a circle round
    (b* = 0, L* = 50); measured skins keep close to one radius (about 20-23),
    which is why angle and radius are the parameters here. `a` is a* (redness).
    """
    angle = np.deg2rad(ita)
    return lab_to_linear(
        50.0 + radius * float(np.sin(angle)), a, radius * float(np.cos(angle))
    )


def _srgb_table() -> Array:
    value = np.linspace(0.0, 1.0, _LUT_SIZE)
    high = 1.055 * np.maximum(value, 1e-9) ** (1 / 2.4) - 0.055
    return np.where(value <= 0.0031308, 12.92 * value, high).astype(np.float32)


_SRGB = _srgb_table()


def encode_srgb(linear: Array) -> Array:
    """Apply the sRGB transfer to linear values (clipped to 0..1), by table; float32."""
    index = np.clip(linear, 0.0, 1.0) * np.float32(_LUT_SIZE - 1) + np.float32(0.5)
    return _SRGB[index.astype(np.int32)]


def warmth_to_gain(warmth: float) -> Array:
    """Light colour for a warmth in -1 (blue sky) .. 1 (tungsten), float32[3].

    Roughly +-1 corresponds to -60 / +130 mired from daylight; unit green.
    """
    return np.exp(np.array([0.32 * warmth, 0.0, -0.45 * warmth])).astype(np.float32)
