"""Starting from a model instead of random weights (`init_from`).

The network is the model's; how it is computed (dtype, dropout, remat), the head and the
rest of the training are the config's. The class vectors start anew.
"""

import logging

import jax
import numpy as np
from etils import epath

from hyperface_jax import model, workdir
from hyperface_jax.config import Config, section
from hyperface_jax.model import Model
from hyperface_jax.train_state import TrainState

log = logging.getLogger(__name__)

STARTED_FROM = "started_from.json"


def adopted(config: Config, start: Model) -> Config:
    """A copy of a config with the model's network.

    Raises:
      ValueError: the model is for images of another size.
    """
    if config.data.image_size != start.image_size:
        raise ValueError(
            f"data.image_size is {config.data.image_size}, expected "
            f"{start.image_size}: init_from {config.init_from} is for images of that "
            "size"
        )
    c = section(config.to_dict())
    for key, value in start.network.items():
        with c.ignore_type():
            c.backbone[key] = value
    log.info("starting from %s: %s", config.init_from, start.network["name"])
    return c.lock()


def put_into(state: TrainState, start: Model) -> TrainState:
    """The fresh state with the model's weights and statistics, placed as before."""

    def placed(old, new):
        return jax.tree.map(
            lambda a, b: jax.device_put(np.asarray(b, a.dtype), a.sharding), old, new
        )

    params = state.params | {
        "backbone": placed(state.params["backbone"], dict(start.params))
    }
    stats = placed(state.batch_stats, dict(start.batch_stats))
    ema = state.ema
    if ema:
        ema = placed(ema, {"backbone": start.params, "batch_stats": start.batch_stats})
    return state.replace(params=params, batch_stats=stats, ema=ema)


def remember(folder: epath.Path, config: Config, start: Model) -> None:
    """Notes in the workdir where the weights came from, and their licence."""
    workdir.write_json(
        folder / STARTED_FROM,
        {
            "init_from": config.init_from,
            "fingerprint": start.fingerprint,
            "licence": start.card.get("weights_licence", ""),
        },
    )


def load(config: Config) -> Model | None:
    """The model that a config starts from, or None."""
    return model.load(config.init_from) if config.init_from else None
