"""The sides of training_throughput.py: our step and PyTorch's, on the same batch.

A process imports what its own side needs, and nothing of the other's device.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

SCALE, MARGIN, LOSS_WEIGHT, RATE = 60.0, 1.4, 50.0, 0.01


def batch_of(a: argparse.Namespace) -> dict[str, np.ndarray]:
    """Symmetric images: who flips which of them makes no difference to the loss."""
    rng = np.random.default_rng(0)
    half = rng.integers(0, 256, (a.batch, a.size, a.size // 2, 3), dtype=np.uint8)
    return {
        "image": np.concatenate([half, half[:, :, ::-1]], axis=2),
        "label": rng.integers(0, a.classes, a.batch).astype(np.int32),
        "weight": np.ones(a.batch, np.float32),
    }


def timed(step: Callable[[], object], wait: Callable[[object], object], a) -> float:
    """Seconds a step: median over rounds, each waited for at its end."""
    for _ in range(a.warm_up):
        wait(step())
    rounds = []
    for _ in range(a.rounds):
        started = time.perf_counter()
        for _ in range(a.steps):
            found = step()
        wait(found)
        rounds.append((time.perf_counter() - started) / a.steps)
    return float(np.median(rounds))


def made(a: argparse.Namespace, augmented: bool):
    """Our network, step and fresh state, as `experiment` makes them."""
    import jax

    from hyperface_jax import augment, classifier, optimizer, schedules
    from hyperface_jax.backbones import create_backbone
    from hyperface_jax.training import train_state, train_step

    # InsightFace's networks have no dropout; width is the first stage's.
    backbone = create_backbone(
        a.backbone, width=a.width, embedding_dim=512, dtype=a.dtype
    )
    rate, margin = schedules.constant(RATE), schedules.constant(MARGIN)
    part = optimizer.PartSettings(weight_decay=5e-4)
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=rate, backbone=part, prototypes=part
    )
    head = classifier.Head(
        "sphereface_r_v2",
        num_classes=a.classes,
        scale=SCALE,
        margin=margin,
        loss_weight=LOSS_WEIGHT,
    )
    settings = augment.AugmentSettings(flip=0.5)
    if augmented:
        settings = augment.AugmentSettings(
            flip=0.5, shift=0.05, scale=0.1, rotate=8, erase=0.3, grey=0.2
        )
    step = train_step.make_train_step(
        backbone=backbone,
        augment=augment.make_augment(settings),
        head=head,
        tx=tx,
        learning_rate=rate,
        margin=margin,
    )
    state = jax.jit(
        lambda: train_state.init_train_state(
            backbone=backbone,
            head=head,
            image_size=a.size,
            class_multiple=4096,
            prototype_init="xavier_normal",
            unit_prototypes=True,
            tx=tx,
            seed=0,
            ema=False,
        )
    )
    return backbone, jax.jit(step, donate_argnums=0), state


def ceilings(n: int = 8192, length: int = 2**30) -> dict[str, float]:
    """Measured here: operations a second of a bfloat16 product, bytes of a copy."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    copy = jax.jit(lambda y: y + 1)
    y = jnp.zeros(length, jnp.float32)
    found = {}
    for name, function, given, work in (
        ("flops", product, x, 2 * n**3),
        ("bytes", copy, y, 2 * y.nbytes),
    ):
        jax.block_until_ready(function(given))
        times = []
        for _ in range(10):
            started = time.perf_counter()
            jax.block_until_ready(function(given))
            times.append(time.perf_counter() - started)
        found[name] = work / float(np.median(times))
    return found


def ours(a: argparse.Namespace) -> dict:
    import jax

    from hyperface_jax import workdir
    from hyperface_jax.backbones import costs
    from hyperface_jax.planning import programs

    backbone, step, init = made(a, a.side == "ours_augmented")
    state, batch = init(), jax.device_put(batch_of(a))
    started = time.perf_counter()
    program = step.lower(state, batch).compile()
    compiled_in = time.perf_counter() - started
    memory = program.memory_analysis()
    first = None

    def once():
        nonlocal state, first
        state, metrics = program(state, batch)
        first = metrics["loss"] if first is None else first
        return metrics["loss"]

    seconds = timed(once, jax.block_until_ready, a)
    found = {
        "seconds": seconds,
        "first_loss": float(first),
        "compiled_in": round(compiled_in, 1),
        "planned_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "versions": workdir.versions(),
    }
    device = jax.devices()[0]
    if stats := device.memory_stats():
        found["peak_bytes"] = stats.get("peak_bytes_in_use", 0)
    if device.platform != "cpu":
        del state
        top = ceilings()
        flops = 3 * costs.count_backbone(backbone, a.size, a.batch).flops * a.batch
        moved = sum(kernel.nbytes for kernel in programs.kernels(program.as_text()))
        least = max(flops / top["flops"], moved / top["bytes"])
        found |= {
            "ceilings": top,
            "peak": flops / seconds / top["flops"],
            "roofline": least / seconds,
        }
    return found


def compiled_for(a: argparse.Namespace) -> str:
    """Our step compiled for a device that need not be here."""
    import jax

    from hyperface_jax.planning import rehearsal

    (device,) = rehearsal.devices_of(a.compile_for)
    here = jax.sharding.SingleDeviceSharding(device)
    _, step, init = made(a, augmented=False)
    shapes = jax.eval_shape(init), jax.eval_shape(lambda: batch_of(a))
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )
    program = step.lower(*placed).compile()
    return rehearsal.describe(program, a.compile_for, 1, a.batch)


def torch_side(a: argparse.Namespace) -> dict:
    """Weights come from our initialisation, drawn by JAX on the CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import torch
    import torch_peer

    from hyperface_jax.backbones import torch_names

    backbone, _, init = made(a, augmented=False)
    state = init()
    weights = torch_names.to_torch(
        backbone, a.size, state.params["backbone"], state.batch_stats
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest")
    network = torch_peer.Network(a.backbone, weights, device=device, train=True)
    start = np.array(state.params["prototypes"][: a.classes])
    prototypes = torch.tensor(start, device=device, requires_grad=True)
    del state, weights
    jax.clear_caches()
    sgd = torch.optim.SGD(
        [*network.parameters, prototypes],
        lr=RATE,
        momentum=0.9,
        weight_decay=5e-4,
        fused=device == "cuda" or None,
    )
    low = a.dtype == "bfloat16"

    def loss_of(images, labels, flips):
        x = images.permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            embeddings = network(x.contiguous(memory_format=torch.channels_last))
        return torch_peer.loss(
            embeddings.float(),
            prototypes,
            labels,
            margin=MARGIN,
            scale=SCALE,
            weight=LOSS_WEIGHT,
        )

    compiled = a.side == "torch"
    function = torch.compile(loss_of, mode=a.torch_mode) if compiled else loss_of
    batch = batch_of(a)
    images = torch.tensor(batch["image"], device=device)
    labels = torch.tensor(batch["label"], device=device).long()
    first = None

    def once():
        nonlocal first
        flips = torch.rand(a.batch, device=device) < 0.5
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        loss = function(images, labels, flips)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        with torch.no_grad():
            prototypes.div_(prototypes.norm(dim=1, keepdim=True))
        loss = loss.detach()
        first = loss.clone() if first is None else first
        return loss

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    started = time.perf_counter()
    wait(once())
    compiled_in = time.perf_counter() - started
    found = {
        "seconds": timed(once, wait, a),
        "first_loss": float(first),
        "compiled_in": round(compiled_in, 1),
        "versions": {"torch": torch.__version__},
    }
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found
