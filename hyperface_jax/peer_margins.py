"""Margins with constants of their own, or that look at more than one angle.

Each function here takes a margin's constants, with the published values as defaults,
and returns its psi and eta as a `margins.Margin`. What depends on the batch or on the
past (a drawn margin, a quality, a running mean) arrives in the `MarginContext`; who
computes it is in `family`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hyperface_jax import geometry
from hyperface_jax.margins import MARGINS, Margin, plain_eta


def combined(m1: float = 1.0, m3: float = 0.2) -> Margin:
    """cos(m1·θ + m) - m3, with -1 for the cosine beyond π; m1 = 1, m3 = 0 is ArcFace.

    Args:
      m1: factor of the angle, more than 0 (SphereFace's is at least 1).
      m3: subtracted from the cosine (CosFace's).

    Raises:
      ValueError: `m1` is not positive.
    """
    if not m1 > 0:
        raise ValueError(f"m1 of the combined margin is {m1}, expected more than 0")

    def psi(target_cos, context):
        m = context.margin
        theta = geometry.angle(target_cos)
        beyond = m1 * jax.lax.stop_gradient(theta) + m >= jnp.pi
        if m1 == 1:
            moved = geometry.cos_shifted(target_cos, m)
        else:
            moved = jnp.cos(m1 * theta + m)
        return jnp.where(beyond, -1, moved) - m3

    source = "ArcFace, CVPR 2019, section 2: CM1 (m1 1, m2 .3, m3 .2)"
    return Margin(psi, plain_eta, 0.0, 0.3, source)


def magface(
    lower: float = 10.0,
    upper: float = 110.0,
    lower_margin: float = 0.45,
    strength: float = 35.0,
) -> Margin:
    """cos(θ + m(a)), a = |x| between `lower` and `upper`, no margin beyond π/2.

    m(a) grows linearly from `lower_margin` to the margin in force, and a penalty
    strength·(a/upper² + 1/a) pulls lengths up; the gradient runs through both.

    Args:
      lower: l_a.
      upper: u_a.
      lower_margin: l_m; never more than the margin in force, u_m.
      strength: λ_g (35 in the official run.sh, 20 in its code).

    Raises:
      ValueError: unless 0 < lower < upper.
    """
    if not 0 < lower < upper:
        raise ValueError(
            f"lower and upper of MagFace are {lower} and {upper}, expected 0 < lower "
            "< upper"
        )

    def psi(target_cos, context):
        highest = context.margin
        lowest = jnp.minimum(lower_margin, highest)
        length = upper if context.magnitude is None else context.magnitude
        share = (jnp.clip(length, lower, upper) - lower) / (upper - lower)
        m = lowest + (highest - lowest) * share
        return jnp.where(
            target_cos > 0, geometry.cos_shifted(target_cos, m), target_cos
        )

    def penalty(norms):
        a = jnp.clip(norms, lower, upper)
        return strength * (a / upper**2 + 1 / a)

    source = "MagFace, CVPR 2021; models/magface.py"
    return Margin(psi, plain_eta, 0.0, 0.8, source, penalty)


def adaface() -> Margin:
    """cos(θ - m·ẑ) - (m + m·ẑ): additive for low quality ẑ, angular for high.

    The angle stays in [0, π]; the official code stops 1e-3 before the ends.
    """

    def psi(target_cos, context):
        m, quality = context.margin, context.quality
        moved = -m * quality
        edge = jnp.cos(moved)
        shifted = geometry.cos_shifted(target_cos, moved)
        shifted = jnp.where((moved < 0) & (target_cos >= edge), 1, shifted)
        shifted = jnp.where((moved > 0) & (target_cos <= -edge), -1, shifted)
        return shifted - (m + m * quality)

    return Margin(psi, plain_eta, 0.0, 0.4, "AdaFace, CVPR 2022; head.py")


def curricularface() -> Margin:
    """Others that are closer than cos(θ_y + m) weigh c·(t + c); t grows in training."""

    def eta(cos, target_cos, context):
        hard = cos > geometry.cos_shifted(target_cos, context.margin)
        return jnp.where(hard, cos * (context.difficulty + cos), cos)

    psi = MARGINS["arcface_linear"].psi
    return Margin(psi, eta, 0.0, 0.5, "CurricularFace, CVPR 2020; head/metrics.py")


def mv_arc(t: float = 1.12) -> Margin:
    """MV-Arc-Softmax: others above cos(θ_y + m) get t·c + t - 1; ψ is `arcface_easy`'s.

    Args:
      t: weight of the misclassified, at least 1, which is `arcface_easy`.

    Raises:
      ValueError: `t` is less than 1.
    """
    return _misclassified("arcface_wrap", lambda m: 0.0, t)


def mv_am(t: float = 1.12) -> Margin:
    """MV-AM-Softmax: others above c_y - m; ψ is that where c_y > m, else c_y itself.

    As FaceX-Zoo has it. `t` and the ValueError are `mv_arc`'s.
    """
    return _misclassified("cosface", lambda m: m, t)


def _misclassified(base: str, edge_of: Callable[[Any], Any], t: float) -> Margin:
    if not t >= 1:
        raise ValueError(f"t of MV-Softmax is {t}, expected at least 1")
    row = MARGINS[base]

    def psi(target_cos, context):
        within = target_cos > edge_of(context.margin)
        return jnp.where(within, row.psi(target_cos, context), target_cos)

    def eta(cos, target_cos, context):
        above = cos > row.psi(target_cos, context)
        return jnp.where(above, t * cos + t - 1, cos)

    source = "MV-Softmax, AAAI 2020; FaceX-Zoo, head/MV_Softmax.py"
    return Margin(psi, eta, 0.0, 0.35, source)


def circle() -> Margin:
    """α_p·(c - 1 + m) and α_n·(c - m), α_p = [1 + m - c]₊, α_n = [c + m]₊.

    No gradient runs through the weights α, in any of the forms of detachment.
    """

    def psi(target_cos, context):
        m = context.margin
        weight = jnp.maximum(1 + m - jax.lax.stop_gradient(target_cos), 0)
        return weight * (target_cos - (1 - m))

    def eta(cos, target_cos, context):
        del target_cos
        m = context.margin
        return jnp.maximum(jax.lax.stop_gradient(cos) + m, 0) * (cos - m)

    return Margin(psi, eta, 0.0, 0.25, "Circle loss, CVPR 2020; class form, γ = s")
