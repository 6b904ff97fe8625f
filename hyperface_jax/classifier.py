"""The head: class vectors and the loss over them, as one function of the step.

`make_loss_fn` binds everything static (margin, normalisation, schedules) and returns
`(embeddings, labels, prototypes, step) -> (loss [B], aux)`, which is all that the train
step knows of a loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from hyperface_jax import (
    geometry,
    losses,
    magnitudes,
    margins,
    precision,
    schedules,
    streaming,
)
from hyperface_jax.sharding import AXES

PLAIN_SOFTMAX = "plain_softmax"
LOSSES = (PLAIN_SOFTMAX, *margins.MARGINS)
INITS = ("xavier_normal", "normal")

LossFn = Callable[..., tuple[Array, losses.Aux]]
"""(embeddings [B, D], labels [B], prototypes [R, D], step, ids [R] or None) ->
(loss [B], aux)"""


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
) -> Array:
    """Class vectors [rows, D] in float32; rows beyond `num_classes` are padding, 0.

    Args:
      key: random key.
      num_classes: C, the number of identities.
      rows: C rounded up by `padded_classes`.
      embedding_dim: D.
      init: "xavier_normal", σ = √(2/(D+C)) (OpenSphere), or "normal", σ = .01
        (InsightFace). Directions are the same; lengths matter without "project".
      unit: normalise the rows, as "project" needs.
    """
    if init not in INITS:
        raise ValueError(f"prototype init is {init!r}, expected one of {INITS}")
    xavier = (2 / (embedding_dim + num_classes)) ** 0.5
    sigma = xavier if init == "xavier_normal" else 0.01
    w = sigma * jax.random.normal(key, (rows, embedding_dim), jnp.float32)
    if unit:
        w = geometry.l2_normalize(w)
    return jnp.where(jnp.arange(rows)[:, None] < num_classes, w, 0)


def make_loss_fn(
    loss: str,
    *,
    num_classes: int,
    norm: str = "hfn",
    scale: float = 30.0,
    margin: schedules.Schedule,
    annealing: schedules.Schedule | None = None,
    penalty: str = "l1",
    penalty_strength: float = 0.01,
    detach: margins.Detach = "cosine",
    clamp: margins.Clamp = "exact",
    interclass_filter: float = 0.0,
    prototype_norm: losses.Prototypes = "project",
    loss_weight: float = 1.0,
    divide_by_scale: bool = True,
    products: precision.Products = precision.FLOAT32,
    chunk: int = 0,
    mesh: Mesh | None = None,
    class_axes: tuple[str, ...] = AXES,
) -> LossFn:
    """Binds a loss to its settings.

    Args:
      loss: a name of `LOSSES`.
      num_classes: C; further rows of the prototypes are padding and masked out.
      norm: "hfn", "nfn" or "sfn".
      scale: s of HFN and SFN.
      margin: step -> m.
      annealing: step -> λ of SphereFace 2017, or None.
      penalty: SFN's "l1" or "l2".
      penalty_strength: SFN's t.
      detach: see `margins.angular_functions`.
      clamp: see `margins.angular_functions`.
      interclass_filter: see `losses.hyperspherical`.
      prototype_norm: see `losses.hyperspherical_softmax`.
      loss_weight: lw.
      divide_by_scale: lw/s instead of lw.
      products: precision of the matrix products.
      chunk: classes at a time, see `streaming.choose_chunk`.
      mesh: see `streaming.evaluate`.
      class_axes: see `streaming.evaluate`.

    Returns:
      (embeddings [B, D], labels [B], prototypes [rows, D], step, ids) ->
      (loss [B], aux); `ids` are the classes of the rows where they are not all.
    """
    if loss == PLAIN_SOFTMAX:

        def loss_of(context):
            del context
            return losses.plain(loss_weight=loss_weight, products=products)
    else:
        settings: dict[str, Any] = {
            "margin": margins.get_margin(loss),
            "magnitude": _magnitude(norm, scale, penalty, penalty_strength),
            "detach": detach,
            "clamp": clamp,
            "interclass_filter": interclass_filter,
            "prototype_norm": prototype_norm,
            "loss_weight": loss_weight,
            "divide_by_scale": divide_by_scale,
            "products": products,
        }

        def loss_of(context):
            return losses.hyperspherical(context=context, **settings)

    def loss_fn(embeddings, labels, prototypes, step, ids=None):
        dtype = geometry.at_least_float32(embeddings).dtype
        context = margins.MarginContext(
            margin=jnp.asarray(margin(step), dtype),
            annealing=jnp.asarray(annealing(step) if annealing else 0.0, dtype),
        )
        return streaming.evaluate(
            loss_of,
            context,
            embeddings,
            labels,
            prototypes,
            num_classes=num_classes,
            ids=ids,
            chunk=chunk,
            mesh=mesh,
            class_axes=class_axes,
        )

    return loss_fn


def _magnitude(
    norm: str, scale: float, penalty: str, strength: float
) -> magnitudes.Magnitude:
    if norm == "hfn":
        return magnitudes.hfn(scale)
    if norm == "sfn":
        return magnitudes.sfn(scale, strength, penalty)
    if norm == "nfn":
        return magnitudes.nfn()
    raise ValueError(f"norm is {norm!r}, expected one of {magnitudes.MAGNITUDES}")
