"""Named precisions of the head's products, one at a time, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import classifier, precision, schedules, sharding
from hyperface_jax.precision import Products

B, C, D = 16, 40, 96
NAMES = Products._fields

# Relative errors (Frobenius) that a product may have, and a bound from below that shows
# that the named precision is the one in use.
BOUNDS = {
    "float32": (0, 1e-6),
    "bfloat16_3x": (1e-6, 3e-5),
    "bfloat16": (5e-4, 5e-3),
}


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def errors(products):
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(s) for s in ((B, D), (C, D), (B, C)))
    value, vjp = jax.vjp(
        lambda x, w: precision.inner_products(x, w, products),
        *(jnp.asarray(a, jnp.float32) for a in (x, w)),
    )
    dx, dw = vjp(jnp.asarray(g, jnp.float32))
    exact = (x @ w.T, g @ w, g.T @ x)
    return dict(zip(NAMES, map(relative, (value, dx, dw), exact), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", precision.PRECISIONS)
def test_each_product_has_the_named_precision(name, kind):
    found = errors(precision.FLOAT32._replace(**{name: kind}))
    for product, error in found.items():
        low, high = BOUNDS[kind if product == name else "float32"]
        assert low <= error < high, (product, error)


def test_an_unknown_precision_is_named():
    products = Products(cosine="float16")
    with pytest.raises(ValueError, match=r"cosine is 'float16'.*bfloat16_3x"):
        precision.inner_products(jnp.ones((2, 3)), jnp.ones((4, 3)), products)


def head(products, *, chunk=0, model=None):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((B, D)), jnp.float32)
    w = rng.standard_normal((C, D))
    w = jnp.asarray(w / np.linalg.norm(w, axis=1, keepdims=True), jnp.float32)
    labels = jnp.asarray(rng.integers(0, C, B), jnp.int32)
    loss = classifier.Head(
        "sphereface_r_v1",
        num_classes=C - 3,
        scale=20.0,
        margin=schedules.constant(1.3),
        products=products,
        chunk=chunk,
        mesh=sharding.make_mesh(model) if model else None,
    )
    labels = labels % (C - 3)
    total = lambda x, w: jnp.sum(loss(x, labels, w, 0)[0])  # noqa: E731
    return jax.jit(jax.value_and_grad(total, (0, 1)))(x, w)


@pytest.mark.parametrize(("chunk", "model"), [(8, None), (0, 2), (5, 2)])
def test_chunks_and_shards_round_alike(chunk, model):
    products = Products("bfloat16_3x", "bfloat16", "bfloat16_3x")
    expected, found = head(products), head(products, chunk=chunk, model=model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Rounded to bfloat16 the gradient of a chunk is that of the whole.
        assert relative(a, b) < 1e-4
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(head(precision.FLOAT32)), strict=True
    ):
        assert relative(a, b) < 1e-2
