"""Precision of the head's matrix products, named for each of them.

A step multiplies three times with the prototypes: for the cosines (forward, and again
in chunks, where it must give the same numbers or probabilities would not sum to 1), for
the gradient of the embeddings, and for the gradient of the prototypes.

    float32       as the hardware multiplies float32 in full
    bfloat16_3x   high·high + high·low + low·high of two bfloat16 parts: half the
                  passes of float32 on a TPU, relative error near 1e-5
    bfloat16      operands rounded to 8 bits, sums in float32

The same numbers on every device but for the order of summation.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PRECISIONS = ("float32", "bfloat16_3x", "bfloat16")


class Products(NamedTuple):
    """Precision of each product, a name of `PRECISIONS`.

    Attributes:
      cosine: [B, D] x [C, D] -> [B, C], whenever it is computed.
      embedding_gradient: [B, C] x [C, D] -> [B, D].
      prototype_gradient: [B, C] x [B, D] -> [C, D].
    """

    cosine: str = "float32"
    embedding_gradient: str = "float32"
    prototype_gradient: str = "float32"


FLOAT32 = Products()


def check(products: Products) -> None:
    """Raises a ValueError that names a precision that does not exist."""
    for name, value in products._asdict().items():
        if value not in PRECISIONS:
            raise ValueError(
                f"precision of {name} is {value!r}, expected one of "
                f"{', '.join(PRECISIONS)}"
            )


def inner_products(
    x: Float[Array, "B D"], w: Float[Array, "C D"], products: Products = FLOAT32
) -> Float[Array, "B C"]:
    """x·wᵀ, its value and both gradients in the named precisions.

    Raises:
      ValueError: a precision has no such name.
    """
    if products == FLOAT32:
        return _product("bd,cd->bc", x, w, "float32")
    check(products)
    return _inner_products(x, w, products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _inner_products(x, w, products):
    return _product("bd,cd->bc", x, w, products.cosine)


def _forward(x, w, products):
    return _inner_products(x, w, products), (x, w)


def _backward(products, kept, gradient):
    x, w = kept
    return (
        _product("bc,cd->bd", gradient, w, products.embedding_gradient),
        _product("bc,bd->cd", gradient, x, products.prototype_gradient),
    )


_inner_products.defvjp(_forward, _backward)


def _product(spec: str, a: Array, b: Array, precision: str) -> Array:
    if precision == "float32":
        return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
    dtype = jnp.result_type(a, b)
    product = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    a_high, b_high = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    result = product(a_high, b_high)
    if precision == "bfloat16_3x":
        a_low, b_low = (
            (whole - high.astype(whole.dtype)).astype(jnp.bfloat16)
            for whole, high in ((a, a_high), (b, b_high))
        )
        result = result + (product(a_high, b_low) + product(a_low, b_high))
    return result.astype(dtype)
