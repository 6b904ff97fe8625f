"""NVIDIA GPUs as XLA's compiler wants to know them, so that none has to be here."""

import re
from typing import Any, NamedTuple

from hyperface_jax.device_memory import MEMORY


class Gpu(NamedTuple):
    """What the compiler asks about a GPU.

    Sources: NVIDIA's data sheets, XLA's `backends/gpu/target_config/specs`.

    Attributes:
      title: NVIDIA's name.
      capability: of CUDA.
      cores: multiprocessors.
      fpus: of a core, for float32.
      clock: GHz.
      bandwidth: of the memory, bytes a second.
      l2: bytes.
      shared: memory of a core, bytes; `block` of it may be one block's.
      block: see `shared`.
    """

    title: str
    capability: int
    cores: int
    fpus: int
    clock: float
    bandwidth: float
    l2: int
    shared: int
    block: int

    @property
    def memory(self) -> int:
        """Bytes."""
        return MEMORY[self.title]


GPUS = {
    "a100": Gpu(
        *("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 2.04e12),
        *(41_943_040, 167_936, 166_912),
    ),
    "h100": Gpu(
        *("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 3.35e12),
        *(52_428_800, 233_472, 232_448),
    ),
    "h200": Gpu(
        *("NVIDIA H200", 9, 132, 128, 1.98, 4.8e12),
        *(52_428_800, 233_472, 232_448),
    ),
    "b200": Gpu(
        *("NVIDIA B200", 10, 148, 128, 1.965, 7.67e12),
        *(132_644_864, 233_472, 232_448),
    ),
}

_NAME = re.compile(r"(\w+?)(?::(?:([1-9]\d*)x)?([1-9]\d*))?")


def parse(topology: str) -> tuple[Gpu, int, int] | None:
    """The GPU, hosts and GPUs a host of "h200", "h200:8" or "h200:2x8"; else None."""
    found = _NAME.fullmatch(topology)
    if not found or found[1] not in GPUS:
        return None
    return GPUS[found[1]], int(found[2] or 1), int(found[3] or 1)


def devices(gpu: Gpu, hosts: int, of_host: int) -> list[Any]:
    """Devices to compile for; needs jax's CUDA plugin and no GPU."""
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=_target(gpu),
        topology=f"1x{hosts}x{of_host}",
    )
    return list(found.devices)


def _target(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto as text."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.block}
  shared_memory_per_core: {gpu.shared}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {int(gpu.bandwidth)}
  l2_cache_size: {gpu.l2}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.title}"
"""
