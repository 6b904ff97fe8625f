"""What a run will need, before anything is allocated: `--mode plan`.

Everything is arithmetic on shapes but the decoding rate, which is measured. XLA has the
last word on memory: `rehearsal` asks it, where its compiler is at hand.
"""

import functools
import glob
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax import classifier, sampling, sharding, streaming
from hyperface_jax.backbones import Backbone
from hyperface_jax.experiment import Experiment

# Largest feature maps that a moment of the backward pass needs besides those it keeps,
# and copies of the logits, all of them or a chunk's: as XLA compiles for a CPU.
_MAPS_AT_WORK = 2
_DENSE_COPIES, _CHUNK_COPIES = 4, 6

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
    maps = sum(_size(leaf) for leaf in residuals if leaf.shape[:1] == (batch,))
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
        _size(value.aval)
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


def _size(aval) -> int:
    return aval.size * aval.dtype.itemsize


def _bytes(tree: Any) -> int:
    return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def class_devices(run: Experiment) -> int:
    """Number of devices over which the run splits its classes."""
    axes = sharding.class_axes(run.config.mesh.classes)
    return sharding.class_devices(run.mesh, axes)


def head_shape(run: Experiment) -> tuple[int, int, int]:
    """Rows of classes, examples and classes at a time of one device's head."""
    c, devices = run.config, class_devices(run)
    rows = classifier.padded_classes(run.train_set.num_classes, c.head.class_multiple)
    local = rows // devices
    if c.head.sample_rate < 1:
        local = sampling.rows_per_device(
            c.head.sample_rate, rows, c.train.batch_size, devices
        )
    gathered = c.train.batch_size // c.train.accumulate * devices // run.mesh.size
    return local, gathered, streaming.choose_chunk(gathered, local, c.head.chunk)


def memory(run: Experiment, counts: BackboneCounts) -> dict[str, int]:
    """Bytes on each device, by part."""
    c, mesh, devices = run.config, run.mesh, class_devices(run)
    state = jax.eval_shape(run.create_state)

    def on_device(tree) -> int:
        return sum(
            _size(leaf) // (devices if sharding.is_class_array(path, leaf) else 1)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )

    local, gathered, chunk = head_shape(run)
    copies = _DENSE_COPIES if chunk == local else _CHUNK_COPIES
    dim = c.backbone.embedding_dim
    image = 3 * c.data.image_size**2
    return {
        "backbone": on_device(state.params["backbone"]),
        "prototypes": _size(state.params["prototypes"]) // devices,
        "optimizer": on_device(state.opt_state),
        "moving average and statistics": _bytes((state.ema, state.batch_stats)),
        "gradients": on_device(state.params["backbone"]) + 4 * local * dim,
        "images": c.train.batch_size // mesh.size * image * 5,
        "activations": counts.activations,
        "head": 4 * gathered * (copies * chunk + 2 * dim),
    }


def check_head(run: Experiment) -> None:
    """Raises unless a device can hold the logits that are computed at once."""
    local, gathered, chunk = head_shape(run)
    copies = _DENSE_COPIES if chunk == local else _CHUNK_COPIES
    needed, limit = copies * 4 * gathered * chunk, device_memory()
    if needed > limit:
        raise ValueError(
            f"head.chunk is {run.config.head.chunk}: logits of {gathered} examples and "
            f"{chunk} classes need {needed / 2**30:.1f} GiB, expected at most the "
            f"{limit / 2**30:.1f} GiB of a device; 0 chooses a chunk that fits"
        )


def device_memory() -> int:
    """Bytes of one device; of a CPU the machine's, shared among its devices."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()


def decoding_rate(run: Experiment, images: int = 256) -> float:
    """Images a second of this host's reader, measured."""
    reader = run.reader()
    order = np.random.default_rng(0).permutation(len(run.train_set))[:images]
    reader(order[:8].tolist())
    started = time.perf_counter()
    reader(order.tolist())
    return len(order) / (time.perf_counter() - started)


def describe_devices(devices: Sequence[Any]) -> str:
    """Number and kind of the devices, and a hint where jax overlooks a GPU."""
    text = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu" and glob.glob("/dev/nvidia[0-9]*"):
        text += " (CPU only: a GPU is present, but jax has no CUDA plugin; pip install"
        text += " -e '.[cuda]')"
    return text


def report(run: Experiment) -> str:
    """The plan as text; warns where the memory of a device is too small."""
    c, mesh = run.config, run.mesh
    at_once = c.train.batch_size // c.train.accumulate // mesh.size
    counts = count_backbone(run.backbone, c.data.image_size, at_once)
    parts = memory(run, counts)
    total = sum(parts.values())
    classes = run.train_set.num_classes
    local, _, chunk = head_shape(run)
    epochs = c.train.steps * c.train.batch_size / len(run.train_set)
    shape = "x".join(str(mesh.shape[axis]) for axis in sharding.AXES)
    decoded = decoding_rate(run)
    lines = [
        f"devices      {describe_devices(mesh.devices.flatten().tolist())}, "
        f"mesh {shape} (data x model)",
        f"data         {run.train_set.name}: {classes} people, {len(run.train_set)} "
        f"images; decoded here at {decoded:.0f} images/s with {c.data.threads} "
        f"threads: {math.ceil(1000 * c.data.threads / decoded)} for each 1000 images/s "
        "that the devices of this host train on",
        f"network      {c.backbone.name}, {counts.parameters / 1e6:.2f} M parameters, "
        f"{counts.flops / 2e9:.3f} G multiplications an image forward, "
        f"{3 * counts.flops / 1e9:.2f} GFLOP an image in a step",
        f"loss         {c.head.loss}, {c.head.norm}, m = {c.head.margin:g}, "
        f"s = {c.head.scale}; classes "
        + ("all at once" if chunk == local else f"in chunks of {chunk}"),
        f"training     {c.train.steps} steps of {c.train.batch_size} images, "
        f"{epochs:.1f} epochs",
        "recipe       "
        + (
            f"published: {c.source}; keys set on the command line are yours"
            if c.source
            else "ours, not published"
        ),
        "",
        "memory of a device",
    ]
    for name, size in {**parts, "together": total}.items():
        lines.append(f"  {name:<30} {size / 2**30:9.3f} GiB")
    if _of_this_machine(mesh):
        limit = device_memory()
        lines.append(f"  {'the device has':<30} {limit / 2**30:9.3f} GiB")
        lines.append(verdict(total, limit))
    if class_devices(run) < mesh.size:
        reduced = 4 * local * c.backbone.embedding_dim
        lines.append(
            f"classes on {sharding.AXES[1]!r} alone: each step all-reduces their "
            f"gradient, {reduced / 2**20:.1f} MiB a device"
        )
    return "\n".join(lines)


def _of_this_machine(mesh: Any) -> bool:
    return set(mesh.devices.flatten().tolist()) <= set(jax.devices())


def verdict(total: float, limit: float) -> str:
    """Whether a device of `limit` bytes can hold it; the estimate may be 15 % off."""
    if total > 1.15 * limit:
        return (
            "it will not fit: take a smaller batch, more devices, backbone.remat, "
            "bfloat16, or a smaller head.chunk"
        )
    return "it may not fit" if 1.15 * total > limit else "it fits"
