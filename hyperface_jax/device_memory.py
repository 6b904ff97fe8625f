"""How much memory a device has, also where it is not here."""

import os
from typing import Any

import jax

MEMORY = {
    "NVIDIA A100-SXM4-80GB": 85_100_068_864,
    "NVIDIA H100 80GB HBM3": 84_942_979_072,
    "NVIDIA H200": 151_397_597_184,
    "NVIDIA B200": 191_514_411_008,
    "TPU v4": 32 << 30,
    "TPU v5 lite": 16 << 30,
    "TPU v5": 95 << 30,
    "TPU v6 lite": 32 << 30,
}
"""Bytes, by jax's `device_kind` (XLA's specifications; Google's TPU documentation)."""

PREALLOCATED = 0.75
"""Of a GPU's memory, what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says more."""


def of(device: Any) -> int:
    """Bytes that a program may use; of a CPU the machine's, shared among its devices.

    Of a device that is only compiled for what is published; 0 where that is unknown.
    """
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole // jax.local_device_count()
    try:
        stats = device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        stats = {}
    return stats.get("bytes_limit", published(device))


def published(device: Any) -> int:
    """Bytes that a program may use on a device of its kind, or 0: the same anywhere."""
    share = PREALLOCATED if device.platform in ("gpu", "cuda") else 1
    return int(share * MEMORY.get(device.device_kind, 0))
