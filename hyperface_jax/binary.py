"""A binary classification for each class instead of a softmax over all.

SphereFace2:

L_i = lw/r · Σ_j α_ij · BCE(z_ij),  z = r·h(cos θ_j) + b, with α for the example's own
class and 1 - α for each other one, and a bias b that all classes share and that is
trained. h is an angular function of g(c) = 2((c + 1)/2)^t - 1, which spreads the
similarities of other classes:

    C (CosFace's kind)      g(c) - m for the own class, g(c) + m for others
    A (ArcFace's)           g(cos min(θ + m, π)), g(c)
    M (multiplicative)      g(cos min(mθ, π)), g(c)

SphereFace2 (Wen et al., ICLR 2022), after OpenSphere's `model/head/sphereface2.py`.
UniFace (Zhou et al., ICCV 2023), its unified cross-entropy, after its `head.py`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperface_jax import class_loss
from hyperface_jax.class_loss import ClassLoss, Prototypes, normalized, report
from hyperface_jax.class_sums import ClassSums
from hyperface_jax.geometry import Scalar, clip_official
from hyperface_jax.margins import CLAMP, MARGINS, Clamp, Detach, MarginContext
from hyperface_jax.precision import FLOAT32, Products


class Variant(NamedTuple):
    """A margin of SphereFace2.

    Attributes:
      own: (cos [B, 1], g, context) -> h of the example's own class.
      others: (cos [B, K], g, context) -> h of the other classes.
      default: m of the official code.
    """

    own: Callable[[Array, Callable[[Array], Array], MarginContext], Array]
    others: Callable[[Array, Callable[[Array], Array], MarginContext], Array]
    default: float


VARIANTS = {
    "c": Variant(
        lambda cos, g, context: g(cos) - context.margin,
        lambda cos, g, context: g(cos) + context.margin,
        0.4,
    ),
    "a": Variant(
        lambda cos, g, context: g(MARGINS["arcface"].psi(cos, context)),
        lambda cos, g, context: g(cos),
        0.5,
    ),
    "m": Variant(
        lambda cos, g, context: g(MARGINS["sphereface_r_v1"].psi(cos, context)),
        lambda cos, g, context: g(cos),
        1.7,
    ),
}
"""Name -> variant; the angles of A and M stop at π, as those of the margins do."""


def similarity(cos: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """g(c) = 2((c + 1)/2)^t - 1, from [-1, 1] to [-1, 1]; t = 1 is c itself."""
    return 2 * ((jnp.clip(cos, -1, 1) + 1) / 2) ** t - 1


def initial_bias(
    variant: str,
    m: float,
    num_classes: int | float,
    *,
    scale: float,
    t: float,
    alpha: float,
) -> float:
    """The b with which all classes weigh equally where all angles are right.

    Args:
      variant: a name of `VARIANTS`.
      m: the margin.
      num_classes: C, at least 2; with sampling those that a step sees.
      scale: r.
      t: exponent of g, at least 1.
      alpha: weight of the own class, between 0 and 1.

    Raises:
      ValueError: `variant` is unknown, `t` or `alpha` out of its range.
    """
    _check(variant, t, alpha)
    with jax.ensure_compile_time_eval():
        cos, context = jnp.zeros((1, 1)), MarginContext(margin=m)
        row = VARIANTS[variant]
        own, other = (
            scale * float(h(cos, lambda c: similarity(c, t), context)[0, 0])
            for h in (row.own, row.others)
        )
    z = alpha / ((1 - alpha) * (num_classes - 1))
    root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - other))
    return math.log(2 * z) - other - math.log(1 - z + root)


def sphereface2(
    *,
    variant: str,
    context: MarginContext,
    bias: Scalar,
    scale: Scalar = 40.0,
    t: float = 3.0,
    alpha: float = 0.7,
    detach: Detach = "cosine",
    clamp: Clamp = "exact",
    prototype_norm: Prototypes = "project",
    loss_weight: Scalar = 10.0,
    divide_by_scale: bool = True,
    products: Products = FLOAT32,
) -> ClassLoss:
    """SphereFace2 as a loss over classes, for `class_loss.dense` and `streaming`.

    Args:
      variant: "c", "a" or "m".
      context: the margin in force.
      bias: b, a scalar; trained like a weight, from `initial_bias`.
      scale: r.
      t: exponent of g, at least 1.
      alpha: weight of the own class, between 0 and 1; others have 1 - alpha.
      detach: "cosine": the gradient of h is that of the plain cosine (official).
        "none": it runs through margin and g.
      clamp: see `margins.angular_functions`.
      prototype_norm: see `losses.hyperspherical_softmax`.
      loss_weight: lw.
      divide_by_scale: lw/r instead of lw (official).
      products: precision of the head's matrix products.

    Returns:
      ClassLoss; in its aux `probability` is the sigmoid of the own class's z.

    Raises:
      ValueError: a name is unknown, `t` or `alpha` out of its range; `detach="angle"`.
    """
    _check(variant, t, alpha)
    if detach not in ("none", "cosine"):
        raise ValueError(f"detach is {detach!r}, expected 'none' or 'cosine'")
    if clamp not in CLAMP:
        raise ValueError(f"clamp is {clamp!r}, expected one of {CLAMP}")
    class_loss.check_prototype_norm(prototype_norm)
    row = VARIANTS[variant]
    weight = loss_weight / scale if divide_by_scale else loss_weight

    def logits(examples, prototypes, target_cos, is_target):
        del target_cos
        cos = class_loss.unit_cosines(examples, prototypes, prototype_norm, products)
        bounded = clip_official(cos) if clamp == "official" else cos

        def g(c):
            return similarity(c, t)

        # Of one class an example: its margin is evaluated on [B, 1].
        own = jnp.sum(jnp.where(is_target, bounded, 0), axis=1, keepdims=True)
        h = jnp.where(
            is_target, row.own(own, g, context), row.others(bounded, g, context)
        )
        if detach == "cosine":
            h = cos + jax.lax.stop_gradient(h - cos)
        return scale * h + bias, cos

    def terms(z, is_target):
        own = alpha * jax.nn.softplus(-z)
        return jnp.where(is_target, own, (1 - alpha) * jax.nn.softplus(z))

    def finish(examples, sums: ClassSums):
        return _weighted(weight, examples, sums)

    return ClassLoss(normalized, logits, finish, terms=terms)


def uniface_bias(num_classes: float) -> float:
    """The official b at the start, ln(10·C), C the classes that a step sees."""
    return math.log(10 * num_classes)


def uniface(
    *,
    context: MarginContext,
    bias: Scalar,
    scale: Scalar = 64.0,
    negatives: float = 1.0,
    prototype_norm: Prototypes = "project",
    loss_weight: Scalar = 1.0,
    divide_by_scale: bool = False,
    products: Products = FLOAT32,
) -> ClassLoss:
    """Unified cross-entropy: one threshold b/s for all positives and negatives.

    L_i = softplus(-(s(cos θ_y - m) - b)) + l·Σ_{j≠y} softplus(s·cos θ_j - b), both
    arguments clipped to ±s. It has no other gradient than that of the plain cosine.

    Args:
      context: the margin in force.
      bias: b, a scalar; trained like a weight, from `uniface_bias`.
      scale: s.
      negatives: l, weight of the other classes.
      prototype_norm: see `losses.hyperspherical_softmax`.
      loss_weight: lw.
      divide_by_scale: lw/s instead of lw.
      products: precision of the head's matrix products.

    Returns:
      ClassLoss; in its aux `probability` is the sigmoid of the own class's z.

    Raises:
      ValueError: `prototype_norm` is unknown, `negatives` not positive.
    """
    class_loss.check_prototype_norm(prototype_norm)
    if not negatives > 0:
        raise ValueError(f"negatives of UniFace is {negatives}, expected more than 0")
    weight = loss_weight / scale if divide_by_scale else loss_weight

    def logits(examples, prototypes, target_cos, is_target):
        del target_cos
        cos = class_loss.unit_cosines(examples, prototypes, prototype_norm, products)
        moved = jnp.where(is_target, cos - context.margin, cos)
        return jnp.clip(scale * moved - bias, -scale, scale), cos

    def terms(z, is_target):
        own = jax.nn.softplus(-z)
        return jnp.where(is_target, own, negatives * jax.nn.softplus(z))

    def finish(examples, sums: ClassSums):
        return _weighted(weight, examples, sums)

    return ClassLoss(normalized, logits, finish, terms=terms)


def _weighted(weight: Scalar, examples, sums: ClassSums) -> tuple[Array, dict]:
    """The loss [B] and aux; `probability` is the sigmoid of the own class's z."""
    aux = report(examples.norms, sums, jax.nn.softplus(-sums.target_logit))
    return weight * sums.added, aux | {"penalty": 0 * examples.norms}


def _check(variant: str, t: float, alpha: float) -> None:
    if variant not in VARIANTS:
        raise ValueError(
            f"variant of SphereFace2 is {variant!r}, expected one of "
            f"{', '.join(VARIANTS)}"
        )
    if not t >= 1:
        raise ValueError(f"t of SphereFace2 is {t}, expected at least 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha of SphereFace2 is {alpha}, expected 0 < alpha < 1")
