"""Rows of an array of classes by label, wherever they live.

Prototypes [R, ...] may be a part of all classes (one device's, or the sampled ones), in
rising order. `take` and `put` move the rows of a batch's own classes between such an
array and arrays with one row an example; on a mesh nothing with a class axis travels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax.sharding import AXES, split_axes


class ClassRows(NamedTuple):
    """Which class each row of an array of prototypes is.

    Attributes:
      first: class of row 0; the others follow it.
      ids: [R] class of each row, rising, where they do not; or None.
    """

    first: Array
    ids: Array | None = None

    def classes(self, start: Array | int, count: int) -> Int[Array, " K"]:
        """Classes of rows start .. start + count - 1."""
        if self.ids is not None:
            return jax.lax.dynamic_slice_in_dim(self.ids, start, count)
        return (
            self.first
            + jnp.asarray(start, self.first.dtype)
            + jnp.arange(count, dtype=self.first.dtype)
        )

    def find(
        self, labels: Int[Array, " B"], count: int
    ) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
        """Row of each label among `count` rows, and whether it is there at all."""
        if self.ids is None:
            row = labels - self.first
            place = jnp.clip(row, 0, count - 1)
            return place, row == place
        place = jnp.clip(jnp.searchsorted(self.ids, labels), 0, count - 1)
        return place, self.ids[place] == labels


def rows_on_device(
    like: Array, count: int, ids: Array | None, axes: tuple[str, ...]
) -> ClassRows:
    """Those of this device, inside `jax.shard_map` over `axes`, or of the only one.

    Args:
      like: has the dtype of labels.
      count: rows of each device.
      ids: of the rows, or None where a device's rows follow its predecessor's.
      axes: mesh axes over which classes are split; () on one device.
    """
    index = jax.lax.axis_index(axes) if axes else 0
    return ClassRows(jnp.asarray(index * count, like.dtype), ids)


def take(
    prototypes: Float[Array, "R ..."],
    labels: Int[Array, " B"],
    *,
    ids: Int[Array, " R"] | None = None,
    mesh: Mesh | None = None,
    class_axes: tuple[str, ...] = AXES,
) -> Float[Array, "B ..."]:
    """Each example's own row, with its gradient; arguments as `streaming.evaluate`."""
    axes = split_axes(mesh, class_axes)

    def local(prototypes, labels, ids):
        everyones = jax.lax.all_gather(labels, axes, tiled=True) if axes else labels
        count = len(prototypes)
        rows = rows_on_device(labels, count, ids, axes)
        place, here = rows.find(everyones, count)
        own = prototypes[place]
        own = jnp.where(here.reshape(-1, *(1,) * (own.ndim - 1)), own, 0)
        if not axes:
            return own
        return jax.lax.psum_scatter(own, axes, scatter_dimension=0, tiled=True)

    if not axes:
        return local(prototypes, labels, ids)
    batch, classes = PartitionSpec(AXES), PartitionSpec(class_axes)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(classes, batch, classes), out_specs=batch
    )(prototypes, labels, ids)


def put(
    array: Array,
    labels: Int[Array, " B"],
    values: Array,
    kept: Bool[Array, " B"],
    *,
    mesh: Mesh | None = None,
    class_axes: tuple[str, ...] = AXES,
) -> Array:
    """The array [R, ...] with the rows of labels replaced by values [B, ...].

    Of several examples of a class the last is taken, of examples that are not `kept`
    none.
    """
    axes = split_axes(mesh, class_axes)

    def local(array, labels, values, kept):
        if axes:
            labels, values, kept = jax.lax.all_gather(
                (labels, values, kept), AXES, tiled=True
            )
            same = tuple(axis for axis in AXES if axis not in axes)
            if same:  # says that these are equal on all of them
                labels, values = jax.lax.pmax((labels, values), same)
                kept = jax.lax.pmax(kept.astype(jnp.int32), same) > 0
        order = jnp.arange(len(labels))
        equal = (labels[:, None] == labels[None, :]) & kept[None, :]
        last = ~jnp.any(equal & (order[:, None] < order[None, :]), axis=1)
        rows = rows_on_device(labels, len(array), None, axes)
        place, here = rows.find(labels, len(array))
        place = jnp.where(here & last & kept, place, len(array))
        return array.at[place].set(values.astype(array.dtype), mode="drop")

    if not axes:
        return local(array, labels, values, kept)
    batch, classes = PartitionSpec(AXES), PartitionSpec(class_axes)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(classes, batch, batch, batch), out_specs=classes
    )(array, labels, values, kept)
