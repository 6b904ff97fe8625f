"""Magnitude functions ρ(|x|): no, hard or soft feature normalisation.

SphereFace Revived, TPAMI 2022; the soft penalty of the official code is l1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from hyperface_jax.geometry import Scalar

MAGNITUDES = ("hfn", "nfn", "sfn")
PENALTIES = ("l1", "l2")


class Magnitude(NamedTuple):
    """How the length of an embedding enters the logits.

    Attributes:
      rho: |x| [B, 1] -> factor of the logits, broadcastable to [B, 1].
      penalty: |x| [B] -> value [B] added to each example's loss.
      scale: s, or None where there is none (NFN).
    """

    rho: Callable[[Array], Array]
    penalty: Callable[[Array], Array]
    scale: Scalar | None


def hfn(scale: Scalar) -> Magnitude:
    """Hard feature normalisation: ρ = s, whatever the length of the embedding."""
    return Magnitude(
        lambda norm: jnp.full_like(norm, scale), lambda norm: 0 * norm, scale
    )


def nfn() -> Magnitude:
    """No feature normalisation: ρ = |x|."""
    return Magnitude(lambda norm: norm, lambda norm: 0 * norm, None)


def sfn(scale: Scalar, strength: Scalar, penalty: str = "l1") -> Magnitude:
    """Soft feature normalisation: ρ = |x|, and t·| |x| - s | (l1) or t·(|x| - s)² (l2).

    Args:
      scale: s, the length that the penalty pulls |x| to.
      strength: t, the weight of the penalty (the paper's official code: .01).
      penalty: "l1" as in the official code, or "l2".

    Raises:
      ValueError: `penalty` is unknown.
    """
    if penalty == "l1":
        return Magnitude(
            lambda norm: norm, lambda norm: strength * jnp.abs(norm - scale), scale
        )
    if penalty == "l2":
        return Magnitude(
            lambda norm: norm, lambda norm: strength * (norm - scale) ** 2, scale
        )
    raise ValueError(f"penalty is {penalty!r}, expected one of {PENALTIES}")
