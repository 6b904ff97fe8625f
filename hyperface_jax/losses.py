"""The hyperspherical softmax loss: one value an example, and what it was made of."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax import class_loss, geometry
from hyperface_jax.class_loss import (
    Aux,
    ClassLoss,
    Examples,
    Prototypes,
    dense,
    normalized,
    report,
)
from hyperface_jax.geometry import Scalar
from hyperface_jax.magnitudes import Magnitude
from hyperface_jax.margins import (
    Clamp,
    Detach,
    Margin,
    MarginContext,
    angular_functions,
    looks_at_target,
)
from hyperface_jax.precision import FLOAT32, Products


def hyperspherical(
    *,
    margin: Margin,
    magnitude: Magnitude,
    context: MarginContext,
    detach: Detach = "cosine",
    clamp: Clamp = "exact",
    interclass_filter: float = 0.0,
    prototype_norm: Prototypes = "project",
    loss_weight: Scalar = 1.0,
    divide_by_scale: bool = True,
    products: Products = FLOAT32,
) -> ClassLoss:
    """The unified framework's loss; arguments of `hyperspherical_softmax`.

    And `interclass_filter`: other classes whose cosine is above it count as if it were
    0, without a gradient: they may be the same person (InsightFace, .4; 0 is off).
    And `products`, the precision of the head's matrix products.

    Raises:
      ValueError: `margin` is no `Margin` (its name, perhaps), or `prototype_norm` is
        unknown; `detach` and `clamp` when the loss is evaluated.
    """
    if not isinstance(margin, Margin):
        raise ValueError(f"margin is {margin!r}, expected a row of margins.MARGINS")
    class_loss.check_prototype_norm(prototype_norm)
    weight = loss_weight
    if divide_by_scale and magnitude.scale is not None:
        weight = loss_weight / magnitude.scale

    def logits(examples, prototypes, target_cos, is_target):
        cos = class_loss.unit_cosines(examples, prototypes, prototype_norm, products)
        plain_cos = cos
        if interclass_filter:
            cos = jnp.where(is_target | (cos <= interclass_filter), cos, 0)
        own = jnp.sum(jnp.where(is_target, cos, 0), axis=1, keepdims=True)
        if target_cos is not None:
            here = jnp.any(is_target, axis=1, keepdims=True)
            own = jnp.where(here, own, jax.lax.stop_gradient(target_cos))
        norms = examples.norms[:, None]
        given = {name: value[:, None] for name, value in examples.given.items()}
        functions = angular_functions(
            cos,
            own,
            is_target,
            margin=margin,
            context=context._replace(magnitude=norms, **given),
            detach=detach,
            clamp=clamp,
        )
        return magnitude.rho(norms) * functions, plain_cos

    def finish(examples, sums):
        cross_entropy = sums.cross_entropy()
        penalty = magnitude.penalty(examples.norms)
        if margin.penalty is not None:
            penalty = penalty + weight * margin.penalty(examples.norms)
        loss = weight * cross_entropy + penalty
        return loss, report(examples.norms, sums, cross_entropy) | {"penalty": penalty}

    return ClassLoss(normalized, logits, finish, looks_at_target(margin, context))


def plain(*, loss_weight: Scalar = 1.0, products: Products = FLOAT32) -> ClassLoss:
    """Softmax cross-entropy over x·w_j; arguments of `plain_softmax`."""

    def prepare(embeddings):
        embeddings = geometry.at_least_float32(embeddings)
        return Examples(embeddings, geometry.magnitude(embeddings))

    def logits(examples, prototypes, target_cos, is_target):
        del target_cos, is_target
        values = geometry.cosines(examples.vectors, prototypes, products)
        lengths = examples.norms[:, None] * geometry.magnitude(prototypes)[None, :]
        return values, jax.lax.stop_gradient(values / jnp.maximum(lengths, 1e-12))

    def finish(examples, sums):
        cross_entropy = sums.cross_entropy()
        aux = report(examples.norms, sums, cross_entropy)
        return loss_weight * cross_entropy, aux | {"penalty": 0 * examples.norms}

    return ClassLoss(prepare, logits, finish)


def of_the_others(scale: Scalar) -> ClassLoss:
    """Not a loss: log Σ_{j≠y} exp(s·cos θ_j) [B], which AdaCos needs beforehand."""

    def logits(examples, prototypes, target_cos, is_target):
        del target_cos
        cos = class_loss.unit_cosines(examples, prototypes, "differentiate")
        return jnp.where(is_target, -jnp.inf, scale * cos), cos

    def finish(examples, sums):
        del examples
        return sums.peak + jnp.log(sums.total), {}

    return ClassLoss(normalized, logits, finish)


def hyperspherical_softmax(
    embeddings: Float[Array, "B D"],
    labels: Int[Array, " B"],
    prototypes: Float[Array, "C D"],
    *,
    margin: Margin,
    magnitude: Magnitude,
    context: MarginContext,
    detach: Detach = "cosine",
    clamp: Clamp = "exact",
    prototype_norm: Prototypes = "project",
    loss_weight: Scalar = 1.0,
    divide_by_scale: bool = True,
    class_mask: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, " B"], Aux]:
    """Cross-entropy over ρ(|x|)·ψ(θ_y) and ρ(|x|)·η(θ_j): the unified framework.

    L_i = κ·( -log softmax(logits)_y ) + penalty(|x_i|), κ = loss_weight, divided by
    the scale s where there is one and `divide_by_scale` is set (OpenSphere's lw/s:
    it makes the size of a step independent of s, and lw = 50 gives it back).

    Args:
      embeddings: [B, D], not normalised, any float type.
      labels: [B] integers in [0, C); the loss of any other is NaN.
      prototypes: [C, D] class vectors (class weights W, proxies, centres).
      margin: psi and eta, e.g. `margins.MARGINS["sphereface_r_v2"]`.
      magnitude: rho and its penalty, e.g. `magnitudes.hfn(60.)`.
      context: holds the margin m in force; may be traced.
      detach: see `margins.angular_functions`.
      clamp: see `margins.angular_functions`.
      prototype_norm: "project": the rows are unit vectors already and no gradient
        runs through their norm (official code). "differentiate": rows of any length,
        normalised here, with the gradient through the norm (InsightFace).
      loss_weight: lw.
      divide_by_scale: use lw/s rather than lw.
      class_mask: [C], False for padding rows, which then take no part.

    Returns:
      Loss [B] and a dict: `target_cos` [B], `magnitude` [B], `penalty` [B],
      `correct` [B] (the largest plain cosine is the target's), `probability` [B] of
      the target under the logits.

    Raises:
      ValueError: the shapes do not fit, labels are no integers, `margin` is no
        `Margin`, or `detach`, `clamp` or `prototype_norm` is unknown.
    """
    loss = hyperspherical(
        margin=margin,
        magnitude=magnitude,
        context=context,
        detach=detach,
        clamp=clamp,
        prototype_norm=prototype_norm,
        loss_weight=loss_weight,
        divide_by_scale=divide_by_scale,
    )
    return dense(loss, embeddings, labels, prototypes, class_mask)


def plain_softmax(
    embeddings: Float[Array, "B D"],
    labels: Int[Array, " B"],
    prototypes: Float[Array, "C D"],
    *,
    loss_weight: Scalar = 1.0,
    class_mask: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, " B"], Aux]:
    """Softmax cross-entropy over x·w_j, nothing normalised, no bias.

    The baseline of baselines. Shapes, returns, aux and the ValueError of wrong shapes
    as `hyperspherical_softmax`; cosines in aux are those of the normalised vectors.
    """
    loss = plain(loss_weight=loss_weight)
    return dense(loss, embeddings, labels, prototypes, class_mask)
