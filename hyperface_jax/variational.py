"""Variational prototypes (VPL): class vectors mixed with what was seen of the class.

Each class remembers its last unit embedding and when that was; while it is recent,
the logits are those of normalize((1 - λ)·w_j + λ·q_j). Deng et al., CVPR 2021, after
InsightFace's `recognition/vpl/vpl.py`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from hyperface_jax import class_rows, geometry
from hyperface_jax.adaptive import Seen
from hyperface_jax.sharding import AXES

_NEVER = -(2**30)


class Variational(NamedTuple):
    """Settings.

    Attributes:
      share: λ.
      start: steps before anything is mixed in.
      recent: steps for which an embedding counts.
    """

    share: float = 0.15
    start: int = 8000
    recent: int = 200


def empty(rows: int, dim: int) -> dict[str, Any]:
    """The memory before the first step; split over devices as the prototypes are.

    Returns:
      Under "prototypes": "last" [rows, dim], and "at" [rows], the step of each.
    """
    last = jnp.zeros((rows, dim), jnp.float32)
    return {"prototypes": {"last": last, "at": jnp.full(rows, _NEVER, jnp.int32)}}


def mixed(
    prototypes: Float[Array, "R D"], memory: Any, settings: Variational, step: Array
) -> Float[Array, "R D"]:
    """Unit rows [R, D]; the gradient runs through the mixing to the prototypes.

    Args:
      prototypes: [R, D], of any length.
      memory: of `empty` or `remembered`, of the same rows.
      settings: share, start and recent.
      step: updates done, a scalar.
    """
    last, at = memory["prototypes"]["last"], memory["prototypes"]["at"]
    iteration = step + 1  # the official code counts from 1
    use = (iteration > settings.start) & (iteration - at <= settings.recent)
    share = jnp.where(use, settings.share, 0).astype(prototypes.dtype)[:, None]
    unit = geometry.l2_normalize(prototypes)
    return geometry.l2_normalize(unit * (1 - share) + last * share)


def remembered(
    memory: Any,
    seen: Seen,
    step: Array,
    *,
    mesh: Mesh | None,
    class_axes: tuple[str, ...] = AXES,
) -> Any:
    """The memory after a step; of several images of a class the last one stays."""
    old, kept = memory["prototypes"], seen.weight > 0
    where: dict[str, Any] = {"mesh": mesh, "class_axes": class_axes}
    unit = geometry.l2_normalize(seen.embeddings)
    now = jnp.broadcast_to(step + 1, seen.labels.shape)
    return {
        "prototypes": {
            "last": class_rows.put(old["last"], seen.labels, unit, kept, **where),
            "at": class_rows.put(old["at"], seen.labels, now, kept, **where),
        }
    }
