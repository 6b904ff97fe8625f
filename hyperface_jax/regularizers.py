"""What may be added to a loss to spread the class vectors over the sphere."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax import geometry
from hyperface_jax.geometry import OFFICIAL_CLIP


def minimum_hyperspherical_energy(
    own: Float[Array, "B D"],
    labels: Int[Array, " B"],
    kept: Bool[Array, " B"],
) -> Float[Array, ""]:
    """Mean of θ_ab^-2 over all pairs of the batch's different classes.

    SphereFace+ (Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS
    2018), after OpenSphere's `spherefaceplus.py`, which takes the classes of each
    device's part of the batch where this takes those of the whole.

    Args:
      own: [B, D], the unit class vector of each example's class; equal for equal
        labels.
      labels: [B].
      kept: [B], False for examples that take no part.

    Returns:
      A scalar; 0 where there are not two classes.
    """
    order = jnp.arange(len(labels))
    equal = (labels[:, None] == labels[None, :]) & kept[None, :]
    repeated = jnp.any(equal & (order[None, :] < order[:, None]), axis=1)
    first = kept & ~repeated
    pair = first[:, None] & first[None, :] & (order[:, None] < order[None, :])
    cos = geometry.cosines(own, own)
    # Before the angle: at 0 it has no inverse, and an unused NaN spoils gradients.
    cos = jnp.where(pair, jnp.clip(cos, -1 + OFFICIAL_CLIP, 1 - OFFICIAL_CLIP), 0)
    energy = jnp.sum(jnp.where(pair, geometry.angle(cos) ** -2, 0))
    count = jnp.sum(pair).astype(energy.dtype)
    return jnp.where(count > 0, energy / jnp.maximum(count, 1), 0)
