"""A person who does not exist: shape and albedo parameters and their sampling.

Lengths are millimetres in the frontal view, measured from the point midway
between the eyes: x to the image right, y down, z towards the camera. "Half"
sizes are measured from the mid-line. Every value is drawn from independent,
synthetic distributions; the faces depict nobody.
"""

import dataclasses

import numpy as np

from hyperface_jax.data.synth.colour import ITA_RANGE


@dataclasses.dataclass(frozen=True)
class Identity:
    """Shape (mm), skin, hair and marks of one synthetic person.

    The field order of the sampled floats is that of `_SPREAD` below, where the
    meaning of each is stated; the remaining fields are drawn by rule.
    """

    face_width: float
    temple_width: float
    jaw_width: float
    jaw_y: float
    jaw_softness: float
    chin_y: float
    chin_width: float
    chin_forward: float
    forehead_slope: float
    face_depth: float
    brow_ridge: float
    socket_depth: float
    eye_distance: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    lid_crease: float
    cheekbone: float
    cheekbone_y: float
    cheek_fill: float
    nose_length: float
    nose_tip: float
    nose_bridge: float
    nose_hump: float
    nose_width: float
    nose_bridge_width: float
    nose_bulb: float
    nose_skew: float
    mouth_y: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    mouth_curve: float
    muzzle: float
    ear_size: float
    brow_y: float
    brow_arch: float
    brow_slope: float
    brow_thickness: float
    brow_length: float
    brow_gap: float
    skin_redness: float
    skin_radius: float
    lip_redness: float
    lip_darkness: float
    hairline: float
    hair_recession: float
    hair_peak: float
    hair_volume: float
    sideburn: float
    ita: float  # individual typology angle, degrees: larger is lighter
    eye_colour: tuple[float, float, float]  # iris, linear RGB
    hair_colour: tuple[float, float, float]  # linear RGB
    brow_colour: tuple[float, float, float]  # linear RGB
    baldness: float  # 0 hair .. 1 none on the scalp
    hair_length: float  # mm below the eyes reached by side hair; < 0 is short
    hair_wave: float  # 0 straight .. 1 curly
    fringe: float  # mm of hair hanging below the hairline
    fringe_slant: float  # -1..1, side to which the fringe falls
    beard: float  # 0 none .. 1 dense, on jaw and chin
    moustache: float  # 0 none .. 1 dense
    stubble: float  # 0 none .. 1 strong shadow
    age: float  # 0 smooth .. 1 deep lines
    freckles: float  # 0 none .. 1 many
    moles: tuple[tuple[float, float, float], ...]  # (x, y, radius) mm
    texture_seed: int  # seeds skin blotches, freckles and hair strands


# name: (mean, standard deviation); normal, cut at 2.2 standard deviations.
_SPREAD: dict[str, tuple[float, float]] = {
    "face_width": (71.0, 4.5),  # half width at the cheekbones
    "temple_width": (66.0, 4.0),  # half width at the temples
    "jaw_width": (58.0, 6.0),  # half width at the jaw angle
    "jaw_y": (72.0, 8.0),  # height of the jaw angle
    "jaw_softness": (9.0, 3.0),  # smoothing of the outline: small is angular
    "chin_y": (109.0, 6.0),  # lowest point of the chin
    "chin_width": (37.0, 6.0),  # half width of the chin
    "chin_forward": (0.0, 5.0),  # protrusion (+) or retreat (-)
    "forehead_slope": (7.0, 5.0),  # how far the upper forehead retreats
    "face_depth": (88.0, 4.0),  # ears to the face plane
    "brow_ridge": (3.0, 2.2),
    "socket_depth": (5.0, 2.0),
    "eye_distance": (31.5, 2.3),  # half distance between the pupils
    "eye_width": (14.3, 1.5),  # half width of the eye opening
    "eye_open": (5.2, 1.2),  # upper lid above the eye axis
    "eye_tilt": (0.05, 0.10),  # radians, outer corner up is +
    "lid_crease": (3.5, 1.6),  # fold above the upper lid
    "cheekbone": (4.0, 2.8),
    "cheekbone_y": (25.0, 4.0),
    "cheek_fill": (0.0, 3.6),  # full (+) or hollow (-) cheeks
    "nose_length": (37.0, 3.8),  # eye axis to the tip
    "nose_tip": (20.0, 4.0),  # protrusion of the tip
    "nose_bridge": (9.0, 3.0),  # protrusion at the eyes
    "nose_hump": (0.0, 1.8),
    "nose_width": (15.5, 2.8),  # half width at the wings
    "nose_bridge_width": (6.5, 1.3),
    "nose_bulb": (7.5, 1.6),  # radius of the tip
    "nose_skew": (0.0, 1.2),  # sideways deviation of the tip
    "mouth_y": (72.5, 3.6),
    "mouth_width": (24.5, 3.2),  # half width
    "lip_upper": (5.5, 1.8),  # visible height
    "lip_lower": (7.5, 2.2),
    "mouth_curve": (0.0, 1.5),  # corners up (+) or down (-) at rest
    "muzzle": (4.0, 2.2),  # protrusion of the lips
    "ear_size": (12.0, 4.0),
    "brow_y": (-20.0, 3.0),
    "brow_arch": (3.0, 2.4),
    "brow_slope": (0.0, 0.10),  # outer end down (+) or up (-)
    "brow_thickness": (2.9, 1.0),  # half thickness
    "brow_length": (37.0, 4.5),
    "brow_gap": (10.5, 3.0),  # half gap between the brows
    "skin_redness": (10.5, 2.0),  # CIELAB a*
    "skin_radius": (21.5, 1.3),  # CIELAB radius, see colour.ita_to_linear
    "lip_redness": (10.0, 5.0),  # CIELAB a* above the skin's
    "lip_darkness": (6.0, 4.0),  # L* below the skin's
    "hairline": (62.0, 8.0),  # forehead height above the eyes
    "hair_recession": (4.0, 7.0),  # at the temples
    "hair_peak": (0.0, 4.0),  # widow's peak
    "hair_volume": (12.0, 5.0),
    "sideburn": (18.0, 14.0),
}


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw one person. ITA is uniform over the whole human range."""
    draws = np.clip(rng.standard_normal(len(_SPREAD)), -2.2, 2.2)
    values = {
        name: float(mean + spread * draw)
        for (name, (mean, spread)), draw in zip(_SPREAD.items(), draws, strict=True)
    }
    ita = float(rng.uniform(*ITA_RANGE))
    hair = _sample_hair_colour(rng, ita)
    brow = np.clip(hair * rng.uniform(0.35, 0.9), 0.004, 0.25)
    masculine = rng.uniform() < 0.5  # governs facial hair and length only
    bearded = masculine and rng.uniform() < 0.45
    moustached = masculine and rng.uniform() < (0.75 if bearded else 0.15)
    long_hair = rng.uniform() < (0.15 if masculine else 0.7)
    moles = tuple(
        (
            float(rng.uniform(-48, 48)),
            float(rng.uniform(-45, 95)),
            float(rng.uniform(0.9, 2.2)),
        )
        for _ in range(int(rng.poisson(1.2)))
    )
    return Identity(
        **values,
        ita=ita,
        eye_colour=_triple(_sample_eye_colour(rng, ita)),
        hair_colour=_triple(hair),
        brow_colour=_triple(brow),
        baldness=float(masculine and rng.uniform() < 0.18),
        hair_length=float(rng.uniform(20, 150)) if long_hair else -20.0,
        hair_wave=float(rng.uniform(0, 1)),
        fringe=float(rng.uniform(8, 42)) if rng.uniform() < 0.35 else 0.0,
        fringe_slant=float(rng.uniform(-1, 1)),
        beard=float(rng.uniform(0.5, 1.0)) if bearded else 0.0,
        moustache=float(rng.uniform(0.5, 1.0)) if moustached else 0.0,
        stubble=float(rng.uniform(0, 0.6)) if masculine else 0.0,
        age=float(rng.uniform(0, 1) ** 1.5),
        freckles=float(rng.uniform(0.3, 1)) if rng.uniform() < 0.2 else 0.0,
        moles=moles,
        texture_seed=int(rng.integers(2**31)),
    )


def _triple(colour: np.ndarray) -> tuple[float, float, float]:
    return float(colour[0]), float(colour[1]), float(colour[2])


def _sample_hair_colour(rng: np.random.Generator, ita: float) -> np.ndarray:
    """Black to blond by melanin, sometimes red or grey; linear RGB."""
    dark_bias = 0.45 if ita > 15 else 0.12  # light hair is rare on dark skin
    lightness = float(rng.uniform(0, 1) ** (0.6 / dark_bias))
    dark = np.array([0.010, 0.007, 0.006])
    light = np.array([0.50, 0.33, 0.15])
    colour = np.exp((1 - lightness) * np.log(dark) + lightness * np.log(light))
    kind = rng.uniform()
    if kind < 0.12:
        grey = float(rng.uniform(0.12, 0.6))
        colour = grey * np.array([1.0, 0.98, 0.95])
    elif kind < 0.22 and ita > 0:
        colour = colour * np.array([1.5, 0.75, 0.5]) + np.array([0.06, 0.008, 0.0])
    return np.clip(colour, 0.004, 0.7)


def _sample_eye_colour(rng: np.random.Generator, ita: float) -> np.ndarray:
    """Dark brown to hazel, green, grey or blue; linear RGB."""
    palette = np.array(
        [
            [0.020, 0.010, 0.006],
            [0.070, 0.030, 0.012],
            [0.120, 0.075, 0.025],
            [0.090, 0.130, 0.060],
            [0.150, 0.190, 0.210],
            [0.080, 0.170, 0.330],
        ]
    )
    reach = 5.0 if ita > 15 else 2.2
    position = float(rng.uniform(0, reach))
    low = min(int(position), 4)
    blend = palette[low] + (position - low) * (palette[low + 1] - palette[low])
    return blend * rng.uniform(0.8, 1.3)
