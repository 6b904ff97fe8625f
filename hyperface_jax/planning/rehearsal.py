"""Compiles the step for devices that need not be here, and reads what was compiled.

XLA's compilers for TPUs and GPUs come with `pip install -e '.[tpu]'` and `'.[cuda]'`
and run on any machine: memory, work and traffic of a step are then their own numbers,
before anything is rented.
"""

import os
from typing import Any

import jax
import numpy as np

from hyperface_jax import sharding
from hyperface_jax.device_memory import PREALLOCATED
from hyperface_jax.planning import gpus, programs
from hyperface_jax.training.experiment import Experiment

# Dense bfloat16 operations a second of a chip, as published in Google's Cloud TPU
# documentation.
_PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}


def devices_of(topology: str) -> list[Any]:
    """Devices that are not here: a TPU slice, "v5e:4x4", or GPUs, "h200:8", "h200:2x8".

    Raises:
      ValueError: there are no such devices, or no compiler for them.
    """
    from jax.experimental import topologies

    described = gpus.parse(topology)
    # Or libtpu asks a metadata server that answers on Cloud machines only.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        if described:
            return gpus.devices(*described)
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # jax raises a different type for each reason
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"--topology is {topology!r}: {reason[0] if reason else 'unknown'} "
            f"(expected a TPU slice such as v5e:2x4 or GPUs, {', '.join(gpus.GPUS)}, "
            "such as h200:8, and their compiler: pip install -e '.[tpu]' or '.[cuda]')"
        ) from None
    return list(found.devices)


def compile_step(run: Experiment) -> Any:
    """The step of a run, compiled for the devices of its mesh; nothing is allocated."""
    c = run.config
    state = jax.eval_shape(run.create_state)
    axes = sharding.class_axes(c.mesh.classes)
    shardings = sharding.state_shardings(run.mesh, state, axes)
    state = jax.tree.map(_placed, state, shardings)
    size, rows = c.data.image_size, c.train.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((rows,), np.int32),
        "weight": jax.ShapeDtypeStruct((rows,), np.float32),
    }
    where = sharding.batch_sharding(run.mesh)
    batch = {name: _placed(leaf, where) for name, leaf in batch.items()}
    return run.step.lower(state, batch).compile()


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def report(run: Experiment, topology: str) -> str:
    """What the compiler says of the step on a slice, as text."""
    try:
        program = compile_step(run)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())
        return f"\nnot compiled for {topology}: it will not fit ({reason[:300]})"
    return describe(program, topology, run.mesh.size, run.config.train.batch_size)


def describe(program: Any, topology: str, devices: int, batch: int) -> str:
    """Memory, work and traffic of a compiled step of `batch` images, as text."""
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    lines = [
        "",
        f"compiled for {topology}, {devices} devices (not run); of a device",
        f"  {'state and batch':<30} {memory.argument_size_in_bytes / 2**30:9.3f} GiB",
        f"  {'while a step runs, besides':<30} "
        f"{memory.temp_size_in_bytes / 2**30:9.3f} GiB",
        f"  {'together':<30} {peak / 2**30:9.3f} GiB",
    ]
    text = program.as_text()
    described = gpus.parse(topology)
    if described:
        if peak > described[0].memory:
            has = described[0].memory / 2**30
            lines.append(f"  it will not fit: {described[0].title} has {has:.0f} GiB")
        elif peak > PREALLOCATED * described[0].memory:
            lines.append(
                f"  more than the {PREALLOCATED:.0%} of a GPU that JAX takes by "
                "itself: set XLA_PYTHON_CLIENT_MEM_FRACTION=.95"
            )
        lines += _of_kernels(text, described[0])
    else:
        lines += _of_operations(program, topology, batch)
    totals: dict[str, list[int]] = {}
    for found in programs.collectives(text):
        total = totals.setdefault(found.kind, [0, 0])
        total[0] += 1
        total[1] += found.nbytes
    for kind, (count, nbytes) in sorted(totals.items()):
        lines.append(f"  {kind:<30} {nbytes / 2**20:9.3f} MiB in {count}")
    return "\n".join(lines)


def _of_operations(program: Any, topology: str, batch: int) -> list[str]:
    """What a TPU's compiler counts of its operations."""
    flops = program.cost_analysis().get("flops", 0.0)
    lines = [f"  {'operations of a step':<30} {flops / 1e12:9.3f} T"]
    peak_rate = _PEAKS.get(topology.partition(":")[0])
    if peak_rate:
        seconds = flops / peak_rate
        lines.append(
            f"  {'a step takes at least':<30} {1e3 * seconds:9.2f} ms "
            f"({batch / seconds:.0f} images/s in all, by the chip's published peak)"
        )
    return lines


def _of_kernels(text: str, gpu: gpus.Gpu) -> list[str]:
    """What the kernels for a GPU move; its compiler does not count operations."""
    kinds: dict[str, list[int]] = {}
    for kernel in programs.kernels(text):
        total = kinds.setdefault(kernel.kind, [0, 0])
        total[0] += 1
        total[1] += kernel.nbytes
    moved = sum(nbytes for _, nbytes in kinds.values())
    seconds = moved / gpu.bandwidth
    lines = [
        f"  {'its kernels, outside of loops':<30} {moved / 2**30:9.3f} GiB read and "
        f"written: {1e3 * seconds:.2f} ms by the published bandwidth"
    ]
    by_size = sorted(kinds.items(), key=lambda item: -item[1][1])
    for kind, (count, nbytes) in by_size:
        if nbytes >= 0.001 * moved:
            lines.append(f"    {kind:<28} {nbytes / 2**30:9.3f} GiB in {count}")
    return lines
