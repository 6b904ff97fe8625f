"""From a config to the loss of a run."""

import jax
from jax.sharding import Mesh

from hyperface_jax import config as config_lib
from hyperface_jax import device_memory, precision, schedules, sharding, streaming
from hyperface_jax.classifier import Head
from hyperface_jax.config import Config


def create_head(
    c: Config, num_classes: int, margin: schedules.Schedule, mesh: Mesh
) -> Head:
    """The loss, bound to its settings, for the devices of a mesh."""
    h = c.head
    return Head(
        h.loss,
        num_classes=num_classes,
        constants=config_lib.constants(c),
        norm=h.norm,
        scale=h.scale,
        margin=margin,
        annealing=schedules.sphereface_annealing() if h.annealing else None,
        penalty=h.penalty,
        penalty_strength=h.penalty_strength,
        detach=h.detach,
        clamp=h.clamp,
        interclass_filter=h.interclass_filter,
        prototype_norm=h.prototype_norm,
        loss_weight=h.loss_weight,
        divide_by_scale=h.divide_by_scale,
        products=_products(h.precision, mesh),
        sample_rate=h.sample_rate,
        chunk=h.chunk,
        dense_bytes=dense_bytes(mesh),
        mesh=mesh,
        class_axes=sharding.class_axes(c.mesh.classes),
    )


def dense_bytes(mesh: Mesh) -> int:
    """What the whole matrix of logits may take of a device: an eighth of its memory."""
    device = mesh.devices.flat[0]
    # All hosts must decide alike: what one of them measures does not count there.
    alone = jax.process_count() == 1
    has = device_memory.of(device) if alone else device_memory.published(device)
    return max(streaming.DENSE_BYTES, has // 8)


def _products(names: Config, mesh: Mesh) -> precision.Products:
    """The precisions; "auto" is the cheapest with gradients within 1e-3 of exact."""
    cheapest = "bfloat16_3x" if mesh.devices.flat[0].platform == "tpu" else "float32"
    return precision.Products(
        **{key: cheapest if name == "auto" else name for key, name in names.items()}
    )
