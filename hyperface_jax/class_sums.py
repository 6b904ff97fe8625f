"""What a loss over classes needs of them, in a form that can be added up.

Classes may come all at once, in chunks, or spread over devices: sums of their parts
are merged with `add` and `across`, exactly (the log-sum-exp by its running maximum).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Below any logit of use, and finite: exp(-inf - _LOWEST) is 0 and not NaN.
_LOWEST = -1e38


class ClassSums(NamedTuple):
    """Of some of the classes; every leaf is [B].

    Attributes:
      peak: largest logit; no gradient.
      total: Σ exp(logit - peak); 0 for losses that are a plain sum over classes.
      target_logit: of the example's own class; 0 where it is not among them.
      target_cos: its cosine, likewise.
      rival: largest cosine of another class; no gradient.
      added: Σ of the loss's own terms, for losses that are one; else 0.
    """

    peak: Array
    total: Array
    target_logit: Array
    target_cos: Array
    rival: Array
    added: Array

    def cross_entropy(self) -> Float[Array, " B"]:
        """-log softmax of the target's logit, once all classes are in."""
        # The large numbers first: their difference is what is left of a small loss.
        return jnp.log(self.total) + (self.peak - self.target_logit)


def of_logits(
    logits: Float[Array, "B K"],
    cos: Float[Array, "B K"],
    is_target: Bool[Array, "B K"],
    class_mask: Bool[Array, " K"] | None,
    terms: Float[Array, "B K"] | None = None,
) -> ClassSums:
    """Sums of K classes.

    Args:
      logits: [B, K].
      cos: [B, K] plain cosines, for reports.
      is_target: [B, K], True in the column of each example's own class, if it is here.
      class_mask: [K], False for classes that take no part, or None.
      terms: [B, K] of a loss that is a plain sum over classes, or None.
    """
    kept, others = logits, jax.lax.stop_gradient(cos)
    if class_mask is not None:
        kept = jnp.where(class_mask[None, :], logits, -jnp.inf)
        others = jnp.where(class_mask[None, :], others, -2)
        if terms is not None:
            terms = jnp.where(class_mask[None, :], terms, 0)
    rival = jnp.max(jnp.where(is_target, -2, others), axis=1)
    nothing = 0 * rival
    if terms is None:
        peak = jnp.maximum(jax.lax.stop_gradient(jnp.max(kept, axis=1)), _LOWEST)
        total = jnp.sum(jnp.exp(kept - peak[:, None]), axis=1)
        added = nothing
    else:
        peak, total, added = nothing + _LOWEST, nothing, jnp.sum(terms, axis=1)
    return ClassSums(
        peak=peak,
        total=total,
        target_logit=jnp.sum(jnp.where(is_target, logits, 0), axis=1),
        target_cos=jnp.sum(jnp.where(is_target, cos, 0), axis=1),
        rival=rival,
        added=added,
    )


def empty(like: Float[Array, " B"], varying: tuple[str, ...] = ()) -> ClassSums:
    """Of no class, with shape and dtype of an array [B].

    Args:
      like: [B].
      varying: mesh axes on whose devices the sums will differ (`jax.shard_map`
        wants to know).
    """

    def full(value):
        filled = jnp.full(like.shape, value, like.dtype)
        return jax.lax.pcast(filled, varying, to="varying") if varying else filled

    return ClassSums(full(_LOWEST), full(0), full(0), full(0), full(-2), full(0))


def add(a: ClassSums, b: ClassSums) -> ClassSums:
    """Sums of the classes of both."""
    peak = jnp.maximum(a.peak, b.peak)
    return ClassSums(
        peak=peak,
        total=a.total * jnp.exp(a.peak - peak) + b.total * jnp.exp(b.peak - peak),
        target_logit=a.target_logit + b.target_logit,
        target_cos=a.target_cos + b.target_cos,
        rival=jnp.maximum(a.rival, b.rival),
        added=a.added + b.added,
    )


def across(sums: ClassSums, axes: tuple[str, ...]) -> ClassSums:
    """Sums over the devices of mesh axes, inside `jax.shard_map`.

    Each device comes with all rows [B] of the axes and leaves with its own [B/n]; rows
    lie on the devices in order, as `jax.lax.all_gather` puts them together.
    """
    peak, rival = (
        jax.lax.pmax(jax.lax.stop_gradient(x), axes) for x in (sums.peak, sums.rival)
    )
    scaled = sums.total * jnp.exp(sums.peak - peak)
    stacked = jnp.stack([scaled, sums.target_logit, sums.target_cos, sums.added])
    stacked = jax.lax.psum_scatter(stacked, axes, scatter_dimension=1, tiled=True)
    total, target_logit, target_cos, added = stacked
    count = total.shape[0]
    start = jax.lax.axis_index(axes) * count
    peak, rival = (jax.lax.dynamic_slice_in_dim(x, start, count) for x in (peak, rival))
    return ClassSums(peak, total, target_logit, target_cos, rival, added)
