"""What follows from a config, and what a resumed run may change."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath

from hyperface_jax import adaptive, catalogue, family, margins, schedules
from hyperface_jax.config.keys import Config, default_config, flatten, section
from hyperface_jax.config.validation import member_of, parse_scale

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
    "head.chunk",
    "backbone.remat",
    "compilation_cache",
    "source",
)
_EXTENDS = ("train.steps", "train.epochs")


def resolve(config: Config, *, num_classes: int, num_examples: int) -> Config:
    """Fills in what depends on other keys or on the data; returns a locked copy.

    `train.steps` and `learning_rate.milestones` from epochs, `head.margin` -1,
    `head.scale` "auto" and "paper" become numbers, `head.detach` "auto" a word. Warns
    where s is below the smallest that lets a perfect example reach p = .99.

    Args:
      config: validated.
      num_classes: C of the training set.
      num_examples: its images.
    """
    c = section(config.to_dict())
    epoch = num_examples / c.train.batch_size
    if c.train.epochs > 0:
        c.train.steps = max(round(c.train.epochs * epoch), 1)
    if epochs := c.learning_rate.milestone_epochs:
        c.learning_rate.milestones = tuple(round(e * epoch) for e in epochs)
    member = member_of(c)
    if c.head.margin == -1:
        c.head.margin = member.margin.default
    if c.head.margin_start == -1:
        c.head.margin_start = member.margin.neutral
    if c.head.detach == "auto":
        c.head.detach = member.detach
    if c.head.loss == catalogue.PLAIN_SOFTMAX:
        c.head.norm = "nfn"
    least = margins.minimum_scale(member.margin, c.head.margin, num_classes)
    scale = _resolve_scale(c, member, least, num_classes)
    if c.head.norm != "nfn" and not member.own_scale and scale < least:
        warnings.warn(
            f"head.scale is {scale}, below {least:.1f}, the least with which "
            f"{c.head.loss} at m = {c.head.margin} can reach p = .99 with "
            f"{num_classes} classes",
            stacklevel=2,
        )
    if member.variational and member.variational.start >= c.train.steps:
        warnings.warn(
            f"head.{c.head.loss}.start is {member.variational.start}, and the run has "
            f"{c.train.steps} steps: it is plain ArcFace to the end",
            stacklevel=2,
        )
    with c.ignore_type():
        c.head.scale = scale
    return c.lock()


def _resolve_scale(
    config: Config, member: family.Member, least: float, num_classes: int
) -> float:
    """S as a number; "auto" is a multiple of the smallest that can work.

    Of sums over classes, too: SphereFace2's published r is 2.8 times that bound for its
    8 631 classes, UniFace's s 2.4 times for 85 742. AdaCos chooses its own.
    """
    head = config.head
    if member.own_scale:
        return round(adaptive.adacos_start(num_classes), 1)
    if head.scale not in ("auto", "paper"):
        return parse_scale(head.scale)
    if head.norm == "nfn":
        return 1.0
    if head.scale == "paper":
        if member.scale is None:
            raise ValueError(f"head.scale is 'paper', but {head.loss} has none")
        return member.scale
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
    # A key that came after the run was saved had its default then.
    old, new = flatten(default_config()) | flatten(saved), flatten(config)
    for flat in (old, new):  # a copy on disk is the same data in the same order
        flat["data.cache"] = "ram" if flat.get("data.cache") == "ram" else "none"
        if flat["head.margin_schedule"] == "constant":
            flat["head.margin_start"] = -1  # nobody reads it
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
    """A resolved config written by a run (config.json in its workdir).

    Raises:
      ValueError: it cannot be read, or somebody changed it into something else.
    """
    try:
        values = json.loads(epath.Path(path).read_text())
        values = values.get("config", values)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable config ({error})") from None
    config = default_config()
    try:
        with config.unlocked():
            for name, content in values.items():
                if isinstance(content, dict):
                    for key, value in content.items():
                        _set(config[name], key, value)
                else:
                    config[name] = content
        _check_types(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged config ({why:.160})") from None
    return config.lock()


def _check_types(config: Config) -> None:
    """Raises a ValueError where a value is of another kind than the default's.

    Whether it is a legal one is asked where it is used: a loss of somebody's own has no
    name here, and its network can be read nevertheless.
    """
    found = flatten(config)
    for key, default in flatten(default_config()).items():
        kind: Any = (tuple, list)
        if isinstance(default, bool):
            kind = bool
        elif isinstance(default, int | float):
            kind = (int, float)
        elif isinstance(default, str):
            kind = (str, int, float)  # "auto" has become a number
        if not isinstance(found.get(key), kind):
            raise ValueError(f"{key} is {found.get(key)!r}")


def _set(part: Config, key: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner, content in value.items():
            _set(part[key], inner, content)
        return
    if isinstance(value, list):
        value = tuple(value)
    with part.ignore_type():
        part[key] = value
