"""How XLA compiles for the tests: quickly. Most of their time is compilation."""

import importlib.metadata
import os

OPTIMIZED = "HYPERFACE_TESTS_OPTIMIZED" in os.environ
"""Set it to test what users run, in twice the time; test_bucket_workdir always does."""

ELEMENTAL = "--xla_cpu_use_fusion_emitters=false"
"""XLA's older generator of fusions: LLVM takes half the time for what it writes."""

AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
"""`compiler_options` of a test whose tolerance is float32's own rounding."""


def environment(devices: int) -> dict[str, str]:
    """Variables of a process with so many CPU devices, set before it imports jax."""
    flags = [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
        # Of flags given twice the last counts: a test's processes inherit ours.
        f"--xla_force_host_platform_device_count={devices}",
    ]
    quick = {}
    if not OPTIMIZED:
        quick["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        if _has_elemental():
            flags.append(ELEMENTAL)
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), **quick}


def _has_elemental() -> bool:
    """Does this jaxlib have the flag? One that it has not would end the process.

    By version: 0.11.2 no longer parses it, though the name is still in its library.
    """
    return importlib.metadata.version("jaxlib").startswith("0.10.")
