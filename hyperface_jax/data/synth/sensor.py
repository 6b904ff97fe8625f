"""Background and camera: exposure, white balance, blur, tone curve, noise."""

import numpy as np

from hyperface_jax.data.synth.colour import encode_srgb, warmth_to_gain
from hyperface_jax.data.synth.conditions import Conditions
from hyperface_jax.data.synth.fields import Array, ramp, upsample

_METER_TARGET = 0.20  # linear level to which a face is exposed automatically


def background(conditions: Conditions, size: int) -> Array:
    """Linear RGB backdrop float32[size, size, 3]: cloudy fields and an edge."""
    rng = np.random.default_rng(conditions.background_seed)
    base = np.exp(rng.normal(-1.4, 0.9)) * np.exp(rng.normal(0, 0.25, 3))
    swing = np.float32(conditions.background_contrast)
    coarse = rng.standard_normal((4, 4, 3)) + rng.standard_normal((4, 4, 1))
    fine = rng.standard_normal((11, 11, 1))
    field = upsample(coarse.astype(np.float32), (size, size)) * 0.45
    field = field + upsample(fine.astype(np.float32), (size, size)) * 0.25
    angle = rng.uniform(0, np.pi)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    line = np.cos(angle) * grid[None, :] + np.sin(angle) * grid[:, None]
    edge = ramp((line - rng.uniform(-1, 1)).astype(np.float32), -0.03, 0.03)
    step = rng.standard_normal(3, dtype=np.float32)
    field = field + (edge[:, :, None] - np.float32(0.5)) * step
    light = 0.6 * (conditions.ambient + conditions.light_intensity)
    return (light * base).astype(np.float32) * np.exp(swing * field)


def develop(
    linear: Array, luminance: float, conditions: Conditions, rng: np.random.Generator
) -> np.ndarray:
    """Linear radiance float32[size, size, 3] to the uint8 picture.

    `luminance` is the mean reflectance of the face: automatic exposure divides
    part of it out, as cameras do, which confounds the skin tone.
    """
    c = conditions
    size = linear.shape[0]
    light = 0.75 * c.ambient + 0.55 * c.light_intensity
    metered = _METER_TARGET / max(luminance * light, 1e-3)
    fixed = _METER_TARGET / (0.22 * light)
    gain = fixed ** (1 - c.auto_exposure) * metered**c.auto_exposure
    tint = np.array([-0.06 * c.tint, 0.09 * c.tint, -0.06 * c.tint])
    gains = warmth_to_gain(c.white_balance) * np.exp(tint) * gain * 2.0**c.exposure
    image = _blur(linear, c.blur * size / 112) * gains.astype(np.float32)
    image = image / (1 + 0.25 * image)  # highlights roll off
    image = encode_srgb(image * np.float32(1.15))
    grey = image @ np.array([0.3, 0.59, 0.11], np.float32)
    image = grey[:, :, None] + (image - grey[:, :, None]) * np.float32(c.saturation)
    image = (image - np.float32(0.5)) * np.float32(c.contrast) + np.float32(0.5)
    image = image * np.float32(255.0)
    if c.noise > 0:
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + grain * np.float32(c.noise)
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def _blur(image: Array, sigma: float) -> Array:
    """Separable Gaussian of `sigma` pixels with edge padding."""
    if sigma < 0.15:
        return image
    reach = max(1, int(np.ceil(2.5 * sigma)))
    offset = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    size = image.shape[0]
    padded = np.pad(image, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    rows = kernel[0] * padded[:size]
    for k in range(1, 2 * reach + 1):
        rows += kernel[k] * padded[k : k + size]
    padded = np.pad(rows, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    out = kernel[0] * padded[:, :size]
    for k in range(1, 2 * reach + 1):
        out += kernel[k] * padded[:, k : k + size]
    return out
