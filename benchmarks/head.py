"""The head alone: whole matrix, chunks, PyTorch, and a share of the classes.

    python benchmarks/head.py                      # on two cores: some minutes
    python benchmarks/head.py --batch 1024 --classes 93431 10000000 --time 93431

SphereFace-R v2, HFN, forward and backward with the gradients of embeddings and
prototypes. Memory is the temporary memory of the compiled program (the arguments and
the gradients are not in it), so that it is known for sizes that this machine could not
hold. Times are medians of rounds in which the candidates take turns. PyTorch, where it
is installed, does the same mathematics (cosine matrix, arccos for the others, detached
difference, cross-entropy) with its own kernels on as many threads.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax import (
    class_vectors,
    classifier,
    geometry,
    optimizer,
    sampling,
    schedules,
    streaming,
)

MARGIN, SCALE, LOSS_WEIGHT = 1.4, 60.0, 50.0


def loss_of(classes: int, chunk: int = 0) -> classifier.Head:
    return classifier.Head(
        "sphereface_r_v2",
        num_classes=classes,
        scale=SCALE,
        margin=schedules.constant(MARGIN),
        loss_weight=LOSS_WEIGHT,
        chunk=chunk,
    )


def head(classes: int, chunk: int) -> Callable:
    """Jitted (x, w, labels) -> (loss, (dx, dw))."""
    loss_fn = loss_of(classes, chunk)

    def mean(x, w, labels):
        return jnp.mean(loss_fn(x, labels, w, 0)[0])

    return jax.jit(jax.value_and_grad(mean, (0, 1)))


def torch_head(x: np.ndarray, w: np.ndarray, labels: np.ndarray) -> Callable | None:
    """() -> (loss, dx, dw) of the same loss, or None without PyTorch."""
    try:
        import torch
        import torch_peer
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vectors = torch.tensor(x, device=device, requires_grad=True)
    weights = torch.tensor(w, device=device, requires_grad=True)
    target = torch.tensor(labels, device=device, dtype=torch.long)
    constants = {"margin": MARGIN, "scale": SCALE, "weight": LOSS_WEIGHT}

    def run():
        vectors.grad = weights.grad = None
        loss = torch_peer.loss(vectors, weights, target, **constants)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item(), vectors.grad, weights.grad

    return run


def megabytes(classes: int, rows: int, batch: int, dim: int, chunk: int) -> float:
    shapes = (
        jax.ShapeDtypeStruct((batch, dim), jnp.float32),
        jax.ShapeDtypeStruct((rows, dim), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    program = head(classes, chunk).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes / 1e6


def memory_table(counts: list[int], batch: int, dim: int) -> str:
    lines = [
        f"Temporary memory in MB, B = {batch}, D = {dim}:",
        "",
        "| C | whole matrix | chunks | ratio | chosen |",
        "|---:|---:|---:|---:|---|",
    ]
    for classes in counts:
        rows = class_vectors.padded_classes(classes, 4096)
        dense = megabytes(classes, rows, batch, dim, rows)
        size = streaming.choose_chunk(batch, rows, streaming.CHUNK_ELEMENTS // batch)
        chunks = megabytes(classes, rows, batch, dim, size)
        chosen = streaming.choose_chunk(batch, rows)
        name = "whole matrix" if chosen == rows else f"chunks of {chosen}"
        cells = f"{dense:.0f} | {chunks:.0f} | {chunks / dense:.3f} | {name}"
        lines.append(f"| {classes} | {cells} |")
    return "\n".join(lines) + "\n"


def time_table(classes: int, batch: int, dim: int, rounds: int) -> str:
    rng = np.random.default_rng(0)
    rows = class_vectors.padded_classes(classes, 4096)
    x = rng.standard_normal((batch, dim), np.float32)
    w = rng.standard_normal((rows, dim), np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    arguments = jax.device_put((x, w, labels))
    small = streaming.choose_chunk(batch, rows, streaming.CHUNK_ELEMENTS // batch)
    candidates = {
        name: functools.partial(head(classes, chunk), *arguments)
        for name, chunk in (
            ("whole matrix", rows),
            (f"chunks of {small}", small),
            ("chosen by itself", 0),
        )
    }
    peer = torch_head(x, w[:classes], labels)
    if peer is not None:
        candidates["PyTorch"] = peer
    seconds = {name: [] for name in candidates}
    losses = {}
    for _ in range(rounds + 1):  # the first compiles
        for name, run in candidates.items():
            started = time.perf_counter()
            found = run()
            if name != "PyTorch":
                jax.block_until_ready(found)
            seconds[name].append(time.perf_counter() - started)
            losses[name] = float(found[0])
    medians = {name: float(np.median(s[1:])) for name, s in seconds.items()}
    first = medians["whole matrix"]
    lines = [
        f"Forward and backward, C = {classes}, B = {batch}, D = {dim}, median of "
        f"{rounds} rounds:",
        "",
        "| head | ms | to the whole matrix | loss |",
        "|---|---:|---:|---:|",
    ]
    for name, value in medians.items():
        cells = f"{1e3 * value:.0f} | {value / first:.2f} | {losses[name]:.6f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def sampled_table(classes: int, rate: float, batch: int, dim: int, rounds: int) -> str:
    """Loss, gradients and SGD with momentum on the prototypes; all classes or a share.

    State is donated, as in training: one copy of prototypes and momentum.
    """
    rows = class_vectors.padded_classes(classes, 4096)
    loss_fn = loss_of(classes)
    part = optimizer.PartSettings()
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=lambda step: 0.1, backbone=part, prototypes=part
    )
    sampler = sampling.make_sampler(
        rate, rows=rows, num_classes=classes, batch_size=batch
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, batch).astype(np.int32)

    def update(state, labels, ids=None):
        params, opt_state = state

        def mean(params):
            x, w = params["backbone"], params["prototypes"]
            return jnp.mean(loss_fn(x, labels, w, 0, ids)[0])

        gradients = jax.grad(mean)(params)
        return optimizer.update(
            tx, gradients, opt_state, params, prototype_norm="project"
        )

    def of_drawn(state, labels, key):
        ids = sampler.draw(key, labels)
        return sampler.put(state, ids, update(sampler.take(state, ids), labels, ids))

    exact = jax.jit(lambda state, labels, key: update(state, labels), donate_argnums=0)
    share = jax.jit(of_drawn, donate_argnums=0)

    def init(key):
        embeddings, prototypes = jax.random.split(key)
        x = jax.random.normal(embeddings, (batch, dim))
        w = jax.random.normal(prototypes, (rows, dim))
        params = {"backbone": x, "prototypes": geometry.l2_normalize(w)}
        return params, tx.init(params)

    seconds = {}
    for name, step in (("all classes", exact), (f"rate {rate:g}", share)):
        state = jax.jit(init)(jax.random.key(0))
        times = []
        for k in range(rounds + 1):
            started = time.perf_counter()
            state = jax.block_until_ready(step(state, labels, jax.random.key(k)))
            times.append(time.perf_counter() - started)
        seconds[name] = float(np.median(times[1:]))
        del state
    lines = [
        f"Head with its update, C = {classes}, B = {batch}, D = {dim}, median of "
        f"{rounds} steps:",
        "",
        "| classes in a step | ms | times as fast |",
        "|---|---:|---:|",
    ]
    first = seconds["all classes"]
    lines += [f"| {n} | {1e3 * s:.0f} | {first / s:.2f} |" for n, s in seconds.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[131072, 1048576, 4194304]
    )
    parser.add_argument("--time", type=int, nargs="*", default=[131072])
    parser.add_argument("--sample", type=int, nargs="*", default=[1048576])
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}\n")
    print(memory_table(a.classes, a.batch, a.dim))
    for classes in a.time:
        print(time_table(classes, a.batch, a.dim, a.rounds), flush=True)
    for classes in a.sample:
        print(sampled_table(classes, a.rate, a.batch, a.dim, min(a.rounds, 3)))


if __name__ == "__main__":
    main()
