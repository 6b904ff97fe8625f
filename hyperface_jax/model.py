"""A trained network on its own: what embeds, without data, loss or optimizer.

    model = load("runs/sfr")  # a workdir of a run, or a folder of `save`
    embeddings = model.embed(images)  # uint8 RGB [B, H, W, 3] -> float32 [B, D]

A folder of `save` holds `weights.npz` (arrays by path, "params/conv1/kernel"),
`model.json` (network, size and kind of its images) and the model card. Class vectors
are no part of it: each is a biometric template of a person who was trained on.
"""

import dataclasses
import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from hyperface_jax import augment, model_card, workdir
from hyperface_jax import config as config_lib
from hyperface_jax.backbones import Backbone, create_backbone
from hyperface_jax.evaluation.embedder import Embedder, of_network
from hyperface_jax.training.checkpoint import Checkpoints

DESCRIPTION, WEIGHTS = "model.json", "weights.npz"
FORMAT = 2  # 1: the fingerprint was of the weights alone
NETWORK = ("name", "width", "embedding_dim", "color_order", "value_range")
NETWORK += ("batch_norm_epsilon",)
"""Keys of `config.backbone` that are the network; the others are how it is computed."""

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its weights.

    Attributes:
      backbone: takes RGB in [-1, 1], whatever the network was trained with.
      params: nested dicts of arrays, float32.
      batch_stats: likewise; {} without BatchNorm.
      image_size: H = W of its images.
      network: the values of `NETWORK`.
      card: see `model_card`.
    """

    backbone: Backbone
    params: Mapping[str, Any]
    batch_stats: Mapping[str, Any]
    image_size: int
    network: Mapping[str, Any]
    card: Mapping[str, Any]

    def forward(self, images: jax.Array) -> jax.Array:
        """uint8 or float RGB in 0..255 [B, H, W, 3] -> [B, D], not normalised; pure."""
        weights, pixels = (self.params, self.batch_stats), augment.normalize(images)
        return self.backbone.apply(*weights, pixels, train=False)[0]

    @functools.cached_property
    def embed(self):
        """`forward`, jitted; weights are arguments of the program, not constants."""
        run = jax.jit(
            lambda params, stats, images: dataclasses.replace(
                self, params=params, batch_stats=stats
            ).forward(images)
        )
        weights = jax.device_put((self.params, self.batch_stats))
        return lambda images: run(*weights, jnp.asarray(images))

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.network, self.image_size, self.params, self.batch_stats)

    def embedder(self, **options: Any) -> Embedder:
        """For sets of images; options as `embedder.of_network`."""
        return of_network(
            self.backbone,
            *(self.params, self.batch_stats),
            fingerprint=lambda: self.fingerprint,
            image_size=self.image_size,
            **options,
        )


def fingerprint(
    network: Mapping[str, Any], image_size: int, params: Any, batch_stats: Any
) -> str:
    """Sixteen hexadecimal digits of a network and its weights.

    Equal weights that are fed in another colour order are another network.

    Args:
      network: the values of `NETWORK`.
      image_size: H = W.
      params: nested dicts of arrays.
      batch_stats: likewise.
    """
    facts = {key: network[key] for key in NETWORK}
    facts["value_range"] = [float(bound) for bound in facts["value_range"]]
    digest = hashlib.sha256(json.dumps([facts, image_size], sort_keys=True).encode())
    for name, leaf in sorted(_flat(params, batch_stats).items()):
        digest.update(name.encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def create(
    network: Mapping[str, Any],
    params: Any,
    batch_stats: Any,
    *,
    image_size: int,
    card: Mapping[str, Any],
) -> Model:
    """A model of arrays that are there; shapes are compared with the network's.

    Raises:
      ValueError: names the first array that is missing, superfluous or of another
        shape.
    """
    settings = dict(network)
    settings["value_range"] = tuple(settings["value_range"])
    backbone = create_backbone(**settings)
    expected = jax.eval_shape(
        lambda key: backbone.init(key, image_size), jax.random.key(0)
    )
    found = _flat(params, batch_stats)
    _check_arrays(found, _flat(*expected), f"{backbone.name}, {image_size} pixels")
    return Model(backbone, params, batch_stats, image_size, settings, card)


def save(model: Model, folder: epath.PathLike) -> epath.Path:
    """Writes a folder that `load` reads; each file whole or absent."""
    out = workdir.create(folder)
    arrays = {
        name: np.asarray(leaf, np.float32)
        for name, leaf in _flat(model.params, model.batch_stats).items()
    }
    with workdir.whole_file(out / WEIGHTS, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    workdir.write_json(
        out / DESCRIPTION,
        {
            "format": FORMAT,
            "network": dict(model.network),
            "image_size": model.image_size,
            "fingerprint": model.fingerprint,
        },
    )
    model_card.write(out, model.card)
    return out


def load(path: epath.PathLike, checkpoint: str = "last") -> Model:
    """A model from a folder of `save`, or from a run's workdir.

    Args:
      path: the folder.
      checkpoint: of a workdir, "last" or "best" by its log.best_metric.

    Raises:
      ValueError: it is neither, or its files are damaged; one line.
    """
    folder = workdir.absolute(path)
    if (folder / DESCRIPTION).exists():
        return _load_folder(folder)
    if (folder / workdir.CONFIG).exists():
        return _load_workdir(folder, checkpoint)
    raise ValueError(
        f"{folder}: neither {DESCRIPTION} nor {workdir.CONFIG} in it, expected a model "
        "(of convert) or the workdir of a run"
    )


def _load_folder(folder: epath.Path) -> Model:
    facts = workdir.read_json(folder / DESCRIPTION)
    if (found := facts.get("format")) != FORMAT:
        raise ValueError(
            f"{folder / DESCRIPTION}: format {found}, expected {FORMAT}; convert again"
        )
    where = folder / WEIGHTS
    try:
        flat = _read_weights(where)
    except Exception as error:  # a damaged zip or header may fail anyhow
        raise ValueError(f"{where}: cannot be read ({error!s:.160})") from None
    try:
        tree: Any = unflatten_dict(flat, sep="/")
        model = create(
            facts["network"],
            tree.get("params", {}),
            tree.get("batch_stats", {}),
            image_size=facts["image_size"],
            card=model_card.read(folder)
            or model_card.of_import(facts["network"], facts["image_size"], {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: damaged ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if model.fingerprint != facts.get("fingerprint"):
        raise ValueError(
            f"{where}: the weights have fingerprint {model.fingerprint}, "
            f"{DESCRIPTION} says {facts.get('fingerprint')}"
        )
    return model


def _read_weights(path: epath.Path) -> dict[str, np.ndarray]:
    """Arrays by path, none larger than the file: `save` compresses nothing."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.file_size > member.compress_size:
                raise ValueError(f"{member.filename} is compressed, expected plain")
        file.seek(0)  # else NumPy takes a large archive's end for its beginning
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _load_workdir(folder: epath.Path, checkpoint: str) -> Model:
    config = config_lib.load(folder / workdir.CONFIG)
    with Checkpoints(
        folder, best_metric=config.log.best_metric, clean=False
    ) as checkpoints:
        step = None
        if checkpoint == "best":
            step = checkpoints.best_step
            if step is None:
                raise ValueError(
                    f"{folder}: no checkpoint has log.best_metric = "
                    f"{config.log.best_metric!r}, expected one for the best"
                )
        step, params, batch_stats = checkpoints.restore_weights(
            step, use_ema=config.eval.use_ema
        )
    made = create(
        {key: config.backbone[key] for key in NETWORK},
        params,
        batch_stats,
        image_size=config.data.image_size,
        card={},
    )
    facts = workdir.read_json(folder / workdir.CONFIG)
    card = model_card.of_run(folder, facts, step, made.fingerprint)
    return dataclasses.replace(made, card=card)


def _flat(params: Any, batch_stats: Any) -> dict[str, Any]:
    return flatten_dict({"params": params, "batch_stats": batch_stats}, sep="/")


def _check_arrays(found: dict, expected: dict, network: str) -> None:
    for kind, names in (
        ("missing", sorted(expected.keys() - found.keys())),
        ("superfluous", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ValueError(
                f"arrays do not fit {network}: {kind} {', '.join(names[:_SHOWN])}{more}"
            )
    for name, leaf in expected.items():
        if tuple(found[name].shape) != tuple(leaf.shape):
            raise ValueError(
                f"{name} is {list(found[name].shape)}, {network} expects "
                f"{list(leaf.shape)}"
            )
        if not np.isfinite(np.asarray(found[name])).all():
            raise ValueError(
                f"{name} has NaN or infinity in it, expected finite weights"
            )
        if name.endswith("/var") and (np.asarray(found[name]) < 0).any():
            raise ValueError(f"{name} has negative numbers in it, expected variances")
