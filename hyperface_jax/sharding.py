"""One mesh ("data", "model") and where each array lives on it.

The batch is split over both axes, whatever the mesh: otherwise every "model" rank
would compute the same backbone. Prototypes are split by class over all devices; all
else is replicated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")
CLASSES = ("all", "model")


def make_mesh(model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices as (devices/model, model), with automatic partitioning.

    Args:
      model: size of the "model" axis; must divide the number of devices.
      devices: default: all of all hosts.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if model < 1 or count % model:
        raise ValueError(
            f"mesh.model is {model}, expected a divisor of the {count} devices found"
        )
    # Linen fails on the Explicit axes that make_mesh now builds by default.
    return jax.make_mesh(
        (count // model, model),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def class_axes(where: str) -> tuple[str, ...]:
    """Mesh axes over which classes are split: "all" of them, or "model" only."""
    if where not in CLASSES:
        raise ValueError(f"mesh.classes is {where!r}, expected one of {CLASSES}")
    return AXES if where == "all" else ("model",)


def split_axes(mesh: Mesh | None, axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes over which classes are really split: () on one device."""
    return axes if mesh is not None and mesh.size > 1 else ()


def class_devices(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Number of devices over which classes are split."""
    return math.prod(mesh.shape[axis] for axis in axes)


def is_class_array(path: Any, leaf: Any) -> bool:
    """Whether a leaf of a state is [classes, ...]: prototypes, or state of theirs."""
    return len(leaf.shape) >= 1 and any(
        getattr(entry, "key", None) == "prototypes" for entry in path
    )


def state_shardings(
    mesh: Mesh, abstract_state: Any, class_axes: tuple[str, ...] = AXES
) -> Any:
    """Shardings of a train state from the shapes of `jax.eval_shape`.

    The prototypes and the optimizer's arrays of their shape are split by class over
    `class_axes`.
    """

    def of_leaf(path, leaf):
        axes = class_axes if is_class_array(path, leaf) else None
        return NamedSharding(mesh, PartitionSpec(axes))

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: of_leaf(path, leaf) if len(leaf.shape) else replicated(mesh),
        abstract_state,
    )


def jit_on_mesh(
    init: Callable[[], Any],
    step: Callable[..., Any],
    mesh: Mesh,
    *,
    class_axes: tuple[str, ...] = AXES,
    donate: bool = True,
) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Jits initialisation and step with one set of shardings for the state.

    Naming the shardings of the result, too, keeps the compiler from choosing others,
    with which the second call would compile again.
    """
    abstract = jax.eval_shape(init)
    rows = abstract.params["prototypes"].shape[0]
    check_divisible("number of padded classes (head.class_multiple)", rows, mesh)
    shardings = state_shardings(mesh, abstract, class_axes)
    return (
        jax.jit(init, out_shardings=shardings),
        jax.jit(
            step,
            donate_argnums=0 if donate else (),
            out_shardings=(shardings, replicated(mesh)),
        ),
    )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Rows of this process in a global batch -> global arrays on the mesh."""
    where = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(where, value)
        for key, value in batch.items()
    }


def own_rows(array: jax.Array) -> np.ndarray:
    """Rows of an array, split over its leading axis, that live on this host.

    In the order in which `put_batch` took them.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {s.index[0].start: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def check_divisible(name: str, value: int, mesh: Mesh) -> None:
    """Raises unless `value` rows can be split over all devices of the mesh."""
    if value % mesh.size:
        shape = "x".join(str(mesh.shape[axis]) for axis in AXES)
        raise ValueError(
            f"{name} is {value}, expected a multiple of the {mesh.size} devices of "
            f"the {shape} mesh"
        )
