"""What the environment says of other hosts: SLURM, Open MPI, Cloud TPU."""

import glob
import importlib.util
import os
import re
from collections.abc import Mapping


def has_coordinator() -> bool:
    """Whether jax will find a coordinator by itself."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return True
    slurm = {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and slurm <= os.environ.keys():
        return True
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        return True
    on_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(on_tpu) and importlib.util.find_spec("libtpu") is not None


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a node on which SLURM runs one task; None leaves it to jax.

    By itself jax takes one GPU a SLURM task, and lets the others idle.
    """
    tasks = environment.get(
        "SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")
    )
    if "SLURM_LOCALID" not in environment or not re.fullmatch(r"1(\(x\d+\))?", tasks):
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = len(glob.glob("/dev/nvidia[0-9]*"))
    else:
        count = len([name for name in visible.split(",") if name.strip()])
    return list(range(count)) or None
