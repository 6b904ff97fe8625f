"""A loss over classes without its matrix of logits, on one device or on all.

Chunks of classes pass one after the other: of each, cosines and logits exist only while
its sums are taken, and are computed again for the gradient. The result is exact; memory
does not grow with B x C. On several devices each holds some of the classes: it gathers
the embeddings of the batch, sums over its own classes, and gives the sums back to the
devices whose examples they are of. No array with a class axis travels, and nothing
travels inside the loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from hyperface_jax import class_sums, geometry
from hyperface_jax.class_loss import (
    Aux,
    ClassLoss,
    Examples,
    check_shapes,
    nan_where_unknown,
    wide,
)
from hyperface_jax.class_rows import ClassRows, rows_on_device
from hyperface_jax.class_sums import ClassSums
from hyperface_jax.sharding import AXES, split_axes

CHUNK_ELEMENTS = 1 << 22
"""B x chunk of an automatic chunk: 16 MiB a float32 matrix, four or five at a time."""

DENSE_BYTES = 2 << 30
"""The whole matrix is kept where its (about six) copies need no more than this.

A default for any device; `experiment` allows an eighth of the device's memory.
"""

DENSE_COPIES = 6
"""Of the matrix of logits, at the worst moment of the backward pass."""


THIN = 16
"""An automatic chunk may be so many times smaller than wanted, not more."""


def choose_chunk(
    batch: int,
    rows: int,
    chunk: int = 0,
    centres: int = 1,
    dense_bytes: int = DENSE_BYTES,
) -> int:
    """Classes at a time on one device: a divisor of `rows`, or `rows` itself (dense).

    Args:
      batch: B, examples that a device multiplies with its classes.
      rows: classes of one device, padding included.
      chunk: 0 chooses; else the largest divisor of `rows` up to it is taken.
      centres: class vectors of each class; each has its cosine.
      dense_bytes: memory that the whole matrix may take where `chunk` is 0.

    Raises:
      ValueError: `chunk` is negative, or is to be chosen and `rows` has no divisor
        near what is wanted.
    """
    if chunk < 0:
        raise ValueError(f"head.chunk is {chunk}, expected 0 (automatic) or more")
    if not chunk:
        if DENSE_COPIES * 4 * batch * rows * centres <= dense_bytes:
            return rows
        wanted = max(CHUNK_ELEMENTS // (batch * centres), 1)
        found = _largest_divisor(rows, wanted)
        if found * THIN < min(wanted, rows):
            raise ValueError(
                f"head.class_multiple: {rows} rows of classes on a device divide into "
                f"chunks of {found} at most, expected about {wanted} (a class_multiple "
                f"of {wanted} times the number of devices does)"
            )
        return found
    return _largest_divisor(rows, chunk)


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in _divisors(n) if d <= max(min(limit, n), 1))


def _divisors(n: int) -> set[int]:
    small = {d for d in range(1, int(n**0.5) + 1) if n % d == 0}
    return small | {n // d for d in small}


def evaluate(
    loss_of: Callable[[Any], ClassLoss],
    context: Any,
    embeddings: Float[Array, "B D"],
    labels: Int[Array, " B"],
    prototypes: Float[Array, "R ..."],
    *,
    num_classes: int,
    ids: Int[Array, " R"] | None = None,
    given: dict[str, Array] | None = None,
    chunk: int = 0,
    dense_bytes: int = DENSE_BYTES,
    mesh: Mesh | None = None,
    class_axes: tuple[str, ...] = AXES,
) -> tuple[Float[Array, " B"], Aux]:
    """The loss of each example, exactly as `class_loss.dense` computes it.

    Args:
      loss_of: context -> ClassLoss.
      context: pytree of (traced) scalars, the same on all devices.
      embeddings: [B, D]; on a mesh split over both of its axes.
      labels: [B] integers in [0, num_classes), split likewise; the loss of any other
        is NaN.
      prototypes: [R, D], R >= num_classes; further rows are padding and take no part.
        With sub-centres [R, K, D]. On a mesh split by class over `class_axes`.
      num_classes: C.
      ids: class of each row, rising on each device, where they are not all; split as
        the prototypes are. Or None for 0, 1, 2, ...
      given: [B] arrays, see `class_loss.Examples`; split as the embeddings.
      chunk: see `choose_chunk`; R or more is dense.
      dense_bytes: see `choose_chunk`.
      mesh: of all devices, or None for one.
      class_axes: axes of the mesh that hold classes, "model" or both.

    Returns:
      Loss [B] and aux, as `losses.hyperspherical_softmax`.

    Raises:
      ValueError: the shapes do not fit, labels are no integers, `chunk` is negative.
    """
    check_shapes(embeddings, labels, prototypes)
    labels = wide(labels)

    def local(context, embeddings, labels, prototypes, ids, given):
        loss = loss_of(context)
        own = loss.prepare(embeddings)._replace(given=given)
        rows = rows_on_device(labels, len(prototypes), ids, axes)
        everyone, everyones_labels = own, labels
        if axes:
            everyone, everyones_labels = jax.lax.all_gather(
                (own, labels), axes, tiled=True
            )
            # Here rather than by itself in the loop: its transpose adds up gradients.
            whole = tuple(axis for axis in AXES if axis not in axes)
            if whole:
                prototypes = jax.lax.pcast(prototypes, whole, to="varying")
        sums = sums_over_classes(
            loss,
            everyone,
            everyones_labels,
            prototypes,
            rows,
            num_classes=num_classes,
            chunk=choose_chunk(
                *(len(everyones_labels), len(prototypes), chunk),
                centres=prototypes.shape[1] if prototypes.ndim == 3 else 1,
                dense_bytes=dense_bytes,
            ),
            axes=axes,
        )
        values, aux = loss.finish(own, class_sums.across(sums, axes) if axes else sums)
        return nan_where_unknown(values, labels, num_classes), aux

    axes = split_axes(mesh, class_axes)
    if not axes:
        return local(context, embeddings, labels, prototypes, ids, given or {})
    batch, classes = PartitionSpec(AXES), PartitionSpec(class_axes)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), batch, batch, classes, classes, batch),
        out_specs=batch,
    )(context, embeddings, labels, prototypes, ids, given or {})


def sums_over_classes(
    loss: ClassLoss,
    examples: Examples,
    labels: Int[Array, " B"],
    prototypes: Float[Array, "R ..."],
    rows: ClassRows,
    *,
    num_classes: int,
    chunk: int,
    axes: tuple[str, ...] = (),
) -> ClassSums:
    """Sums over the given classes, `chunk` of them at a time.

    Args:
      loss: the loss.
      examples: of B examples.
      labels: [B].
      prototypes: [R, D], with sub-centres [R, K, D].
      rows: which classes they are of; `num_classes` or more is padding.
      num_classes: C.
      chunk: divisor of R; R itself is dense.
      axes: mesh axes over which other devices hold other classes.

    Returns:
      ClassSums, [B] each, of these classes alone.
    """
    count = len(prototypes)
    target_cos = None
    if loss.needs_target:
        target_cos = _target_cosines(examples, labels, prototypes, rows, axes)

    def of_part(prototypes, start):
        classes = rows.classes(start, len(prototypes))
        is_target = labels[:, None] == classes[None, :]
        known = classes < num_classes
        return loss.sums(examples, prototypes, target_cos, is_target, known)

    if chunk == count:
        return of_part(prototypes, 0)

    def body(sums, part):
        return class_sums.add(sums, of_part(*part)), None

    parts = prototypes.reshape(-1, chunk, *prototypes.shape[1:])
    starts = jnp.arange(0, count, chunk, dtype=labels.dtype)
    empty = class_sums.empty(examples.norms, AXES if axes else ())
    # In a scan nothing can be merged with the first pass: no barrier is needed.
    again = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(again, empty, (parts, starts))[0]


def _target_cosines(examples, labels, prototypes, rows, axes) -> Array:
    """Plain cosine [B, 1] with the own class, wherever it is; no gradient."""
    place, here = rows.find(labels, len(prototypes))
    own = jax.lax.stop_gradient(prototypes)[place]
    vectors = jax.lax.stop_gradient(examples.vectors)
    cos = jnp.where(here, geometry.own_cosines(vectors, own), 0)
    return (jax.lax.psum(cos, axes) if axes else cos)[:, None]
