"""The hyperspherical softmax loss: one value an example, and what it was made of.

No reduction over the batch here: callers take (weighted) means. A loss over classes is
a `ClassLoss`, three functions, so that the classes between the first and the last may
come all at once (`dense`), in chunks or from several devices (`streaming`).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax import class_sums, geometry
from hyperface_jax.class_sums import ClassSums
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

Prototypes = Literal["project", "differentiate"]
PROTOTYPES = ("project", "differentiate")
Aux = dict[str, Array]


class Examples(NamedTuple):
    """What the classes must know of the examples.

    Attributes:
      vectors: [B, D], to be multiplied with prototypes.
      norms: [B], lengths of the embeddings.
    """

    vectors: Array
    norms: Array


class ClassLoss(NamedTuple):
    """A loss that is a softmax over classes, or a plain sum over them.

    Attributes:
      prepare: embeddings [B, D] -> Examples.
      logits: (Examples, prototypes [K, D], target_cos [B, 1], is_target [B, K]) ->
        (logits [B, K], plain cosines [B, K]) of any K classes; `target_cos` may be
        None where the target is among them.
      finish: (Examples, ClassSums of all classes) -> (loss [B], aux).
      needs_target: logits of other classes depend on target_cos.
      terms: (logits [B, K], is_target [B, K]) -> [B, K], of a loss that is a plain sum
        over classes; it finds the sum in ClassSums.added.
    """

    prepare: Callable[[Array], Examples]
    logits: Callable[[Examples, Array, Array | None, Array], tuple[Array, Array]]
    finish: Callable[[Examples, ClassSums], tuple[Array, Aux]]
    needs_target: bool = False
    terms: Callable[[Array, Array], Array] | None = None

    def sums(
        self,
        examples: Examples,
        prototypes: Float[Array, "K D"],
        target_cos: Float[Array, "B 1"] | None,
        is_target: Bool[Array, "B K"],
        class_mask: Bool[Array, " K"] | None,
    ) -> ClassSums:
        """What `finish` needs of K classes; arguments as `logits`."""
        logits, cos = self.logits(examples, prototypes, target_cos, is_target)
        terms = self.terms(logits, is_target) if self.terms else None
        return class_sums.of_logits(logits, cos, is_target, class_mask, terms)


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
    """
    if not isinstance(margin, Margin):
        raise ValueError(f"margin is {margin!r}, expected a row of margins.MARGINS")
    if prototype_norm not in PROTOTYPES:
        raise ValueError(
            f"prototype_norm is {prototype_norm!r}, expected one of {PROTOTYPES}"
        )
    weight = loss_weight
    if divide_by_scale and magnitude.scale is not None:
        weight = loss_weight / magnitude.scale

    def prepare(embeddings):
        embeddings = geometry.at_least_float32(embeddings)
        norms = geometry.magnitude(embeddings)
        return Examples(geometry.l2_normalize(embeddings), norms)

    def logits(examples, prototypes, target_cos, is_target):
        if prototype_norm == "differentiate":
            prototypes = geometry.l2_normalize(prototypes)
        cos = geometry.cosines(examples.vectors, prototypes, products)
        plain_cos = cos
        if interclass_filter:
            cos = jnp.where(is_target | (cos <= interclass_filter), cos, 0)
        own = jnp.sum(jnp.where(is_target, cos, 0), axis=1, keepdims=True)
        if target_cos is not None:
            here = jnp.any(is_target, axis=1, keepdims=True)
            own = jnp.where(here, own, jax.lax.stop_gradient(target_cos))
        norms = examples.norms[:, None]
        functions = angular_functions(
            cos,
            own,
            is_target,
            margin=margin,
            context=context._replace(magnitude=norms),
            detach=detach,
            clamp=clamp,
        )
        return magnitude.rho(norms) * functions, plain_cos

    def finish(examples, sums):
        cross_entropy = sums.cross_entropy()
        penalty = magnitude.penalty(examples.norms)
        loss = weight * cross_entropy + penalty
        return loss, report(examples.norms, sums, cross_entropy) | {"penalty": penalty}

    return ClassLoss(prepare, logits, finish, looks_at_target(margin, context))


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


def dense(
    loss: ClassLoss,
    embeddings: Float[Array, "B D"],
    labels: Int[Array, " B"],
    prototypes: Float[Array, "C D"],
    class_mask: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, " B"], Aux]:
    """The loss of each example with the whole matrix of logits [B, C] at once."""
    check_shapes(embeddings, labels, prototypes)
    examples = loss.prepare(embeddings)
    ids = jnp.arange(prototypes.shape[0], dtype=labels.dtype)
    is_target = labels[:, None] == ids[None, :]
    sums = loss.sums(examples, prototypes, None, is_target, class_mask)
    return loss.finish(examples, sums)


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
      labels: [B] integers in [0, C); one outside has no target and is not noticed
        here, inside a compiled step.
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

    The baseline of baselines. Shapes, returns and aux as `hyperspherical_softmax`;
    cosines in aux are those of the normalised vectors.
    """
    loss = plain(loss_weight=loss_weight)
    return dense(loss, embeddings, labels, prototypes, class_mask)


def check_shapes(embeddings: Array, labels: Array, prototypes: Array) -> None:
    """Raises a ValueError that names the shapes unless they are [B, D], [B], [C, D]."""
    x, y, w = embeddings.shape, labels.shape, prototypes.shape
    fits = (len(x), len(y), len(w)) == (2, 1, 2) and x[0] == y[0] and x[1] == w[1]
    if not fits:
        raise ValueError(
            f"embeddings, labels, prototypes are {list(x)}, {list(y)}, {list(w)}, "
            "expected [B, D], [B], [C, D]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}, expected integers")


def report(norms: Array, sums: ClassSums, cross_entropy: Array) -> Aux:
    """What the step reports of each example, all [B]; no gradient."""
    aux = {
        "target_cos": sums.target_cos,
        "magnitude": norms,
        "correct": (sums.target_cos > sums.rival).astype(norms.dtype),
        "probability": jnp.exp(-cross_entropy),
    }
    return jax.lax.stop_gradient(aux)
