"""The hyperspherical softmax loss: one value an example, and what it was made of.

No reduction over the batch here: callers take (weighted) means.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax import geometry
from hyperface_jax.geometry import Scalar
from hyperface_jax.magnitudes import Magnitude
from hyperface_jax.margins import (
    Clamp,
    Detach,
    Margin,
    MarginContext,
    angular_functions,
)

Prototypes = Literal["project", "differentiate"]
PROTOTYPES = ("project", "differentiate")
Aux = dict[str, Array]


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
    _check_shapes(embeddings, labels, prototypes)
    if not isinstance(margin, Margin):
        raise ValueError(f"margin is {margin!r}, expected a row of margins.MARGINS")
    embeddings = geometry.at_least_float32(embeddings)
    norms = geometry.magnitude(embeddings)[:, None]  # [B, 1]
    if prototype_norm == "differentiate":
        prototypes = geometry.l2_normalize(prototypes)
    elif prototype_norm != "project":
        raise ValueError(
            f"prototype_norm is {prototype_norm!r}, expected one of {PROTOTYPES}"
        )
    cos = geometry.cosines(geometry.l2_normalize(embeddings), prototypes)  # [B, C]
    is_target = _is_target(labels, prototypes.shape[0])
    target_cos = jnp.sum(jnp.where(is_target, cos, 0), axis=1, keepdims=True)
    functions = angular_functions(
        cos,
        target_cos,
        is_target,
        margin=margin,
        context=context._replace(magnitude=norms),
        detach=detach,
        clamp=clamp,
    )
    logits = magnitude.rho(norms) * functions
    cross_entropy = _cross_entropy(logits, is_target, class_mask)
    weight = loss_weight
    if divide_by_scale and magnitude.scale is not None:
        weight = loss_weight / magnitude.scale
    penalty = magnitude.penalty(norms[:, 0])
    aux = _aux(cos, target_cos, is_target, norms[:, 0], cross_entropy, class_mask)
    return weight * cross_entropy + penalty, aux | {"penalty": penalty}


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
    _check_shapes(embeddings, labels, prototypes)
    embeddings = geometry.at_least_float32(embeddings)
    logits = geometry.cosines(embeddings, prototypes)
    is_target = _is_target(labels, prototypes.shape[0])
    cross_entropy = _cross_entropy(logits, is_target, class_mask)
    norms = geometry.magnitude(embeddings)
    lengths = norms[:, None] * geometry.magnitude(prototypes)[None, :]
    cos = jax.lax.stop_gradient(logits / jnp.maximum(lengths, 1e-12))
    target_cos = jnp.sum(jnp.where(is_target, cos, 0), axis=1, keepdims=True)
    aux = _aux(cos, target_cos, is_target, norms, cross_entropy, class_mask)
    return loss_weight * cross_entropy, aux | {"penalty": jnp.zeros_like(norms)}


def _check_shapes(embeddings: Array, labels: Array, prototypes: Array) -> None:
    x, y, w = embeddings.shape, labels.shape, prototypes.shape
    fits = (len(x), len(y), len(w)) == (2, 1, 2) and x[0] == y[0] and x[1] == w[1]
    if not fits:
        raise ValueError(
            f"embeddings, labels, prototypes are {list(x)}, {list(y)}, {list(w)}, "
            "expected [B, D], [B], [C, D]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}, expected integers")


def _cross_entropy(logits: Array, is_target: Array, class_mask: Array | None) -> Array:
    """-log softmax of the target's logit, over the classes of the mask. [B]"""
    target = jnp.sum(jnp.where(is_target, logits, 0), axis=1)
    if class_mask is not None:
        logits = jnp.where(class_mask[None, :], logits, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=1) - target


def _aux(cos, target_cos, is_target, norms, cross_entropy, class_mask) -> Aux:
    """What the caller reports; no gradient."""
    others = cos if class_mask is None else jnp.where(class_mask[None, :], cos, -2)
    rival = jnp.max(jnp.where(is_target, -2, others), axis=1)
    aux = {
        "target_cos": target_cos[:, 0],
        "magnitude": norms,
        "correct": (target_cos[:, 0] > rival).astype(cos.dtype),
        "probability": jnp.exp(-cross_entropy),
    }
    return jax.lax.stop_gradient(aux)


def _is_target(labels: Array, num_classes: int) -> Array:
    """[B, C], True in the column of each example's own class."""
    return labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None, :]
