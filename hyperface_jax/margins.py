"""Angular margins: one psi (target) and one eta (other classes) each.

The loss of the family is cross-entropy over the logits

    ρ(|x|)·ψ(θ_y) for the target,   ρ(|x|)·η(θ_j) for every other class j,

so a margin is two functions of a cosine (SphereFace Revived, TPAMI 2022). Both receive
a `MarginContext`: all that a margin may depend on. A new one is two lines and a row.

There is a margin where the characteristic function Δ(θ) = η(θ) - ψ(θ) is positive.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hyperface_jax import geometry
from hyperface_jax.geometry import Scalar

Detach = Literal["none", "cosine", "angle"]
Clamp = Literal["exact", "official"]
DETACH = ("none", "cosine", "angle")
CLAMP = ("exact", "official")


class MarginContext(NamedTuple):
    """What psi and eta may depend on besides cosines; every leaf may be traced.

    Attributes:
      margin: m in force, a scalar, or [B, 1] for a margin an example; radians, a
        factor of the angle, or a difference of cosines, as the margin has it.
      annealing: λ of SphereFace 2017, which mixes ψ with plain cosine; else 0.
      magnitude: |x| of each example [B, 1], for margins that depend on it.
      difficulty: t of CurricularFace, a running mean.
      quality: ẑ of AdaFace, [B, 1] in [-1, 1].
    """

    margin: Scalar
    annealing: Scalar = 0.0
    magnitude: Scalar | None = None
    difficulty: Scalar = 0.0
    quality: Scalar = 0.0


class Margin(NamedTuple):
    """A margin function.

    Attributes:
      psi: (target_cos [B, 1], context) -> [B, 1], the own class's angular function.
      eta: (cos [B, C], target_cos [B, 1], context) -> [B, C], the others'; no
        gradient runs through this target_cos, which may come from another device.
      neutral: the m at which there is no margin (1 for products, 0 for sums).
      default: the m of the original publication or of its official code.
      source: where formula and default come from.
      penalty: |x| [B] -> [B], added to the cross-entropy (MagFace), or None.
    """

    psi: Callable[[Array, MarginContext], Array]
    eta: Callable[[Array, Array, MarginContext], Array]
    neutral: float
    default: float
    source: str
    penalty: Callable[[Array], Array] | None = None


def _plain_psi(target_cos: Array, context: MarginContext) -> Array:
    del context
    return target_cos


def plain_eta(cos: Array, target_cos: Array, context: MarginContext) -> Array:
    """Cos θ_j: the η of most losses."""
    del target_cos, context
    return cos


def _cosface_psi(target_cos: Array, context: MarginContext) -> Array:
    return target_cos - context.margin


def _arcface_wrap_psi(target_cos: Array, context: MarginContext) -> Array:
    return geometry.cos_shifted(target_cos, context.margin)


def _arcface_clamp_psi(target_cos: Array, context: MarginContext) -> Array:
    beyond = target_cos <= -jnp.cos(context.margin)
    return jnp.where(beyond, -1, _arcface_wrap_psi(target_cos, context))


def _arcface_linear_psi(target_cos: Array, context: MarginContext) -> Array:
    m = context.margin
    beyond = target_cos <= -jnp.cos(m)
    penalty = target_cos - m * jnp.sin(m)
    return jnp.where(beyond, penalty, _arcface_wrap_psi(target_cos, context))


def _arcface_easy_psi(target_cos: Array, context: MarginContext) -> Array:
    return jnp.where(target_cos > 0, _arcface_wrap_psi(target_cos, context), target_cos)


def _sphereface_psi(target_cos: Array, context: MarginContext) -> Array:
    m_theta = context.margin * jax.lax.stop_gradient(geometry.angle(target_cos))
    k = jnp.floor(m_theta / jnp.pi)
    sign = 1 - 2 * jnp.mod(k, 2)
    return sign * geometry.cos_multiple(target_cos, context.margin) - 2 * k


def _sphereface_r_v1_psi(target_cos: Array, context: MarginContext) -> Array:
    m_theta = context.margin * jax.lax.stop_gradient(geometry.angle(target_cos))
    inside = m_theta < jnp.pi
    return jnp.where(inside, geometry.cos_multiple(target_cos, context.margin), -1)


def _sphereface_r_v2_eta(
    cos: Array, target_cos: Array, context: MarginContext
) -> Array:
    del target_cos
    return geometry.cos_multiple(cos, 1 / context.margin)


def _sphereface_2017_psi(target_cos: Array, context: MarginContext) -> Array:
    weight = context.annealing
    return (weight * target_cos + _sphereface_psi(target_cos, context)) / (1 + weight)


def _ga_softmax_psi(target_cos: Array, context: MarginContext) -> Array:
    return 1 - (2 / jnp.pi) * context.margin * geometry.angle(target_cos)


def _ga_softmax_eta(cos: Array, target_cos: Array, context: MarginContext) -> Array:
    del target_cos, context
    return 1 - (2 / jnp.pi) * geometry.angle(cos)


MARGINS: dict[str, Margin] = {
    "normface": Margin(_plain_psi, plain_eta, 0.0, 0.0, "NormFace, ACM MM 2017"),
    "cosface": Margin(_cosface_psi, plain_eta, 0.0, 0.35, "CosFace, CVPR 2018"),
    "arcface": Margin(
        _arcface_clamp_psi,
        plain_eta,
        0.0,
        0.5,
        "ArcFace, CVPR 2019; OpenSphere: ψ = -1",
    ),
    "arcface_wrap": Margin(
        _arcface_wrap_psi, plain_eta, 0.0, 0.5, "ArcFace; InsightFace today: wraps"
    ),
    "arcface_linear": Margin(
        _arcface_linear_psi,
        plain_eta,
        0.0,
        0.5,
        "ArcFace; cos θ - m sin m beyond π - m",
    ),
    "arcface_easy": Margin(
        _arcface_easy_psi, plain_eta, 0.0, 0.5, "ArcFace; no margin beyond π/2"
    ),
    "sphereface": Margin(
        _sphereface_psi, plain_eta, 1.0, 1.5, "SphereFace, CVPR 2017 = SphereFace-R v0"
    ),
    "sphereface_r_v1": Margin(
        _sphereface_r_v1_psi, plain_eta, 1.0, 1.5, "SphereFace Revived, TPAMI 2022, v1"
    ),
    "sphereface_r_v2": Margin(
        _plain_psi, _sphereface_r_v2_eta, 1.0, 1.4, "SphereFace Revived, TPAMI 2022, v2"
    ),
    "ga_softmax": Margin(
        _ga_softmax_psi, _ga_softmax_eta, 1.0, 1.5, "GA-softmax, OpenSphere"
    ),
    "sphereface_2017": Margin(
        _sphereface_2017_psi,
        plain_eta,
        1.0,
        4.0,
        "SphereFace, CVPR 2017, with the annealing of its released training",
    ),
}


def angular_functions(
    cos_theta: Float[Array, "B C"],
    target_cos: Float[Array, "B 1"],
    is_target: Bool[Array, "B C"],
    *,
    margin: Margin,
    context: MarginContext,
    detach: Detach = "cosine",
    clamp: Clamp = "exact",
) -> Float[Array, "B C"]:
    """ψ on the target's column, η on the others, with the chosen gradient.

    Args:
      cos_theta: cosines [B, C] of embeddings and (a shard or chunk of) prototypes.
      target_cos: each example's cosine [B, 1] with its own class, wherever that
        class lives; `is_target` has no True in a row whose class is elsewhere.
      is_target: boolean [B, C].
      margin: a row of `MARGINS`, or your own.
      context: the margin in force and what else psi and eta depend on.
      detach: "none": the gradient runs through ψ and η. "cosine": characteristic
        gradient detachment, cos + sg(f - cos): forward the margin, backward plain
        cosine everywhere. "angle": backward the margin's own undistorted function
        (f at its neutral m), which is GA-softmax's official form, 1 - 2θ/π.
      clamp: "exact", or "official": ψ and η at cosines clipped to ±(1 - 1e-5).

    Returns:
      [B, C], not yet multiplied by the magnitude function. An unknown `detach` or
      `clamp` is a ValueError.
    """
    if clamp not in CLAMP:
        raise ValueError(f"clamp is {clamp!r}, expected one of {CLAMP}")

    def evaluate(context):
        bounded = geometry.clip_official if clamp == "official" else lambda c: c
        own = bounded(target_cos)
        return jnp.where(
            is_target,
            margin.psi(own, context),
            margin.eta(bounded(cos_theta), jax.lax.stop_gradient(own), context),
        )

    values = evaluate(context)
    if detach == "none":
        return values
    if detach == "cosine":
        base = cos_theta
    elif detach == "angle":
        base = evaluate(context._replace(margin=margin.neutral, annealing=0.0))
    else:
        raise ValueError(f"detach is {detach!r}, expected one of {DETACH}")
    return base + jax.lax.stop_gradient(values - base)


def looks_at_target(margin: Margin, context: MarginContext) -> bool:
    """Whether eta depends on the target's cosine, found by tracing it."""
    dtype = jnp.asarray(context.margin).dtype
    is_float = jnp.issubdtype(dtype, jnp.floating)
    one = jnp.ones((1, 1), dtype if is_float else jnp.float32)
    context = context._replace(magnitude=one)
    jaxpr = jax.make_jaxpr(lambda t: margin.eta(one, t, context))(one).jaxpr
    (target,) = jaxpr.invars
    read = [v for equation in jaxpr.eqns for v in equation.invars] + jaxpr.outvars
    return any(v is target for v in read)


def minimum_scale(margin: Margin, m: float, num_classes: int, p: float = 0.99) -> float:
    """Smallest s at which a perfectly separated example can reach probability p.

    With the feature on its class vector and all others orthogonal, the gap of the
    angular functions is g = ψ(0) - η(π/2), hence s ≥ ln((C-1) p / (1-p)) / g. For v2
    g = 1 - cos(π/(2m)) < 1, so v2 needs a larger scale than the rest of the family.

    Returns:
      s; infinity where the margin leaves no gap. Fewer than 2 classes, p outside
      (0, 1), and m <= 0 of a factor are a ValueError.
    """
    if num_classes < 2 or not 0 < p < 1:
        raise ValueError(
            f"num_classes is {num_classes} and p is {p}, expected at least 2 classes "
            "and 0 < p < 1"
        )
    if margin.neutral == 1 and not m > 0:
        raise ValueError(f"m is {m}, expected a positive factor")
    with jax.ensure_compile_time_eval():
        one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
        context = MarginContext(margin=m)
        psi, eta = margin.psi(one, context), margin.eta(zero, one, context)
    gap = float(np.asarray(psi).item() - np.asarray(eta).item())
    return math.log((num_classes - 1) * p / (1 - p)) / gap if gap > 0 else math.inf


def get_margin(name: str) -> Margin:
    """The margin called `name`; an unknown one is a ValueError with all names."""
    if name not in MARGINS:
        raise ValueError(f"margin is {name!r}, expected one of {', '.join(MARGINS)}")
    return MARGINS[name]
