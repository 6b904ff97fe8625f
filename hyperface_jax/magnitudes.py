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
    """Hard feature normalisation: ρ = s, whatever the length of the embedding.

    Raises:
      ValueError: s is a number and not positive.
    """
    _check_scale(scale)
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
      ValueError: `penalty` is unknown, or s is a number and not positive.
    """
    _check_scale(scale)
    if penalty == "l1":
        return Magnitude(
            lambda norm: norm, lambda norm: strength * jnp.abs(norm - scale), scale
        )
    if penalty == "l2":
        return Magnitude(
            lambda norm: norm, lambda norm: strength * (norm - scale) ** 2, scale
        )
    raise ValueError(f"penalty is {penalty!r}, expected one of {PENALTIES}")


def of_norm(
    norm: str, scale: Scalar, strength: Scalar, penalty: str = "l1"
) -> Magnitude:
    """The magnitude function called `norm`; other arguments as `sfn`.

    Raises:
      ValueError: a name is unknown, or s is a number and not positive.
    """
    if norm == "hfn":
        return hfn(scale)
    if norm == "sfn":
        return sfn(scale, strength, penalty)
    if norm == "nfn":
        return nfn()
    raise ValueError(f"norm is {norm!r}, expected one of {MAGNITUDES}")


def _check_scale(scale: Scalar) -> None:
    if isinstance(scale, (int, float)) and not scale > 0:
        raise ValueError(f"scale is {scale}, expected a number > 0")
