"""Everything of a photograph that is not the person, and its sampling.

Angles are degrees; positions are pixels of the 112x112 template. The condition
vector is the ground truth stored beside an image.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

GLASSES = ("none", "thin rim", "thick rim", "sunglasses")
OCCLUDERS = ("none", "mask", "blob", "bar", "hat")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """One photograph's nuisance variables."""

    yaw: float = 0.0  # degrees, nose towards the image right is +
    pitch: float = 0.0  # degrees, nose down is +
    roll: float = 0.0  # degrees left after alignment, clockwise is +
    distance: float = 1500.0  # mm, camera to face: small distorts
    light_azimuth: float = 0.0  # degrees, from the image right is +
    light_elevation: float = 20.0  # degrees, from above is +
    light_intensity: float = 0.25  # directional light
    ambient: float = 0.85  # diffuse light
    light_warmth: float = 0.0  # -1 blue .. 1 tungsten, the directional light
    white_balance: float = 0.0  # -1 blue .. 1 warm, the whole picture
    tint: float = 0.0  # -1 magenta .. 1 green, the whole picture
    smile: float = 0.0  # -0.6 frown .. 1
    mouth_open: float = 0.0  # 0..1
    brow_raise: float = 0.0  # -1..1
    eye_closure: float = 0.0  # 0 open .. 1 closed; < 0 is wide open
    gaze_x: float = 0.0  # -1..1, towards the image right is +
    gaze_y: float = 0.0  # -1..1, down is +
    scale: float = 1.0  # crop scale, > 1 is a larger face
    shift_x: float = 0.0  # pixels at 112
    shift_y: float = 0.0  # pixels at 112
    glasses: int = 0  # index into GLASSES
    glasses_size: float = 1.0  # relative
    glasses_shade: float = 0.05  # linear reflectance of the rim
    occluder: int = 0  # index into OCCLUDERS
    occluder_x: float = 56.0  # pixels at 112
    occluder_y: float = 90.0  # pixels at 112
    occluder_size: float = 20.0  # pixels at 112, half extent
    occluder_angle: float = 0.0  # degrees
    occluder_hue: float = 0.0  # 0..1
    occluder_value: float = 0.5  # 0..1 linear brightness
    background_seed: int = 0  # < 2**24, so that float32 holds it exactly
    background_contrast: float = 0.0  # 0 plain .. 1 busy
    exposure: float = 0.0  # stops
    auto_exposure: float = 0.65  # 0 fixed .. 1 every face equally bright
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0  # Gaussian sigma, pixels at 112
    noise: float = 0.0  # sensor noise, standard deviation of 8-bit levels
    jpeg_quality: int = 95  # applied by the caller, see encode.py


CONDITION_NAMES: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(Conditions)
)
_INTEGER = frozenset({"glasses", "occluder", "background_seed", "jpeg_quality"})


def frontal() -> Conditions:
    """Neutral pose and face, diffuse light, no degradation, plain background."""
    return Conditions()


def sample_conditions(rng: np.random.Generator) -> Conditions:
    """Draw one photograph's conditions."""
    values = {
        **_sample_pose(rng),
        **_sample_light(rng),
        **_sample_expression(rng),
        **_sample_occlusion(rng),
        **_sample_camera(rng),
    }
    return Conditions(**values)  # pyright: ignore[reportArgumentType]


def to_vector(conditions: Conditions) -> NDArray[np.float32]:
    """float32[len(CONDITION_NAMES)], in the order of CONDITION_NAMES."""
    values = [getattr(conditions, name) for name in CONDITION_NAMES]
    return np.array(values, np.float32)


def from_vector(vector: NDArray[np.float32]) -> Conditions:
    """Inverse of `to_vector` (up to float32 rounding)."""
    if len(vector) != len(CONDITION_NAMES):
        raise ValueError(f"expected {len(CONDITION_NAMES)} values, got {len(vector)}")
    values = {
        name: round(float(value)) if name in _INTEGER else float(value)
        for name, value in zip(CONDITION_NAMES, vector, strict=True)
    }
    return Conditions(**values)  # pyright: ignore[reportArgumentType]


def _normal(rng: np.random.Generator, spread: float, limit: float) -> float:
    return float(np.clip(rng.normal(0.0, spread), -limit, limit))


def _sample_pose(rng: np.random.Generator) -> dict[str, float]:
    return {
        "yaw": _normal(rng, 15.0, 40.0),
        "pitch": _normal(rng, 7.0, 20.0),
        "roll": _normal(rng, 2.5, 8.0),
        "distance": float(np.exp(rng.uniform(np.log(600), np.log(2500)))),
        "scale": float(np.exp(_normal(rng, 0.03, 0.08))),
        "shift_x": _normal(rng, 1.2, 4.0),
        "shift_y": _normal(rng, 1.2, 4.0),
    }


def _sample_light(rng: np.random.Generator) -> dict[str, float]:
    share = float(rng.uniform(0.1, 0.85))  # of the light that is directional
    return {
        "light_azimuth": float(rng.uniform(-85, 85)),
        "light_elevation": float(rng.uniform(-15, 65)),
        "light_intensity": 1.5 * share,
        "ambient": 1.0 - share,
        "light_warmth": _normal(rng, 0.4, 1.0),
        "white_balance": _normal(rng, 0.35, 0.9),
        "tint": _normal(rng, 0.35, 1.0),
    }


def _sample_expression(rng: np.random.Generator) -> dict[str, float]:
    smiling, talking, blinking = rng.uniform(size=3) < (0.45, 0.3, 0.1)
    closure = rng.uniform(0.6, 1.0) if blinking else rng.uniform(-0.25, 0.35)
    return {
        "smile": float(rng.uniform(0.2, 1.0) if smiling else rng.normal(0, 0.15)),
        "mouth_open": float(rng.uniform(0.1, 1.0) if talking else 0.0),
        "brow_raise": _normal(rng, 0.4, 1.0),
        "eye_closure": float(closure),
        "gaze_x": _normal(rng, 0.4, 1.0),
        "gaze_y": _normal(rng, 0.25, 0.7),
    }


def _sample_occlusion(rng: np.random.Generator) -> dict[str, float | int]:
    return {
        "glasses": int(rng.choice(4, p=(0.82, 0.08, 0.07, 0.03))),
        "glasses_size": float(rng.uniform(0.85, 1.2)),
        "glasses_shade": float(rng.uniform(0.005, 0.3) ** 1.5),
        "occluder": int(rng.choice(5, p=(0.85, 0.03, 0.04, 0.04, 0.04))),
        "occluder_x": float(rng.uniform(10, 102)),
        "occluder_y": float(rng.uniform(45, 112)),
        "occluder_size": float(rng.uniform(10, 24)),
        "occluder_angle": float(rng.uniform(-60, 60)),
        "occluder_hue": float(rng.uniform()),
        "occluder_value": float(rng.uniform(0.02, 0.8)),
    }


def _sample_camera(rng: np.random.Generator) -> dict[str, float | int]:
    return {
        "background_seed": int(rng.integers(2**24)),
        "background_contrast": float(rng.uniform(0.1, 1.0)),
        "exposure": _normal(rng, 0.5, 1.1),
        "auto_exposure": float(rng.uniform(0.5, 1.0)),
        "contrast": float(rng.uniform(0.75, 1.25)),
        "saturation": float(rng.uniform(0.5, 1.25)),
        "blur": float(rng.uniform(0, 1) ** 2 * 1.6),
        "noise": float(rng.uniform(0, 1) ** 2 * 7.0),
        "jpeg_quality": int(rng.integers(40, 96)),
    }
