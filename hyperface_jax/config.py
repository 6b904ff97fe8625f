"""Configuration: every key in one place, string arguments, resolution, validation.

A config file in `configs/` calls `default_config()`, changes some keys and returns it.
What depends on other keys or on the data ("auto", epochs) is computed by `resolve`,
after the command line has had its say.
"""

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
from hyperface_jax.backbones import BACKBONES
from hyperface_jax.data.datasets import DATASETS

MARGIN_SCHEDULES = ("constant", "stairs", "linear")
LOSSES = classifier.LOSSES
PROTOCOLS = ("verification", "held_out_threshold", "open_set", "identification")


def default_config() -> ConfigDict:
    """SphereFace-R v2 with hard feature normalisation on synth_faces; unlocked."""
    c = ConfigDict()
    c.seed = 0  # of initialisation, order of the data, augmentation and dropout

    c.data = ConfigDict()
    c.data.name = "synth_faces"  # synth_faces | face_folder
    c.data.config = "laptop"  # synth_faces: laptop, tiny, large; else a name you choose
    c.data.path = ""  # face_folder: folder or tar of NAME/xxx.jpg
    c.data.pairs_path = ""  # face_folder: verification pairs in LFW's format
    c.data.fold = 0  # face_folder: test on this fold's people, from 1; 0: on all pairs'
    c.data.dev_fraction = 0.1  # training people held out to choose a threshold
    c.data.data_dir = ""  # prepared datasets; "": $TFDS_DATA_DIR, ~/tensorflow_datasets
    c.data.image_size = 64  # side in pixels, divisible by 16
    c.data.threads = 2  # that decode
    c.data.prefetch = 3  # batches decoded ahead

    c.augment = ConfigDict()  # see augment.AugmentSettings
    c.augment.flip = 0.5  # probability
    c.augment.shift = 0.0  # largest, share of the side
    c.augment.scale = 0.0  # largest, relative
    c.augment.rotate = 0.0  # largest, degrees
    c.augment.erase = 0.0  # probability
    c.augment.crop = 0.0  # probability
    c.augment.low_resolution = 0.0  # probability
    c.augment.photometric = 0.0  # probability
    c.augment.grey = 0.0  # probability

    c.backbone = ConfigDict()
    c.backbone.name = "sfnet20"  # see backbones.BACKBONES
    c.backbone.width = 64  # channels of the first stage; 64 is published
    c.backbone.embedding_dim = 512  # D
    c.backbone.dtype = "float32"  # of computation: float32 | bfloat16
    c.backbone.dropout = 0.0  # before the embedding
    c.backbone.drop_path = 0.0  # stochastic depth, of the last block

    c.head = ConfigDict()
    c.head.loss = "sphereface_r_v2"  # see classifier.LOSSES
    c.head.norm = "hfn"  # hfn | nfn | sfn
    c.head.scale = "auto"  # s; "auto": scale_factor times the smallest that can work
    c.head.scale_factor = 2.3  # of "auto"; the authors' own s are 2.2-2.5 times it
    c.head.margin = 1.4  # m at the end of its schedule; -1: the loss's default
    c.head.margin_schedule = "constant"  # constant | stairs | linear
    c.head.margin_start = 1.0  # m before the first stair, or at step 0
    c.head.margin_steps = (0,)  # stairs: where m rises; linear: (last step of the ramp,)
    c.head.penalty = "l1"  # of SFN: l1 (official) | l2
    c.head.penalty_strength = 0.01  # t of SFN
    c.head.detach = "cosine"  # cosine (CGD) | none | angle
    c.head.clamp = "exact"  # exact | official (cosines clipped to 1 - 1e-5)
    c.head.prototype_norm = "project"  # project (official) | differentiate
    c.head.prototype_init = "xavier_normal"  # xavier_normal | normal
    c.head.loss_weight = 50.0  # lw
    c.head.divide_by_scale = True  # lw/s where there is an s
    c.head.annealing = False  # sphereface_2017: mix with plain cosine by λ(step)
    c.head.class_multiple = 4096  # rows of the prototypes are padded to a multiple

    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd"  # sgd (PyTorch's rule) | adamw
    c.optimizer.momentum = 0.9  # adamw: b1
    c.optimizer.nesterov = False
    c.optimizer.b2 = 0.999  # adamw
    c.optimizer.clip_norm = 0.0  # of all gradients together; 0: off
    for part in ("backbone", "prototypes"):
        c.optimizer[part] = ConfigDict()
        c.optimizer[part].learning_rate_factor = 1.0
        c.optimizer[part].weight_decay = 5e-4
        c.optimizer[part].decay_mask = "all"  # all (official) | matrices
        c.optimizer[part].clip_norm = 0.0  # of this part; 0: off

    c.learning_rate = ConfigDict()
    c.learning_rate.schedule = "multistep"  # multistep | cosine | polynomial | constant
    c.learning_rate.peak = 0.1
    c.learning_rate.warmup_steps = 0
    c.learning_rate.milestones = ()  # multistep: steps
    c.learning_rate.decay = 0.1  # multistep: factor at each milestone
    c.learning_rate.power = 1.0  # polynomial
    c.learning_rate.final = 0.0  # cosine, polynomial: last value

    c.train = ConfigDict()
    c.train.batch_size = 512  # global
    c.train.steps = 0  # length of the run; give this or epochs
    c.train.epochs = 0.0
    c.train.accumulate = 1  # parts of a batch computed one after the other
    c.train.ema_decay = 0.0  # of the weights, a step; 0: off

    c.log = ConfigDict()
    c.log.every_steps = 50
    c.log.tensorboard = True
    c.log.checkpoint_every_steps = 1000
    c.log.keep_last = 2  # checkpoints
    c.log.best_metric = ""  # also keep the best by this key, e.g. test/kfold_accuracy

    c.eval = ConfigDict()
    c.eval.every_steps = 0  # while training; 0: only at the end
    c.eval.protocols = PROTOCOLS  # those that the data does not offer are left out
    c.eval.batch_size = 256
    c.eval.flip = True  # add the embedding of the mirror image
    c.eval.use_ema = True  # where there is one

    c.report = ConfigDict()
    c.report.pictures = True  # show the hardest pairs
    c.report.hardest = 8  # of each kind

    c.mesh = ConfigDict()
    c.mesh.model = 1  # size of the "model" axis; "data" is the rest of the devices
    return c


def laptop_recipe(config: ConfigDict) -> None:
    """Two cores, a few minutes, rendered faces. Shared by all that compare losses."""
    config.data.name = "synth_faces"
    config.data.config = "laptop"
    config.data.image_size = 64
    config.augment.shift = 0.04
    config.backbone.name = "sfnet10_bn"
    config.backbone.width = 16
    config.backbone.embedding_dim = 128
    config.head.class_multiple = 64
    config.head.loss_weight = 30.0
    config.train.batch_size = 128
    config.train.epochs = 12.0
    config.learning_rate.schedule = "cosine"
    config.learning_rate.warmup_steps = 30
    config.log.every_steps = 25
    config.log.checkpoint_every_steps = 200
    config.eval.every_steps = 200
    config.log.best_metric = "test/verification/kfold_accuracy"


# What may differ when a run is resumed. Everything else changes the mathematics.
_RUNTIME = (
    "data.path",
    "data.pairs_path",
    "data.data_dir",
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
    "backbone.name": tuple(BACKBONES),
    "backbone.dtype": ("float32", "bfloat16"),
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


def parse_arg(arg: str | None, **choices: tuple[str, ...]) -> dict[str, str]:
    """Parses a config file's string argument "key=value,key=value".

    Args:
      arg: what follows the colon on the command line, or None.
      **choices: for each key its legal values, the default first.

    Returns:
      A value for every key.

    Raises:
      ValueError: an unknown key or value, with the legal ones.
    """
    values = {key: legal[0] for key, legal in choices.items()}
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in choices:
            raise ValueError(
                f"config argument {key!r} is unknown, expected one of "
                f"{', '.join(choices)}"
            )
        if value not in choices[key]:
            raise ValueError(
                f"config argument {key}={value!r} is unknown, expected one of "
                f"{', '.join(choices[key])}"
            )
        values[key] = value
    return values


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as {"head.margin": value}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def validate(config: ConfigDict) -> None:
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


def resolve(config: ConfigDict, *, num_classes: int, num_examples: int) -> ConfigDict:
    """Fills in what depends on other keys or on the data; returns a locked copy.

    `train.steps` from epochs, `head.margin` -1 and `head.scale` "auto" become numbers.
    Warns where s is below the smallest that lets a perfect example reach p = .99.

    Args:
      config: validated.
      num_classes: C of the training set.
      num_examples: its images.
    """
    c = ConfigDict(config.to_dict())
    if c.train.epochs > 0:
        epoch = num_examples / c.train.batch_size
        c.train.steps = max(round(c.train.epochs * epoch), 1)
    plain = c.head.loss == classifier.PLAIN_SOFTMAX
    margin = margins.MARGINS.get(c.head.loss, margins.MARGINS["normface"])
    if c.head.margin == -1:
        c.head.margin = margin.default
    least = margins.minimum_scale(margin, c.head.margin, num_classes)
    with c.ignore_type():
        if plain:
            c.head.norm, c.head.scale = "nfn", 1.0
        elif c.head.scale == "auto":
            if least == float("inf"):
                raise ValueError(
                    f"head.margin is {c.head.margin}: no scale can separate the classes"
                )
            c.head["scale"] = round(c.head.scale_factor * least, 1)
        else:
            c.head["scale"] = _scale(c.head.scale)
    if c.head.norm != "nfn" and c.head.scale < least:
        warnings.warn(
            f"head.scale is {c.head.scale}, below {least:.1f}, the least with which "
            f"{c.head.loss} at m = {c.head.margin} can reach p = .99 with "
            f"{num_classes} classes",
            stacklevel=2,
        )
    return c.lock()


def margin_schedule(config: ConfigDict) -> schedules.Schedule:
    """m as a function of the step, from a resolved config."""
    h = config.head
    if h.margin_schedule == "stairs":
        rise = (h.margin - h.margin_start) / max(len(h.margin_steps), 1)
        return schedules.stairs(h.margin_start, rise, h.margin_steps)
    if h.margin_schedule == "linear":
        return schedules.linear_ramp(h.margin_start, h.margin, h.margin_steps[-1])
    return schedules.constant(h.margin)


def check_resumable(saved: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Compares a resolved config with that of the run in a workdir.

    Returns:
      Lines about keys that extend the run, to be logged.

    Raises:
      ValueError: keys that change the mathematics differ; names them.
    """
    old, new = flatten(saved), flatten(config)
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


def to_json(config: ConfigDict) -> str:
    """Readable JSON of a config."""
    return json.dumps(config.to_dict(), indent=2, default=list)


def load(path: epath.PathLike) -> ConfigDict:
    """A resolved config written by a run (config.json in its workdir)."""
    try:
        values = json.loads(epath.Path(path).read_text())
        values = values.get("config", values)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable config ({error})") from None
    config = default_config()
    with config.unlocked():
        for section, content in values.items():
            if isinstance(content, dict):
                for key, value in content.items():
                    _set(config[section], key, value)
            else:
                config[section] = content
    return config.lock()


def _set(section: ConfigDict, key: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner, content in value.items():
            _set(section[key], inner, content)
        return
    if isinstance(value, list):
        value = tuple(value)
    with section.ignore_type():
        section[key] = value
