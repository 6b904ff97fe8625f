"""Configuration: every key in one place, string arguments, resolution, validation.

A config file in `configs/` calls `default_config()`, changes some keys and returns it.
What depends on other keys or on the data ("auto", epochs) is computed by `resolve`,
after the command line has had its say.
"""

from hyperface_jax.catalogue import loss_names
from hyperface_jax.config.keys import (
    PROTOCOLS,
    Config,
    default_config,
    flatten,
    laptop_recipe,
    parse_arg,
    section,
)
from hyperface_jax.config.rules import check_resumable, load, margin_schedule, resolve
from hyperface_jax.config.validation import constants, member_of, validate

__all__ = [
    "PROTOCOLS",
    "Config",
    "check_resumable",
    "constants",
    "default_config",
    "flatten",
    "laptop_recipe",
    "load",
    "loss_names",
    "margin_schedule",
    "member_of",
    "parse_arg",
    "resolve",
    "section",
    "validate",
]
