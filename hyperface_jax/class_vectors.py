"""Class vectors (prototypes, class weights W, centres): how many rows, their start."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hyperface_jax import geometry

INITS = ("xavier_normal", "normal", "unit")


def padded_classes(num_classes: int, multiple: int) -> int:
    """Rows of the prototype array: the next multiple, whatever the mesh.

    A fixed multiple, rather than the number of devices, lets a checkpoint be restored
    on any number of devices.
    """
    return -(-num_classes // multiple) * multiple


def init_prototypes(
    key: Array,
    *,
    num_classes: int,
    rows: int,
    embedding_dim: int,
    init: str = "xavier_normal",
    unit: bool = True,
    centres: int = 1,
) -> Array:
    """Class vectors [rows, D] in float32; rows beyond `num_classes` are padding, 0.

    With sub-centres [rows, centres, D].

    Args:
      key: random key.
      num_classes: C, the number of identities.
      rows: C rounded up by `padded_classes`.
      embedding_dim: D.
      init: "xavier_normal", σ = √(2/(D+C)) (OpenSphere), "normal", σ = .01
        (InsightFace), or "unit", length 1 (AdaFace). Directions are the same; lengths
        matter without "project": a step turns a short vector further.
      unit: normalise the rows, as "project" needs.
      centres: class vectors a class; 1 leaves the axis out.

    Raises:
      ValueError: `init` is unknown.
    """
    if init not in INITS:
        raise ValueError(f"prototype init is {init!r}, expected one of {INITS}")
    xavier = (2 / (embedding_dim + num_classes)) ** 0.5
    sigma = xavier if init == "xavier_normal" else 0.01
    shape = (rows, embedding_dim) if centres == 1 else (rows, centres, embedding_dim)
    w = sigma * jax.random.normal(key, shape, jnp.float32)
    if unit or init == "unit":
        w = geometry.l2_normalize(w)
    known = jnp.arange(rows).reshape(-1, *(1,) * (w.ndim - 1)) < num_classes
    return jnp.where(known, w, 0)
