"""What a run will need, before anything is allocated: `--mode plan`.

Everything is arithmetic on shapes but the decoding rate, which is measured. XLA has the
last word on memory: `rehearsal` asks it, where its compiler is at hand.
"""

import glob
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hyperface_jax import class_vectors, device_memory, sampling, sharding, streaming
from hyperface_jax import config as config_lib
from hyperface_jax.backbones import costs
from hyperface_jax.training import configured_head
from hyperface_jax.training.experiment import Experiment

# Of the logits at the worst moment, all or a chunk's: as XLA compiles for a CPU.
# An estimate; `streaming.DENSE_COPIES`, which decides, errs on the safe side.
_DENSE_COPIES, _CHUNK_COPIES = 4, 6

_UNSURE = 1.3
"""Factor that the estimate may be off (`tests/test_plan.py`: IResNets on a CPU)."""


def class_devices(run: Experiment) -> int:
    """Number of devices over which the run splits its classes."""
    axes = sharding.class_axes(run.config.mesh.classes)
    return sharding.class_devices(run.mesh, axes)


def head_shape(run: Experiment) -> tuple[int, int, int]:
    """Rows of classes, examples and classes at a time of one device's head."""
    c, holders = run.config, class_devices(run)
    rows = class_vectors.padded_classes(
        run.train_set.num_classes, c.head.class_multiple
    )
    local = rows // holders
    if c.head.sample_rate < 1:
        local = sampling.rows_per_device(
            c.head.sample_rate, rows, c.train.batch_size, holders
        )
    gathered = c.train.batch_size // c.train.accumulate * holders // run.mesh.size
    chunk = streaming.choose_chunk(
        *(gathered, local, c.head.chunk, _centres(run)),
        dense_bytes=configured_head.dense_bytes(run.mesh),
    )
    return local, gathered, chunk


def memory(run: Experiment, counts: costs.BackboneCounts) -> dict[str, int]:
    """Bytes on each device, by part."""
    c, mesh, holders = run.config, run.mesh, class_devices(run)
    state = jax.eval_shape(run.create_state)

    def on_device(tree) -> int:
        return sum(
            costs.nbytes(leaf)
            // (holders if sharding.is_class_array(path, leaf) else 1)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )

    local, gathered, _ = head_shape(run)
    dim = c.backbone.embedding_dim
    image = 3 * c.data.image_size**2
    return {
        "backbone": on_device(state.params["backbone"]),
        "prototypes": on_device({"prototypes": state.params["prototypes"]}),
        "optimizer": on_device(state.opt_state),
        "moving average and statistics": on_device(
            (state.ema, state.batch_stats, state.memory)
        ),
        "gradients": on_device(state.params["backbone"])
        + 4 * local * dim * _centres(run),
        "images": c.train.batch_size // mesh.size * image * 5,
        "activations": counts.activations,
        "head": logits_bytes(run) + 2 * 4 * gathered * dim,
    }


def logits_bytes(run: Experiment) -> int:
    """Bytes of the logits that a device computes at once, with their copies."""
    local, gathered, chunk = head_shape(run)
    copies = _DENSE_COPIES if chunk == local else _CHUNK_COPIES
    return copies * 4 * gathered * chunk * _centres(run)


def _centres(run: Experiment) -> int:
    """Class vectors of each class: sub-center ArcFace has several."""
    return config_lib.member_of(run.config).centres


def check_head(run: Experiment) -> None:
    """Raises unless a device can hold the logits that are computed at once."""
    _, gathered, chunk = head_shape(run)
    needed, limit = logits_bytes(run), device_memory.of(jax.local_devices()[0])
    if needed > limit:
        raise ValueError(
            f"head.chunk is {run.config.head.chunk}: logits of {gathered} examples and "
            f"{chunk} classes need {needed / 2**30:.1f} GiB, expected at most the "
            f"{limit / 2**30:.1f} GiB of a device; 0 chooses a chunk that fits"
        )


def decoding_rate(run: Experiment, images: int = 256) -> float:
    """Images a second of this host's reader, measured."""
    reader = run.reader()
    order = np.random.default_rng(0).permutation(len(run.train_set))[:images]
    reader(order[:8].tolist())
    started = time.perf_counter()
    reader(order.tolist())
    return len(order) / (time.perf_counter() - started)


def describe_devices(found: Sequence[Any]) -> str:
    """Number and kind of the devices, and a hint where jax overlooks a GPU."""
    text = f"{len(found)} x {found[0].device_kind}"
    if found[0].platform == "cpu" and glob.glob("/dev/nvidia[0-9]*"):
        text += " (CPU only: a GPU is present, but jax has no CUDA plugin; pip install"
        text += " -e '.[cuda]')"
    return text


_OF_A_RECIPE = ("augment", "backbone", "head", "learning_rate", "optimizer", "train")


def report(run: Experiment, changed: Sequence[str] = ()) -> str:
    """The plan as text; warns where the memory of a device is too small.

    Args:
      run: nothing of it is allocated.
      changed: keys of the config that were set on the command line.
    """
    c, mesh = run.config, run.mesh
    at_once = c.train.batch_size // c.train.accumulate // mesh.size
    counts = costs.count_backbone(run.backbone, c.data.image_size, at_once)
    parts = memory(run, counts)
    total = sum(parts.values())
    classes = run.train_set.num_classes
    local, _, _ = head_shape(run)
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
        f"s = {c.head.scale}; {_of_classes(run)}",
        f"training     {c.train.steps} steps of {c.train.batch_size} images, "
        f"{epochs:.1f} epochs",
        f"recipe       {_recipe(c, changed)}",
        "",
        "memory of a device",
    ]
    for name, size in {**parts, "together": total}.items():
        lines.append(f"  {name:<30} {size / 2**30:9.3f} GiB")
    if _of_this_machine(mesh):
        limit = device_memory.of(jax.local_devices()[0])
        lines.append(f"  {'the device has':<30} {limit / 2**30:9.3f} GiB")
        lines.append(verdict(total, limit))
    if class_devices(run) < mesh.size:
        reduced = 4 * local * c.backbone.embedding_dim * _centres(run)
        times = f" {c.train.accumulate} times" if c.train.accumulate > 1 else ""
        lines.append(
            f"classes on {sharding.AXES[1]!r} alone: each step all-reduces their "
            f"gradient, {reduced / 2**20:.1f} MiB a device{times}"
        )
    return "\n".join(lines)


def _recipe(c: config_lib.Config, changed: Sequence[str]) -> str:
    """Where the hyperparameters are from."""
    if not c.source:
        return "ours, not published"
    own = [key for key in changed if key.partition(".")[0] in _OF_A_RECIPE]
    text = f"after {c.source}; another loss than theirs is yours"
    return f"{text}, and so are {', '.join(own)}" if own else text


def _of_classes(run: Experiment) -> str:
    """How the head takes its classes, and what that costs."""
    local, gathered, chunk = head_shape(run)
    c, mesh = run.config, run.mesh
    at_once = "all at once" if chunk == local else f"in chunks of {chunk}"
    text = f"classes {at_once}"
    if c.head.sample_rate < 1:
        rows = class_vectors.padded_classes(
            run.train_set.num_classes, c.head.class_multiple
        )
        share = local * class_devices(run) / rows
        text += f", {local} drawn on each device ({share:.3f} of all)"
    # Cosines, and the gradients of both sides; in chunks cosines twice.
    products = 3 if chunk == local else 4
    work = 2 * products * local * c.backbone.embedding_dim * _centres(run)
    per_image = (
        work * gathered * mesh.size // (c.train.batch_size // c.train.accumulate)
    )
    return f"{text}, {per_image / 1e9:.2f} GFLOP an image in a step"


def _of_this_machine(mesh: Any) -> bool:
    return set(mesh.devices.flatten().tolist()) <= set(jax.devices())


def verdict(total: float, limit: float) -> str:
    """Whether a device of `limit` bytes can hold it, as far as the estimate goes."""
    if total > _UNSURE * limit:
        return (
            "it will not fit: take a smaller batch, more devices, backbone.remat, "
            "bfloat16, or a smaller head.chunk"
        )
    return "it may not fit" if _UNSURE * total > limit else "it fits"
