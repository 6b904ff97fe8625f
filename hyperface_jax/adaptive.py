"""Losses that look at the batch, or remember: what is computed before a step's loss.

`Seen` is what a step may look at: of the whole batch on all devices, without gradient.
A `Memory` is a handful of scalars in the train state and the pure function that moves
them on, once a step; the step's own loss already uses the moved ones, as the official
codes do. With `train.accumulate` each part's loss looks at its own part (and uses the
memory as that part alone would move it); what is kept is moved once, by the whole.
A `Given` makes a number for each example (`margins.MarginContext`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Scalars = dict[str, Array]


class Seen(NamedTuple):
    """Of the whole batch, or of a part with `train.accumulate`; no gradient.

    Attributes:
      embeddings: [B, D].
      norms: [B], their lengths.
      labels: [B].
      weight: [B], 0 for examples that take no part.
      target_cos: [B], cosine with the own class, or None where nobody asks.
      others: [B], log Σ_{j≠y} exp(s·cos θ_j), likewise.
    """

    embeddings: Float[Array, "B D"]
    norms: Float[Array, " B"]
    labels: Int[Array, " B"]
    weight: Float[Array, " B"]
    target_cos: Float[Array, " B"] | None = None
    others: Float[Array, " B"] | None = None


class Memory(NamedTuple):
    """Scalars that a loss carries from step to step.

    Attributes:
      init: number of classes -> their values before the first step.
      update: (values, Seen) -> values; a batch without a kept example changes nothing.
    """

    init: Callable[[int], dict[str, float]]
    update: Callable[[Scalars, Seen], Scalars]


Given = Callable[[Seen, Scalars, Array, Any], dict[str, Array]]
"""(Seen, memory, m, random key) -> fields of MarginContext, [B] each."""


def adaface_norms(decay: float) -> Memory:
    """Running mean and deviation of lengths, AdaFace: v ← decay·batch + (1 - decay)·v.

    Lengths are clipped to [1e-3, 100], the deviation is the unbiased one; a batch of
    one keeps the old. Official start: 20 and 100.

    Args:
      decay: share of the batch, 0 < decay <= 1 (t_alpha of the official code, .01).

    Returns:
      Memory of the scalars "norm_mean" and "norm_deviation".

    Raises:
      ValueError: `decay` is out of its range.
    """
    _check_share("decay of AdaFace", decay)

    def update(memory, seen):
        norms = jnp.clip(seen.norms, 1e-3, 100)
        count = jnp.sum(seen.weight > 0)
        kept = jnp.where(seen.weight > 0, 1, 0).astype(norms.dtype)
        mean = jnp.sum(norms * kept) / jnp.maximum(count, 1)
        square = jnp.sum(jnp.square(norms - mean) * kept)
        deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
        return {
            "norm_mean": _moved(memory["norm_mean"], mean, decay, count > 0),
            "norm_deviation": _moved(
                memory["norm_deviation"], deviation, decay, count > 1
            ),
        }

    return Memory(lambda classes: {"norm_mean": 20.0, "norm_deviation": 100.0}, update)


def adaface_quality(h: float) -> Given:
    """ẑ = clip(h·(|x| - mean)/(deviation + 1e-3), -1, 1), AdaFace.

    Args:
      h: more than 0; .333 in the official run.

    Returns:
      Given of "quality" [B].

    Raises:
      ValueError: `h` is not positive.
    """
    if not h > 0:
        raise ValueError(f"h of AdaFace is {h}, expected more than 0")

    def given(seen, memory, m, key):
        del m, key
        norms = jnp.clip(seen.norms, 1e-3, 100)
        spread = memory["norm_deviation"] + 1e-3
        quality = jnp.clip(h * (norms - memory["norm_mean"]) / spread, -1, 1)
        return {"quality": quality.astype(norms.dtype)}

    return given


def running_target(decay: float) -> Memory:
    """Running mean of the target's cosine, CurricularFace's t: from 0.

    Args:
      decay: share of the batch, 0 < decay <= 1.

    Returns:
      Memory of the scalar "difficulty".

    Raises:
      ValueError: `decay` is out of its range.
    """
    _check_share("decay of CurricularFace", decay)

    def update(memory, seen):
        count = jnp.sum(seen.weight > 0)
        total = jnp.sum(jnp.where(seen.weight > 0, seen.target_cos, 0))
        mean = total / jnp.maximum(count, 1)
        return {"difficulty": _moved(memory["difficulty"], mean, decay, count > 0)}

    return Memory(lambda classes: {"difficulty": 0.0}, update)


def difficulty_of_all(
    seen: Seen, memory: Scalars, m: Array, key: Any
) -> dict[str, Array]:
    """CurricularFace's t, the same for each example: a `Given` of "difficulty" [B]."""
    del m, key
    return {"difficulty": jnp.full_like(seen.norms, memory["difficulty"])}


def adacos_scale() -> Memory:
    """S ← ln(B_avg)/cos(min(π/4, θ_med)), AdaCos, from √2·ln(C - 1).

    B_avg is the mean over the batch of Σ_{j≠y} exp(s·cos θ_j) with the s before, θ_med
    the (lower) median of the target's angle.

    Returns:
      Memory of the scalar "scale".
    """

    def update(memory, seen):
        kept = seen.weight > 0
        count = jnp.sum(kept)
        angle = jnp.arccos(jnp.clip(seen.target_cos, -1, 1))
        place = jnp.maximum((count - 1) // 2, 0)
        median = jnp.sort(jnp.where(kept, angle, jnp.inf))[place]
        every = jax.nn.logsumexp(jnp.where(kept, seen.others, -jnp.inf))
        log_mean = every - jnp.log(jnp.maximum(count, 1).astype(every.dtype))
        scale = log_mean / jnp.cos(jnp.minimum(jnp.pi / 4, median))
        return {"scale": _moved(memory["scale"], scale, 1.0, count > 0)}

    return Memory(lambda classes: {"scale": adacos_start(classes)}, update)


def adacos_start(num_classes: float) -> float:
    """√2·ln(C - 1), AdaCos's fixed scale."""
    return math.sqrt(2) * math.log(max(num_classes - 1, 2))


def elastic_margin(deviation: float, plus: bool) -> Given:
    """A margin from N(m, deviation) for each example, ElasticFace.

    Args:
      deviation: σ.
      plus: ElasticFace+: the smallest drawn margin goes to the example that is nearest
        to its class, and so on. (The official code sorts, but then picks by index
        instead of rank, which is a random permutation.)

    Returns:
      Given of "margin" [B], in the margin's unit.

    Raises:
      ValueError: `deviation` is negative.
    """
    if not deviation >= 0:
        raise ValueError(f"deviation of ElasticFace is {deviation}, expected 0 or more")

    def given(seen, memory, m, key):
        del memory
        noise = jax.random.normal(key, seen.norms.shape, seen.norms.dtype)
        if plus:
            rank = jnp.argsort(jnp.argsort(-seen.target_cos))
            noise = jnp.sort(noise)[rank]
        return {"margin": m + deviation * noise}

    return given


def _moved(old: Array, new: Array, share: float, counts: Array) -> Array:
    moved = share * new + (1 - share) * old
    return jnp.where(counts, moved, old).astype(old.dtype)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}, expected 0 < value <= 1")
