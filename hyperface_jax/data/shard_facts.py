"""What all finished shards of a dataset hold together: counts, sizes, duplicates."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from hyperface_jax.data.preparing import Written


class Facts(NamedTuple):
    """Of all shards together.

    Attributes:
      labels: int32 [N], of each stored record.
      shard_lengths: records of each shard.
      num_bytes: of all serialised records.
      shapes: (height, width) -> images.
    """

    labels: np.ndarray
    shard_lengths: list[int]
    num_bytes: int
    shapes: Counter[tuple[int, int]]


def gather(written: Written) -> Facts:
    """Reads the parts once, one after the other."""
    labels, num_bytes, shapes = [], 0, Counter()
    for part in written.parts():
        labels.append(part.labels)
        num_bytes += part.num_bytes
        found, number = np.unique(part.sizes, axis=0, return_counts=True)
        shapes.update(
            {(int(h), int(w)): int(n) for (h, w), n in zip(found, number, strict=True)}
        )
    lengths = [len(part) for part in labels]
    return Facts(np.concatenate(labels), lengths, num_bytes, shapes)


class Repeat(NamedTuple):
    """Stored records with one payload.

    Attributes:
      rows: index in the source set of each, rising.
      labels: of each.
    """

    rows: np.ndarray
    labels: np.ndarray


def duplicates(written: Written) -> list[Repeat]:
    """Groups of records whose payloads are equal, by their hash.

    A pass over the parts for each value of 4 bits of the hash holds a sixteenth of
    them in memory.
    """
    found = []
    for bucket in range(16):
        hashes, rows, labels = [], [], []
        for part in written.parts():
            mine = part.hashes[:, 0] >> np.uint64(60) == bucket
            hashes.append(part.hashes[mine])
            rows.append(part.rows[mine])
            labels.append(part.labels[mine])
        found += _equal(*(np.concatenate(a) for a in (hashes, rows, labels)))
    return sorted(found, key=lambda repeat: int(repeat.rows[0]))


def _equal(hashes: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> list[Repeat]:
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    if not same.any():
        return []
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    groups = np.split(order, starts[1:])
    return [
        Repeat(rows[group], labels[group])
        for group in map(np.sort, groups)
        if len(group) > 1
    ]
