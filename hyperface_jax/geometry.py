"""Geometry of the unit hypersphere: norms, cosines, angles.

Axis letters of the whole package: B examples in a batch, C classes (identities),
D dimensions of an embedding, H and W height and width of an image.

Functions of an angle are written here as functions of its cosine, because a cosine is
what a network gives. Their derivatives are closed forms rather than a chain through
arccos, whose slope is infinite at both ends: `cos_multiple` keeps the exact limits m²
at θ = 0 (and at θ = π for whole m). Where the limit truly is infinite, 1/sin θ is
capped at 1/`MIN_SIN`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperface_jax.precision import FLOAT32, Products, inner_products

Scalar = float | Array
"""A number that may be traced (or an array that broadcasts)."""

MIN_SIN = 1e-4
"""1/sin θ counts as at most 1/MIN_SIN in a slope (θ nearer than .0057° to a pole)."""

MIN_NORM = 1e-12
"""A vector is divided by at least this (PyTorch's `normalize` has the same)."""

OFFICIAL_CLIP = 1e-5
"""The official code clips cosines to ±(1 - 1e-5) before arccos (.26° from the ends)."""


def at_least_float32(x: Array) -> Array:
    """Casts `x` to float32 unless it is wider already; norms and angles need it."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def magnitude(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """L2 norm of the last axis; its gradient at x = 0 is 0 instead of NaN."""
    x = at_least_float32(x)
    square = jnp.sum(x * x, axis=-1)
    is_zero = square == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def l2_normalize(
    x: Float[Array, "... D"], min_norm: float = MIN_NORM
) -> Float[Array, "... D"]:
    """X / max(|x|, min_norm) over the last axis; 0 stays 0, with gradient 0 there."""
    x = at_least_float32(x)
    norm = magnitude(x)[..., None]
    return jnp.where(norm == 0, 0, x / jnp.maximum(norm, min_norm))


def cosines(
    unit_embeddings: Float[Array, "B D"],
    unit_prototypes: Float[Array, "C D"],
    products: Products = FLOAT32,
) -> Float[Array, "B C"]:
    """Inner products of rows; by default in full float32 (no TF32, no bfloat16)."""
    return inner_products(unit_embeddings, at_least_float32(unit_prototypes), products)


def class_cosines(
    unit_embeddings: Float[Array, "B D"],
    unit_prototypes: Float[Array, "C ..."],
    products: Products = FLOAT32,
) -> Float[Array, "B C"]:
    """As `cosines`; of prototypes [C, K, D] the largest of each class's K.

    Sub-center ArcFace, ECCV 2020; the gradient goes to the nearest sub-centre.
    """
    if unit_prototypes.ndim == 2:
        return cosines(unit_embeddings, unit_prototypes, products)
    classes, centres, dim = unit_prototypes.shape
    every = cosines(unit_embeddings, unit_prototypes.reshape(-1, dim), products)
    return jnp.max(every.reshape(-1, classes, centres), axis=2)


def own_cosines(
    embeddings: Float[Array, "B D"], own: Float[Array, "B ..."]
) -> Float[Array, " B"]:
    """Cosine of each row with its own class [B, D], or the largest of [B, K, D]."""
    unit, own = l2_normalize(embeddings), l2_normalize(own)
    if own.ndim == 2:
        return jnp.sum(unit * own, axis=-1)
    return jnp.max(jnp.sum(unit[:, None] * own, axis=-1), axis=-1)


def clip_official(cos_theta: Float[Array, "..."]) -> Float[Array, "..."]:
    """Clips to ±(1 - 1e-5) as OpenSphere does; the gradient outside is 0."""
    return jnp.clip(cos_theta, -1 + OFFICIAL_CLIP, 1 - OFFICIAL_CLIP)


def _angle_and_sine(cos_theta: Array) -> tuple[Array, Array]:
    """θ in [0, π] and sin θ, both accurate next to the poles."""
    c = jnp.clip(cos_theta, -1, 1)
    # arccos(c) loses half its digits near ±1; the half-angle form loses none.
    theta = 2 * jnp.arctan2(jnp.sqrt(1 - c), jnp.sqrt(1 + c))
    return theta, jnp.sqrt((1 - c) * (1 + c))


@jax.custom_jvp
def angle(cos_theta: Float[Array, "..."]) -> Float[Array, "..."]:
    """θ = arccos(cos_theta) in radians; slope -1/max(sin θ, MIN_SIN)."""
    return _angle_and_sine(cos_theta)[0]


@angle.defjvp
def _angle_jvp(primals, tangents):
    theta, sine = _angle_and_sine(primals[0])
    return theta, -tangents[0] / jnp.maximum(sine, MIN_SIN)


def _reduced_sin_cos_pi(m: Array) -> tuple[Array, Array]:
    """sin(πm) and cos(πm), exactly 0 and ±1 where m is whole."""
    whole = jnp.round(m)
    sign = 1 - 2 * jnp.mod(whole, 2)
    return sign * jnp.sin(jnp.pi * (m - whole)), sign * jnp.cos(jnp.pi * (m - whole))


def _sine_ratio(m: Array, theta: Array, sine: Array) -> Array:
    """sin(mθ)/sin θ with its limits: m at 0, -m cos(πm) plus a capped pole at π."""
    near_zero = jnp.where(sine == 0, m, jnp.sin(m * theta) / jnp.maximum(sine, 1e-30))
    # With θ' = π - θ: sin(mθ) = sin(πm) cos(mθ') - cos(πm) sin(mθ').
    rest = jnp.pi - theta
    sin_pi, cos_pi = _reduced_sin_cos_pi(m)
    pole = sin_pi * jnp.cos(m * rest) / jnp.maximum(sine, MIN_SIN)
    regular = jnp.where(sine == 0, m, jnp.sin(m * rest) / jnp.maximum(sine, 1e-30))
    return jnp.where(theta < jnp.pi / 2, near_zero, pole - cos_pi * regular)


def cos_multiple(cos_theta: Float[Array, "..."], m: Scalar) -> Float[Array, "..."]:
    """cos(mθ) for any real m > 0, with slope m sin(mθ)/sin θ in cos θ.

    For whole m this is the Chebyshev polynomial T_m. The slope is m² at θ = 0; at
    θ = π it is m² in size for whole m, and a pole (capped, see `MIN_SIN`) otherwise.
    """
    return _cos_multiple(cos_theta, jnp.asarray(m, cos_theta.dtype))


@jax.custom_jvp
def _cos_multiple(cos_theta, m):
    theta, _ = _angle_and_sine(cos_theta)
    return jnp.cos(m * theta)


@_cos_multiple.defjvp
def _cos_multiple_jvp(primals, tangents):
    (cos_theta, m), (cos_dot, m_dot) = primals, tangents
    theta, sine = _angle_and_sine(cos_theta)
    slope = m * _sine_ratio(m, theta, sine)
    return jnp.cos(m * theta), slope * cos_dot - theta * jnp.sin(m * theta) * m_dot


def cos_shifted(cos_theta: Float[Array, "..."], m: Scalar) -> Float[Array, "..."]:
    """cos(θ + m), m in radians, with slope sin(θ + m)/max(sin θ, MIN_SIN)."""
    return _cos_shifted(cos_theta, jnp.asarray(m, cos_theta.dtype))


@jax.custom_jvp
def _cos_shifted(cos_theta, m):
    theta, _ = _angle_and_sine(cos_theta)
    return jnp.cos(theta + m)


@_cos_shifted.defjvp
def _cos_shifted_jvp(primals, tangents):
    (cos_theta, m), (cos_dot, m_dot) = primals, tangents
    theta, sine = _angle_and_sine(cos_theta)
    slope = jnp.sin(theta + m) / jnp.maximum(sine, MIN_SIN)
    return jnp.cos(theta + m), slope * cos_dot - jnp.sin(theta + m) * m_dot
