"""The pairs that a network gets most wrong, as a person should see them."""

import dataclasses

import numpy as np

from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.records import BadRecordError, Record
from hyperface_jax.evaluation.embedded import Embedded
from hyperface_jax.evaluation.results import HardPair, ProtocolResult, hardest_pairs


def with_pictures(
    result: ProtocolResult, embedded: Embedded, count: int, image_size: int
) -> ProtocolResult:
    """Adds the `count` least similar genuine and most similar impostor pairs."""
    pairs = embedded.data.pairs
    if pairs is None or len(pairs) != len(result.scores):
        return result  # pairs of templates have no picture
    source = embedded.data.faces.source
    kept = []
    chosen = hardest_pairs(result.scores, result.is_genuine, count)
    for k in np.concatenate(chosen):
        records = source.__getitems__([int(pairs.first[k]), int(pairs.second[k])])
        first, second = (_picture(record, image_size) for record in records)
        kept.append(
            HardPair(
                kind="genuine" if result.is_genuine[k] else "impostor",
                score=float(result.scores[k]),
                first_id=first[0],
                second_id=second[0],
                first_image=first[1],
                second_image=second[1],
            )
        )
    return dataclasses.replace(result, hardest=tuple(kept))


def _picture(record: Record, size: int) -> tuple[str, np.ndarray]:
    """Id and image; black where it cannot be read."""
    black = np.zeros((size, size, 3), np.uint8)
    if isinstance(record, BadRecordError):
        return "unreadable", black
    try:
        return record["id"], decode_image(record["image"], size)
    except BadRecordError:
        return record["id"], black
