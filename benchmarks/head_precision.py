"""Error and time of the head for each precision of each of its matrix products.

    python benchmarks/head_precision.py --classes 8192 --batch 256

The reference is the same loss in float64 on the same (float32) values. Embeddings lie
around their class vectors as in the middle of training (target angles near 60 degrees).
Errors are relative, of the whole gradient (Frobenius norm). The trajectory is 20 steps
of SGD with momentum on prototypes and on a linear map that makes the embeddings;
its error is that of the parameters' change. "recomputed": the gradient where forward
sums are exact and the cosines that the gradient is made of are computed again in the
named precision, which the head does not offer. Times are of this machine: a CPU
multiplies bfloat16 by way of float32.
"""

import argparse
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax import classifier, precision, schedules
from hyperface_jax.precision import PRECISIONS, Products


def make_data(a, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((a.classes, a.dim))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    labels = rng.integers(0, a.classes, a.batch)
    noise = rng.standard_normal((a.batch, a.dim))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    x = 5 * (0.5 * w[labels] + 0.87 * noise)
    single = (np.float32(x), np.float32(w))  # values that float32 has, too
    return *single, labels.astype(np.int32)


def loss_of(a, products, dtype):
    loss = classifier.Head(
        a.loss,
        num_classes=a.classes,
        scale=a.scale,
        margin=schedules.constant(a.margin),
        loss_weight=1.0,
        divide_by_scale=False,
        products=products,
        chunk=a.classes,
    )

    def mean(x, w, labels):
        return jnp.mean(loss(x.astype(dtype), labels, w.astype(dtype), 0)[0])

    return mean


def gradients(a, products, dtype, data):
    x, w, labels = data
    step = jax.jit(jax.grad(loss_of(a, products, dtype), (0, 1)))
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    found = jax.block_until_ready(step(x, w, labels))
    seconds = []
    for _ in range(a.repeats):
        started = time.perf_counter()
        jax.block_until_ready(step(x, w, labels))
        seconds.append(time.perf_counter() - started)
    return [np.asarray(g, np.float64) for g in found], min(seconds)


def trajectory(a, products, dtype, data):
    x, w, labels = data
    start = {"map": jnp.eye(a.dim, dtype=dtype), "w": jnp.asarray(w, dtype)}
    mean = loss_of(a, products, dtype)

    @jax.jit
    def step(params, momentum):
        def loss(p):
            unit = p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)
            with jax.default_matmul_precision("float32"):
                return mean(jnp.asarray(x, dtype) @ p["map"], unit, labels)

        grads = jax.grad(loss)(params)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        return jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum), momentum

    params, momentum = start, jax.tree.map(jnp.zeros_like, start)
    for _ in range(20):
        params, momentum = step(params, momentum)
    change = jax.tree.map(lambda p, s: np.asarray(p - s, np.float64), params, start)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(change)])


def recomputed(a, kind, data):
    """Gradient of the embeddings' directions with exact sums and rounded logits."""
    x, w, labels = data
    unit = np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    exact = a.scale * unit @ np.float64(w).T
    log_sum = np.log(np.sum(np.exp(exact), axis=1, keepdims=True))
    rounded = a.scale * np.float64(
        precision.inner_products(
            jnp.float32(unit), jnp.float32(w), Products(cosine=kind)
        )
    )
    target = np.eye(a.classes)[labels]
    true, found = (np.exp(z - log_sum) - target for z in (exact, rounded))
    return relative(found @ w, true @ w)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--loss", default="sphereface_r_v1")
    parser.add_argument("--margin", type=float, default=1.4)
    parser.add_argument("--scale", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    data = make_data(a)
    exact, _ = gradients(a, precision.FLOAT32, jnp.float64, data)
    path = trajectory(a, precision.FLOAT32, jnp.float64, data)
    kind = jax.devices()[0].device_kind
    print(f"{kind}, {platform.machine()}, jax {jax.__version__}, {vars(a)}\n")
    print(
        "| cosine | gradient of embeddings | of prototypes | error dx | error dw | "
        "20 steps | ms |\n|---|---|---|---:|---:|---:|---:|"
    )
    rows = [Products(*[kind] * 3) for kind in PRECISIONS]
    for name in Products._fields:
        rows += [Products()._replace(**{name: kind}) for kind in PRECISIONS[1:]]
    rows.append(Products("bfloat16_3x", "bfloat16", "bfloat16"))
    for products in rows:
        found, seconds = gradients(a, products, jnp.float32, data)
        dx, dw = map(relative, found, exact)
        moved = relative(trajectory(a, products, jnp.float32, data), path)
        names = " | ".join(products)
        print(
            f"| {names} | {dx:.1e} | {dw:.1e} | {moved:.1e} | {1e3 * seconds:.1f} |",
            flush=True,
        )
    for kind in PRECISIONS:
        print(f"\nrecomputed cosine {kind}: error dx {recomputed(a, kind, data):.1e}")


if __name__ == "__main__":
    main()
