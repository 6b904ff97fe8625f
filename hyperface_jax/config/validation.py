"""Checks of a config that need no data: one line with key, found and expected."""

import warnings
from typing import Any

from hyperface_jax import (
    catalogue,
    class_loss,
    class_vectors,
    family,
    magnitudes,
    margins,
    optimizer,
    precision,
    schedules,
    sharding,
)
from hyperface_jax.backbones import BACKBONES, DTYPES, check_input
from hyperface_jax.config.keys import PROTOCOLS, Config, expected, flatten
from hyperface_jax.data.caching import CACHES
from hyperface_jax.data.datasets import DATASETS
from hyperface_jax.data.orders import SAMPLERS
from hyperface_jax.evaluation import templates

MARGIN_SCHEDULES = ("constant", "stairs", "linear")

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.name": tuple(DATASETS),
    "data.sampler": tuple(SAMPLERS),
    "data.cache": CACHES,
    "backbone.name": tuple(BACKBONES),
    "backbone.dtype": DTYPES,
    "eval.checkpoint": ("last", "best"),
    "head.norm": magnitudes.MAGNITUDES,
    "head.penalty": magnitudes.PENALTIES,
    "head.detach": ("auto", *margins.DETACH),
    "head.clamp": margins.CLAMP,
    "head.prototype_norm": class_loss.PROTOTYPES,
    "head.prototype_init": class_vectors.INITS,
    "head.margin_schedule": MARGIN_SCHEDULES,
    "head.precision.cosine": ("auto", *precision.PRECISIONS),
    "head.precision.embedding_gradient": ("auto", *precision.PRECISIONS),
    "head.precision.prototype_gradient": ("auto", *precision.PRECISIONS),
    "mesh.classes": sharding.CLASSES,
    "optimizer.name": optimizer.OPTIMIZERS,
    "optimizer.backbone.decay_mask": optimizer.DECAY_MASKS,
    "optimizer.backbone.momentum_dtype": optimizer.MOMENTUM_DTYPES,
    "optimizer.prototypes.momentum_dtype": optimizer.MOMENTUM_DTYPES,
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
    "eval.group_fmr",
    "mesh.model",
)


# Largest shares and angles that leave a face in the picture; the rest is probability.
_RANGES: dict[str, tuple[float, float]] = {
    "augment.flip": (0, 1),
    "augment.shift": (0, 0.5),
    "augment.scale": (0, 0.9),
    "augment.rotate": (0, 180),
    "augment.erase": (0, 1),
    "augment.crop": (0, 1),
    "augment.low_resolution": (0, 1),
    "augment.photometric": (0, 1),
    "augment.grey": (0, 1),
    "eval.jitter": (0, 0.2),
    "data.split_identities": (0, 1),
    "data.label_noise": (0, 1),
    "head.interclass_filter": (0, 1),
}

_BELOW_ONE = (
    "data.dev_fraction",
    "backbone.dropout",
    "backbone.drop_path",
    "backbone.mask_ratio",
    "optimizer.momentum",
    "optimizer.b2",
    "train.ema_decay",
    "eval.group_fmr",
)


def validate(config: Config) -> None:
    """Checks what can be known without the data.

    Raises:
      ValueError: one line with the key, what was found and what was expected.
    """
    flat = flatten(config)
    losses = {"head.loss": catalogue.loss_names()}  # also those added since import
    for key, legal in (_CHOICES | losses).items():
        if flat[key] not in legal:
            raise ValueError(f"{key} is {flat[key]!r}, {expected(flat[key], legal)}")
    for key in _POSITIVE:
        if not flat[key] > 0:
            raise ValueError(f"{key} is {flat[key]}, expected a positive number")
    for key, (low, high) in _RANGES.items():
        if not low <= flat[key] <= high:
            raise ValueError(f"{key} is {flat[key]}, expected {low:g} to {high:g}")
    for key in _BELOW_ONE:
        if not 0 <= flat[key] < 1:
            raise ValueError(f"{key} is {flat[key]}, expected 0 <= value < 1")
    try:
        check_input(config.backbone.color_order, config.backbone.value_range)
    except ValueError as error:
        raise ValueError(f"backbone.{error}") from None
    _check_margin(config)
    _warn_of_unused_constants(config)
    if config.learning_rate.milestones and config.learning_rate.milestone_epochs:
        raise ValueError(
            f"learning_rate.milestones is {config.learning_rate.milestones} and "
            f"milestone_epochs {config.learning_rate.milestone_epochs}, expected one"
        )
    if config.data.image_size % 16 or config.data.image_size <= 0:
        raise ValueError(
            f"data.image_size is {config.data.image_size}, expected a multiple of 16"
        )
    if (config.train.steps > 0) == (config.train.epochs > 0):
        raise ValueError(
            f"train.steps is {config.train.steps} and train.epochs is "
            f"{config.train.epochs}, expected exactly one of them to be positive"
        )
    group = config.backbone.batch_norm_group
    at_once = config.train.batch_size // config.train.accumulate
    if group < 0 or (group and at_once % group):
        raise ValueError(
            f"backbone.batch_norm_group is {group}, expected 0 or a divisor of the "
            f"{at_once} images that are computed at once"
        )
    if not 0 < config.head.sample_rate <= 1:
        raise ValueError(
            f"head.sample_rate is {config.head.sample_rate}, expected 0 < rate <= 1"
        )
    if config.head.chunk < 0:
        raise ValueError(
            f"head.chunk is {config.head.chunk}, expected 0 (automatic) or more"
        )
    if config.train.batch_size % config.train.accumulate:
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}, expected a multiple of "
            f"train.accumulate = {config.train.accumulate}"
        )
    if config.data.cache == "ram" and config.data.sampler != "uniform":
        raise ValueError(
            f"data.sampler is {config.data.sampler!r} with data.cache 'ram', expected "
            "'uniform': a host has only its part of the images"
        )
    for key in (
        "data.min_images",
        "data.max_images",
        "eval.bootstrap",
        "report.hardest",
    ):
        if flat[key] < 0:
            raise ValueError(f"{key} is {flat[key]}, expected 0 or more")
    templates.parse_pooling(config.eval.pooling)
    if config.head.scale not in ("auto", "paper"):
        parse_scale(config.head.scale)
    for name in config.eval.protocols:
        if name not in PROTOCOLS:
            raise ValueError(
                f"eval.protocols has {name!r}, expected some of {', '.join(PROTOCOLS)}"
            )


def member_of(config: Config) -> family.Member:
    """The config's loss, see `catalogue.member_of`."""
    return catalogue.member_of(config.head.loss, **constants(config))


def constants(config: Config) -> dict[str, float]:
    """The loss's own constants."""
    return dict(config.head.get(config.head.loss) or {})


def _warn_of_unused_constants(config: Config) -> None:
    """Constants of a loss that is not trained: a slip, or left from another run."""
    for name in family.names():
        published = family.constants_of(name)
        own = config.head.get(name) or {}
        for key, value in published.items() if name != config.head.loss else ():
            if own.get(key, value) != value:
                warnings.warn(
                    f"head.{name}.{key} is {own[key]}, but head.loss is "
                    f"{config.head.loss!r}: nobody reads it",
                    stacklevel=3,
                )


def _check_margin(config: Config) -> None:
    """The loss's own constants; and a margin below neutral rewards the wrong side."""
    h = config.head
    try:
        member = member_of(config)
    except ValueError as error:
        raise ValueError(f"head.{h.loss}: {error}") from None
    catalogue.check_settings(h.loss, member, h.norm, h.interclass_filter, h.sample_rate)
    if h.loss == catalogue.PLAIN_SOFTMAX:
        return
    if member.binary and h.detach == "angle":
        raise ValueError(
            f"head.detach is 'angle' with {h.loss}, expected auto, cosine or none"
        )
    margin = member.margin
    keys = ["margin"]
    if config.head.margin_schedule != "constant":
        keys.append("margin_start")
    for key in keys:
        value = config.head[key]
        if value != -1 and not margin.neutral <= value < float("inf"):
            raise ValueError(
                f"head.{key} is {value}, expected {margin.neutral:g} (no margin) or "
                f"more for {config.head.loss}, or -1 for its "
                + ("default" if key == "margin" else "start without one")
            )


def parse_scale(value: Any) -> float:
    """`head.scale` as a number."""
    try:
        scale = float(value)
    except ValueError:
        scale = 0.0
    if not scale > 0:
        raise ValueError(
            f"head.scale is {value!r}, expected 'auto', 'paper' or a number > 0"
        )
    return scale
