"""What a network costs, from shapes alone: parameters, operations, feature maps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax.backbones import Backbone

# Largest feature maps that a moment of the backward pass needs besides those it keeps,
# as XLA compiles for a CPU.
_MAPS_AT_WORK = 2

_PRODUCTS = ("conv_general_dilated", "dot_general")


class BackboneCounts(NamedTuple):
    """Counts of a network.

    Attributes:
      parameters: number of weights.
      flops: of the forward pass of an image, two a multiplication.
      activations: bytes of feature maps at the worst moment of a step on `batch`
        images: those that the backward pass keeps, and a few that it works on.
    """

    parameters: int
    flops: float
    activations: int


def count_backbone(backbone: Backbone, image_size: int, batch: int) -> BackboneCounts:
    """Counts from shapes; nothing is computed.

    Args:
      backbone: the network.
      image_size: H = W.
      batch: images of one device that are computed at once.
    """
    params, stats = jax.eval_shape(
        functools.partial(backbone.init, image_size=image_size), jax.random.key(0)
    )
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    weight = jax.ShapeDtypeStruct((batch,), jnp.float32)

    def forward(params, stats, images, weight):
        key = jax.random.key(0)
        return backbone.apply(params, stats, images, train=True, weight=weight, key=key)

    def kept(params, stats, images, weight):
        return jax.vjp(
            lambda p: forward(p, stats, images, weight), params, has_aux=True
        )[1]

    jaxpr = jax.make_jaxpr(forward)(params, stats, images, weight).jaxpr
    residuals = jax.tree.leaves(jax.eval_shape(kept, params, stats, images, weight))
    maps = sum(nbytes(leaf) for leaf in residuals if leaf.shape[:1] == (batch,))
    return BackboneCounts(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        flops=_flops(jaxpr) / batch,
        activations=maps + _MAPS_AT_WORK * _largest(jaxpr, batch),
    )


def _flops(jaxpr) -> float:
    """Operations of the products of a program, two a multiplication."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            flops += 2 * _multiplications(equation)
        flops += sum(_flops(inner) for inner in _inner(equation))
    return flops


def _largest(jaxpr, batch: int) -> int:
    """Bytes of the largest array [batch, ...] that a product writes."""
    sizes = [
        nbytes(value.aval)
        for equation in jaxpr.eqns
        if equation.primitive.name in _PRODUCTS
        for value in equation.outvars
        if value.aval.shape[:1] == (batch,)
    ]
    inside = [_largest(i, batch) for e in jaxpr.eqns for i in _inner(e)]
    return max([0, *sizes, *inside])


def _inner(equation) -> list[Any]:
    found = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    return [inner for inner in found if hasattr(inner, "eqns")]


def _multiplications(equation) -> float:
    result = float(np.prod(equation.outvars[0].aval.shape))
    left, right = (v.aval.shape for v in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return result * float(np.prod([left[axis] for axis in contracted]))
    numbers = equation.params["dimension_numbers"]
    return result * float(np.prod([right[axis] for axis in numbers.rhs_spec[1:]]))


def nbytes(array: Any) -> int:
    """Size of anything with a shape and a dtype."""
    return array.size * array.dtype.itemsize
