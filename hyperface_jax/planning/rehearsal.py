"""Compiles the step for devices that need not be here, and reads what was compiled.

XLA's TPU compiler comes with `pip install -e '.[tpu]'` and runs on any machine: memory,
work and traffic of a step are then its own numbers, before a slice is rented.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperface_jax import sharding
from hyperface_jax.training.experiment import Experiment

# Dense bfloat16 operations a second of a chip, as published in Google's Cloud TPU
# documentation.
_PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}

_COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\(.*?(channel_id=\d+|$)"
)
# Types such as f32 and bf16; u32[] are the tokens of started collectives.
_ARRAY = re.compile(r"\b(?!u32\[\])[a-z]+(\d+)\[([\d,]*)\]")
# Started, these two return their operands before what will arrive.
_WITH_OPERANDS = ("all-gather", "collective-permute")


def devices_of(topology: str) -> list[Any]:
    """Devices of a TPU slice that is not here, e.g. "v5e:4x4".

    Raises:
      ValueError: there is no such slice, or no compiler for it.
    """
    from jax.experimental import topologies

    # Or libtpu asks a metadata server that answers on Cloud machines only.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # jax raises a different type for each reason
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"--topology is {topology!r}: {reason[0] if reason else 'unknown'} "
            "(expected the name of a TPU slice such as v5e:2x4, and its compiler: "
            "pip install -e '.[tpu]')"
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


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", ...
      shapes: of the arrays of its result, on one device.
      nbytes: of them together.
      in_loop: it stands in the body of a loop.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    nbytes: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Collectives of a compiled program, from its `as_text()`."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    # A TPU writes one that runs beside other work several times, with one channel.
    found: dict[Any, Collective] = {}
    block = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            block = line.split()[0].lstrip("%")
        match = _COLLECTIVE.search(line)
        if match:
            result, kind, started, channel = match.groups()
            arrays = [
                (tuple(map(int, filter(None, dims.split(",")))), int(bits))
                for bits, dims in _ARRAY.findall(result)
            ]
            if started and kind in _WITH_OPERANDS:
                arrays = arrays[len(arrays) // 2 :]
            nbytes = sum(math.prod(shape) * bits // 8 for shape, bits in arrays)
            shapes = tuple(shape for shape, _ in arrays)
            one = Collective(kind, shapes, nbytes, block in bodies)
            found[(one, channel) if channel else line] = one
    return list(found.values())


def report(run: Experiment, topology: str) -> str:
    """What the compiler says of the step on a slice, as text."""
    try:
        program = compile_step(run)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())
        return f"\nnot compiled for {topology}: it will not fit ({reason[:300]})"
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    flops = program.cost_analysis().get("flops", 0.0)
    lines = [
        "",
        f"compiled for {topology}, {run.mesh.size} devices (not run); of a device",
        f"  {'state and batch':<30} {memory.argument_size_in_bytes / 2**30:9.3f} GiB",
        f"  {'while a step runs, besides':<30} "
        f"{memory.temp_size_in_bytes / 2**30:9.3f} GiB",
        f"  {'together':<30} {peak / 2**30:9.3f} GiB",
        f"  {'operations of a step':<30} {flops / 1e12:9.3f} T",
    ]
    peak_rate = _PEAKS.get(topology.partition(":")[0])
    if peak_rate:
        seconds = flops / peak_rate
        rate = run.config.train.batch_size / seconds
        lines.append(
            f"  {'a step takes at least':<30} {1e3 * seconds:9.2f} ms "
            f"({rate:.0f} images/s in all, by the chip's published peak)"
        )
    totals: dict[str, list[int]] = {}
    for found in collectives(program.as_text()):
        total = totals.setdefault(found.kind, [0, 0])
        total[0] += 1
        total[1] += found.nbytes
    for kind, (count, nbytes) in sorted(totals.items()):
        lines.append(f"  {kind:<30} {nbytes / 2**20:9.3f} MiB in {count}")
    return "\n".join(lines)
