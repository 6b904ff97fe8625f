"""Partial FC: a step sees the classes of its batch and a random share of the others.

Each device draws among its own classes, without replacement, a fixed number of them:
first the classes of the batch, then others at random (InsightFace's partial_fc_v2,
which draws a varying number). Only the drawn rows take part in the step, in the
optimizer too: momentum and weight decay of the others stay as they are, where one
dense update (partial_fc_v2) lets them drift.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from hyperface_jax.sharding import AXES, class_devices, is_class_array, split_axes


class Sampler(NamedTuple):
    """Draws classes, and takes their rows out of a tree and puts them back.

    Attributes:
      draw: (key, labels [B]) -> ids [S] of the drawn classes, rising on each device.
      take: (tree, ids) -> the tree with [S, D] in place of every [R, D] of classes.
      put: (tree, ids, part) -> the tree with the rows of `part`.
    """

    draw: Callable[[Array, Array], Array]
    take: Callable[[Any, Array], Any]
    put: Callable[[Any, Array, Any], Any]


def rows_per_device(rate: float, rows: int, batch: int, devices: int) -> int:
    """How many of its R/devices rows a device draws: a power of two divides them.

    One large enough for even chunks, small enough to draw 6 % more at most.

    Args:
      rate: share of the classes, in (0, 1].
      rows: R, of all devices.
      batch: B, whose classes must fit wherever they are.
      devices: over which classes are split.

    Raises:
      ValueError: the rows may not hold the classes of a batch.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"head.sample_rate is {rate}, expected 0 < rate <= 1")
    local = rows // devices
    wanted = max(round(rate * local), 1)
    step = min(1024, 1 << max((wanted // 16).bit_length() - 1, 0))
    count = min(-(-wanted // step) * step, local)
    if count < min(batch, local):
        raise ValueError(
            f"head.sample_rate is {rate:g}: {count} of {local} classes on each of "
            f"{devices} devices, expected room for the {batch} of a batch (a rate of "
            f"at least {min(batch / local, 1):.3g})"
        )
    return count


def make_sampler(
    rate: float,
    *,
    rows: int,
    num_classes: int,
    batch_size: int,
    mesh: Mesh | None = None,
    class_axes: tuple[str, ...] = AXES,
) -> Sampler:
    """A sampler for arrays of classes that are split as `streaming.evaluate` says.

    Args:
      rate: share of the classes.
      rows: R, padding included.
      num_classes: C; padding is drawn only when nothing else is left.
      batch_size: B.
      mesh: of all devices, or None for one.
      class_axes: axes of the mesh that hold classes.
    """
    axes = split_axes(mesh, class_axes)
    devices = class_devices(mesh, axes) if mesh is not None else 1
    local = rows // devices
    count = rows_per_device(rate, rows, batch_size, devices)
    batch, classes = PartitionSpec(AXES), PartitionSpec(class_axes)

    def first(like: Array) -> Array:
        index = jax.lax.axis_index(axes) if axes else 0
        return jnp.asarray(index * local, like.dtype)

    def on_mesh(function, in_specs, out_specs):
        if not axes:
            return function
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs
        )

    def draw_local(key, labels):
        start = first(labels)
        if axes:
            labels = jax.lax.all_gather(labels, AXES, tiled=True)
            same = tuple(axis for axis in AXES if axis not in axes)
            if same:  # says that devices with the same classes draw the same of them
                labels = jax.lax.pmax(labels, same)
            key = jax.random.fold_in(key, start)
        ids = start + jnp.arange(local, dtype=labels.dtype)
        luck = jax.random.uniform(key, (local,))
        luck = jnp.where(ids < num_classes, luck, luck - 1)  # padding comes last
        place = labels - start
        place = jnp.where((place >= 0) & (place < local), place, local)
        luck = luck.at[place].set(2, mode="drop")  # the batch comes first
        return start + jnp.sort(jax.lax.top_k(luck, count)[1]).astype(ids.dtype)

    def take(tree, ids):
        def rows_of(array, ids):
            return array[ids - first(ids)]

        move = on_mesh(rows_of, (classes, classes), classes)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: move(leaf, ids) if is_class_array(path, leaf) else leaf,
            tree,
        )

    def put(tree, ids, part):
        def with_rows(array, ids, values):
            where = array.at[ids - first(ids)]
            return where.set(values, indices_are_sorted=True, unique_indices=True)

        move = on_mesh(with_rows, (classes, classes, classes), classes)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf, new: (
                move(leaf, ids, new) if is_class_array(path, leaf) else new
            ),
            tree,
            part,
        )

    draw = on_mesh(draw_local, (PartitionSpec(), batch), classes)
    return Sampler(draw, take, put)
