"""What a run will need, before anything is allocated: `--mode plan`.

Everything is arithmetic on shapes but the decoding rate, which is measured. What the
backward pass keeps of the backbone depends on how XLA fuses, so it is given as a range:
at least what convolutions and matrix products read and write, at most all that autodiff
keeps before fusion.
"""

import functools
import glob
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax import classifier, sampling, sharding, streaming
from hyperface_jax.backbones import Backbone
from hyperface_jax.experiment import Experiment

_PRODUCTS = ("conv_general_dilated", "dot_general")


class Range(NamedTuple):
    """Bytes, at least and at most."""

    least: float
    most: float

    def __add__(self, other: Any) -> "Range":
        """Of both together."""
        return Range(self.least + other[0], self.most + other[1])


def exactly(size: float) -> Range:
    """A size that is known."""
    return Range(size, size)


class BackboneCounts(NamedTuple):
    """Counts of a network.

    Attributes:
      parameters: number of weights.
      flops: of the forward pass of an image, two a multiplication.
      activations: bytes that the backward pass keeps of `batch` images.
    """

    parameters: int
    flops: float
    activations: Range


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
    products: dict[int, Any] = {}
    flops = _walk(jaxpr, batch, products)
    weights = _bytes(params)
    residuals = _bytes(jax.eval_shape(kept, params, stats, images, weight))
    least = sum(_size(aval) for aval in products.values())
    return BackboneCounts(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        flops=flops / batch,
        activations=Range(least, max(residuals - weights, least)),
    )


def _walk(jaxpr, batch: int, products: dict[int, Any]) -> float:
    """FLOPs of a program; collects the arrays [batch, ...] of its products."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            flops += 2 * _multiplications(equation)
            for value in (*equation.invars, *equation.outvars):
                if value.aval.shape[:1] == (batch,):
                    products[id(value)] = value.aval
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                flops += _walk(inner, batch, products)
    return flops


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


def memory(run: Experiment, counts: BackboneCounts) -> dict[str, Range]:
    """Bytes on each device, by part."""
    c, mesh, devices = run.config, run.mesh, class_devices(run)
    state = jax.eval_shape(run.create_state)

    def on_device(tree) -> int:
        return sum(
            _size(leaf) // (devices if sharding.is_class_array(path, leaf) else 1)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )

    local, gathered, chunk = head_shape(run)
    dim = c.backbone.embedding_dim
    image = 3 * c.data.image_size**2
    return {
        "backbone": exactly(on_device(state.params["backbone"])),
        "prototypes": exactly(_size(state.params["prototypes"]) // devices),
        "optimizer": exactly(on_device(state.opt_state)),
        "moving average and statistics": exactly(
            _bytes((state.ema, state.batch_stats))
        ),
        "gradients": exactly(on_device(state.params["backbone"]) + 4 * local * dim),
        "images": exactly(c.train.batch_size // mesh.size * image * 5),
        "activations": counts.activations,
        "head": Range(
            4 * gathered * chunk, streaming.DENSE_COPIES * 4 * gathered * chunk
        )
        + exactly(2 * 4 * gathered * dim),
    }


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
    total = sum(parts.values(), exactly(0))
    classes = run.train_set.num_classes
    local, _, chunk = head_shape(run)
    epochs = c.train.steps * c.train.batch_size / len(run.train_set)
    shape = "x".join(str(mesh.shape[axis]) for axis in sharding.AXES)
    lines = [
        f"devices      {describe_devices(mesh.devices.flatten())}, mesh {shape} (data x model)",
        f"data         {run.train_set.name}: {classes} people, {len(run.train_set)} "
        f"images; decoded here at {decoding_rate(run):.0f} images/s with "
        f"{c.data.threads} threads",
        f"network      {c.backbone.name}, {counts.parameters / 1e6:.2f} M parameters, "
        f"{counts.flops / 2e9:.3f} G multiplications an image forward, "
        f"{3 * counts.flops / 1e9:.2f} GFLOP an image in a step",
        f"loss         {c.head.loss}, {c.head.norm}, m = {c.head.margin:g}, "
        f"s = {c.head.scale}; classes "
        + ("all at once" if chunk == local else f"in chunks of {chunk}"),
        f"training     {c.train.steps} steps of {c.train.batch_size} images, "
        f"{epochs:.1f} epochs",
        "",
        "memory of a device",
    ]
    for name, size in {**parts, "together": total}.items():
        lines.append(f"  {name:<30} {_gib(size)}")
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit:
        lines.append(f"  {'the device has':<30} {_gib(exactly(limit))}")
        lines.append(verdict(total, limit))
    return "\n".join(lines)


def verdict(total: Range, limit: float) -> str:
    """Whether a device of `limit` bytes can hold it."""
    if total.least > limit:
        return "it will not fit: take a smaller batch, or more devices"
    return "it may not fit" if total.most > limit else "it fits"


def _gib(size: Range) -> str:
    if size.least == size.most:
        return f"{size.least / 2**30:9.3f} GiB"
    return f"{size.least / 2**30:9.3f} to {size.most / 2**30:.3f} GiB"
