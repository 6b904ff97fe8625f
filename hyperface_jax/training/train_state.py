"""What training carries from step to step: arrays only, so checkpoints hold it all."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hyperface_jax import class_vectors
from hyperface_jax.backbones import Backbone
from hyperface_jax.classifier import Head


class TrainState(flax.struct.PyTreeNode):
    """A pytree of arrays.

    Attributes:
      step: int32, updates done; also the position in the data and the margin's time.
      params: {"backbone": tree, "prototypes": [rows, D]}, and "head": {"bias": scalar}
        where the loss trains more than class vectors.
      batch_stats: running statistics of the backbone; {} without BatchNorm.
      opt_state: of Optax.
      ema: {"backbone": tree, "batch_stats": tree}, moving averages; {} when off.
      seed: uint32; the random key of a step is fold_in(key(seed), step).
      nonfinite_step: int32, first step whose loss or gradient was not finite, or -1.
        From then on nothing else changes.
      memory: what the loss remembers (`Head.memory`), moved once a step; mostly {}.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    opt_state: Any
    ema: dict[str, Any]
    seed: jax.Array
    nonfinite_step: jax.Array
    memory: dict[str, Any] = flax.struct.field(default_factory=dict)

    def evaluation_weights(self, use_ema: bool) -> tuple[Any, Any]:
        """Backbone parameters and statistics to embed with."""
        if use_ema and self.ema:
            return self.ema["backbone"], self.ema["batch_stats"]
        return self.params["backbone"], self.batch_stats


def init_train_state(
    *,
    backbone: Backbone,
    head: Head,
    image_size: int,
    class_multiple: int,
    prototype_init: str,
    unit_prototypes: bool,
    tx: optax.GradientTransformation,
    seed: int,
    ema: bool,
) -> TrainState:
    """A fresh state. Pure: jit it with the shardings of `sharding.state_shardings`.

    Then it is born sharded, and no device ever holds another's part.

    Args:
      backbone: from `backbones.create_backbone`.
      head: the loss.
      image_size: H = W.
      class_multiple: rows of the prototypes are padded to a multiple of this.
      prototype_init: see `class_vectors.init_prototypes`.
      unit_prototypes: start on the sphere ("project").
      tx: optimizer over {"backbone", "prototypes"}.
      seed: of initialisation and of every later random number.
      ema: keep moving averages.
    """
    backbone_key, head_key = jax.random.split(jax.random.key(seed))
    weights, batch_stats = backbone.init(backbone_key, image_size)
    rows = class_vectors.padded_classes(head.num_classes, class_multiple)
    prototypes = class_vectors.init_prototypes(
        head_key,
        num_classes=head.num_classes,
        rows=rows,
        embedding_dim=backbone.embedding_dim,
        init=prototype_init,
        unit=unit_prototypes,
        centres=head.centres,
    )
    params = {"backbone": weights, "prototypes": prototypes}
    if trained := head.trained():
        params["head"] = trained
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        ema={"backbone": weights, "batch_stats": batch_stats} if ema else {},
        seed=jnp.uint32(seed),
        nonfinite_step=jnp.int32(-1),
        memory=head.memory(rows, backbone.embedding_dim),
    )
