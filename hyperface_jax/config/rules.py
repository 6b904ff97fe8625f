"""What a config may say, what follows from it, and what a resumed run may change."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hyperface_jax import (
    classifier,
    losses,
    magnitudes,
    margins,
    optimizer,
    schedules,
)
from hyperface_jax.backbones import BACKBONES, DTYPES
from hyperface_jax.config.keys import PROTOCOLS, Config, default_config, section
from hyperface_jax.data.caching import CACHES
from hyperface_jax.data.datasets import DATASETS
from hyperface_jax.data.orders import SAMPLERS
from hyperface_jax.evaluation import templates

MARGIN_SCHEDULES = ("constant", "stairs", "linear")

# What may differ when a run is resumed. Everything else changes the mathematics.
_RUNTIME = (
    "data.path",
    "data.pairs_path",
    "data.data_dir",
    "data.cache_dir",
    "data.threads",
    "data.prefetch",
    "log.",
    "eval.",
    "report.",
    "mesh.",
)
_EXTENDS = ("train.steps", "train.epochs")

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.name": tuple(DATASETS),
    "data.sampler": tuple(SAMPLERS),
    "data.cache": CACHES,
    "backbone.name": tuple(BACKBONES),
    "backbone.dtype": DTYPES,
    "head.loss": classifier.LOSSES,
    "head.norm": magnitudes.MAGNITUDES,
    "head.penalty": magnitudes.PENALTIES,
    "head.detach": margins.DETACH,
    "head.clamp": margins.CLAMP,
    "head.prototype_norm": losses.PROTOTYPES,
    "head.prototype_init": classifier.INITS,
    "head.margin_schedule": MARGIN_SCHEDULES,
    "optimizer.name": optimizer.OPTIMIZERS,
    "optimizer.backbone.decay_mask": optimizer.DECAY_MASKS,
    "optimizer.prototypes.decay_mask": optimizer.DECAY_MASKS,
    "learning_rate.schedule": schedules.LEARNING_RATES,
}

_POSITIVE = (
    "data.threads",
    "data.prefetch",
    "backbone.width",
    "backbone.embedding_dim",
    "head.loss_weight",
    "head.class_multiple",
    "train.batch_size",
    "train.accumulate",
    "learning_rate.peak",
    "log.every_steps",
    "log.checkpoint_every_steps",
    "log.keep_last",
    "eval.batch_size",
    "mesh.model",
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as {"head.margin": value}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def validate(config: Config) -> None:
    """Checks what can be known without the data.

    Raises:
      ValueError: one line with the key, what was found and what was expected.
    """
    flat = flatten(config)
    for key, legal in _CHOICES.items():
        if flat[key] not in legal:
            raise ValueError(
                f"{key} is {flat[key]!r}, expected one of {', '.join(legal)}"
            )
    for key in _POSITIVE:
        if not flat[key] > 0:
            raise ValueError(f"{key} is {flat[key]}, expected a positive number")
    for key, value in flat.items():
        if key.startswith("augment.") and not 0 <= value <= 180:
            raise ValueError(f"{key} is {value}, expected 0 or more")
    if config.data.image_size % 16 or config.data.image_size <= 0:
        raise ValueError(
            f"data.image_size is {config.data.image_size}, expected a multiple of 16"
        )
    if (config.train.steps > 0) == (config.train.epochs > 0):
        raise ValueError(
            f"train.steps is {config.train.steps} and train.epochs is "
            f"{config.train.epochs}, expected exactly one of them to be positive"
        )
    if config.train.batch_size % config.train.accumulate:
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}, expected a multiple of "
            f"train.accumulate = {config.train.accumulate}"
        )
    for key in ("data.split_identities", "data.label_noise"):
        if not 0 <= flat[key] <= 1:
            raise ValueError(f"{key} is {flat[key]}, expected a share from 0 to 1")
    if config.data.cache == "ram" and config.data.sampler != "uniform":
        raise ValueError(
            f"data.sampler is {config.data.sampler!r} with data.cache 'ram', expected "
            "'uniform': a host has only its part of the images"
        )
    for key in ("data.min_images", "data.max_images"):
        if flat[key] < 0:
            raise ValueError(f"{key} is {flat[key]}, expected 0 or more")
    templates.parse_pooling(config.eval.pooling)
    if not 0 <= config.train.ema_decay < 1:
        raise ValueError(
            f"train.ema_decay is {config.train.ema_decay}, expected 0 <= decay < 1"
        )
    if config.head.scale != "auto":
        _scale(config.head.scale)
    for name in config.eval.protocols:
        if name not in PROTOCOLS:
            raise ValueError(
                f"eval.protocols has {name!r}, expected some of {', '.join(PROTOCOLS)}"
            )


def _scale(value: Any) -> float:
    try:
        scale = float(value)
    except ValueError:
        scale = 0.0
    if not scale > 0:
        raise ValueError(f"head.scale is {value!r}, expected 'auto' or a number > 0")
    return scale


def resolve(config: Config, *, num_classes: int, num_examples: int) -> Config:
    """Fills in what depends on other keys or on the data; returns a locked copy.

    `train.steps` from epochs, `head.margin` -1 and `head.scale` "auto" become numbers.
    Warns where s is below the smallest that lets a perfect example reach p = .99.

    Args:
      config: validated.
      num_classes: C of the training set.
      num_examples: its images.
    """
    c = section(config.to_dict())
    if c.train.epochs > 0:
        epoch = num_examples / c.train.batch_size
        c.train.steps = max(round(c.train.epochs * epoch), 1)
    plain = c.head.loss == classifier.PLAIN_SOFTMAX
    margin = margins.MARGINS.get(c.head.loss, margins.MARGINS["normface"])
    if c.head.margin == -1:
        c.head.margin = margin.default
    least = margins.minimum_scale(margin, c.head.margin, num_classes)
    if plain:
        c.head.norm = "nfn"
    scale = _resolve_scale(c, least)
    if c.head.norm != "nfn" and scale < least:
        warnings.warn(
            f"head.scale is {scale}, below {least:.1f}, the least with which "
            f"{c.head.loss} at m = {c.head.margin} can reach p = .99 with "
            f"{num_classes} classes",
            stacklevel=2,
        )
    with c.ignore_type():
        c.head.scale = scale
    return c.lock()


def _resolve_scale(config: Config, least: float) -> float:
    """S as a number; "auto" is a multiple of the smallest that can work."""
    head = config.head
    if head.scale != "auto":
        return _scale(head.scale)
    if head.norm == "nfn":
        return 1.0
    if least == float("inf"):
        raise ValueError(f"head.margin is {head.margin}: no scale separates classes")
    return round(head.scale_factor * least, 1)


def margin_schedule(config: Config) -> schedules.Schedule:
    """M as a function of the step, from a resolved config."""
    h = config.head
    if h.margin_schedule == "stairs":
        rise = (h.margin - h.margin_start) / max(len(h.margin_steps), 1)
        return schedules.stairs(h.margin_start, rise, h.margin_steps)
    if h.margin_schedule == "linear":
        return schedules.linear_ramp(h.margin_start, h.margin, h.margin_steps[-1])
    return schedules.constant(h.margin)


def check_resumable(saved: Mapping[str, Any], config: Config) -> list[str]:
    """Compares a resolved config with that of the run in a workdir.

    Returns:
      Lines about keys that extend the run, to be logged.

    Raises:
      ValueError: keys that change the mathematics differ; names them.
    """
    old, new = flatten(saved), flatten(config)
    for flat in (old, new):  # a copy on disk is the same data in the same order
        flat["data.cache"] = "ram" if flat.get("data.cache") == "ram" else "none"
    extended, contradictions = [], []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(_RUNTIME):
            continue
        line = f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        (extended if key in _EXTENDS else contradictions).append(line)
    if contradictions:
        raise ValueError(
            "the workdir holds a run with another config: "
            + "; ".join(contradictions)
            + " (use another --workdir)"
        )
    return extended


def load(path: epath.PathLike) -> Config:
    """A resolved config written by a run (config.json in its workdir)."""
    try:
        values = json.loads(epath.Path(path).read_text())
        values = values.get("config", values)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable config ({error})") from None
    config = default_config()
    with config.unlocked():
        for name, content in values.items():
            if isinstance(content, dict):
                for key, value in content.items():
                    _set(config[name], key, value)
            else:
                config[name] = content
    return config.lock()


def _set(part: Config, key: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner, content in value.items():
            _set(part[key], inner, content)
        return
    if isinstance(value, list):
        value = tuple(value)
    with part.ignore_type():
        part[key] = value
