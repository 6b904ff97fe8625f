"""Starting from a model instead of random weights (`init_from`).

The network is the model's; how it is computed (dtype, dropout, remat), the head and the
rest of the training are the config's. The class vectors start anew.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from hyperface_jax import model, workdir
from hyperface_jax.config import Config, section
from hyperface_jax.model import NETWORK, Model
from hyperface_jax.training.train_state import TrainState

log = logging.getLogger(__name__)

STARTED_FROM = "started_from.json"


def begin(config: Config, saved: Config | None = None) -> tuple[Config, Model | None]:
    """The config with the network that it starts from, and the model with its weights.

    Args:
      config: validated.
      saved: that of the run that goes on, which has the network already: the model is
        not needed any more (None) and may be gone.

    Raises:
      ValueError: there is no such model, or it is for images of another size.
    """
    if not config.init_from:
        return config, None
    if saved is not None:
        return _with_network(
            config, {key: saved.backbone[key] for key in NETWORK}
        ), None
    start = model.load(config.init_from)
    if config.data.image_size != start.image_size:
        raise ValueError(
            f"data.image_size is {config.data.image_size}, expected "
            f"{start.image_size}: init_from {config.init_from} is for images of that "
            "size"
        )
    log.info("starting from %s: %s", config.init_from, start.network["name"])
    for key, value in start.network.items():
        if (asked := config.backbone[key]) != value:
            log.info("backbone.%s is %s, the model's, instead of %s", key, value, asked)
    return _with_network(config, start.network), start


def _with_network(config: Config, network: Mapping[str, Any]) -> Config:
    c = section(config.to_dict())
    for key, value in network.items():
        with c.ignore_type():
            c.backbone[key] = value
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
