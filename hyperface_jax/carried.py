"""What the train step hands to a loss besides embeddings, labels and class vectors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

from hyperface_jax.family import Member


class Carried(NamedTuple):
    """A loss's own parameters and memory, and what a step knows of its batch.

    Attributes:
      trained: the head's other parameters, {"bias": scalar} or {}.
      memory: what the loss remembers, or {}.
      weight: [B], 0 for examples that take no part, or None for all.
      key: random key of the step, or None; ElasticFace draws with it.
    """

    trained: Mapping[str, Array] = {}
    memory: Mapping[str, Any] = {}
    weight: Array | None = None
    key: Array | None = None


NOTHING_CARRIED = Carried()


def check(loss: str, member: Member, carried: Carried) -> None:
    """Raises a ValueError that names what a loss needs and does not find."""
    needs = {
        "trained=head.trained()": member.binary and "bias" not in carried.trained,
        "memory=head.memory(rows, dim)": (member.memory or member.variational)
        and not carried.memory,
        "key=a random key": member.draws and carried.key is None,
    }
    missing = [need for need, lacking in needs.items() if lacking]
    if missing:
        raise ValueError(f"{loss} needs carried=Carried({', '.join(missing)})")
