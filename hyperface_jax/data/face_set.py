"""A set of face images as the rest of the program sees it."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import ConcatSource, Record, RecordSource

log = logging.getLogger(__name__)

SAMPLED = 64
"""Files whose content is part of a fingerprint."""


@dataclass(frozen=True)
class FaceSet:
    """Images with identities; a selection of people is a FaceSet again.

    Attributes:
      name: for messages, e.g. "synth_faces/laptop train".
      source: all records of the underlying split.
      rows: int [N], the records of `source` that belong to this set.
      labels: int32 [N], identity of each, 0..C-1.
      source_labels: int32 [rows of source], the label that each record must carry.
      identities: names of the C people.
      fingerprint: changes when images, labels or their order change.
      pairs: verification pairs as rows of `source`, or None.
      gallery: rows of `source` of a gallery, one a person; empty if there is none.
      probes: rows of `source` to look for in the gallery.
      rejected: id -> reason, of records that were left out when the set was opened.
      licence: as whoever prepared it stated; "" where nobody did.
    """

    name: str
    source: RecordSource
    rows: np.ndarray
    labels: np.ndarray
    source_labels: np.ndarray
    identities: tuple[str, ...]
    fingerprint: str
    pairs: Pairs | None = None
    gallery: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    probes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    rejected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.identities)

    def read(self, indices: Sequence[int]) -> Sequence[Record]:
        """Records of this set (not rows of the source), in the given order."""
        return self.source.__getitems__([int(self.rows[i]) for i in indices])

    def select_people(self, people: np.ndarray, name: str) -> "FaceSet":
        """The images of the given identities only, re-labelled 0..len(people)-1.

        Args:
          people: increasing indices into `identities`.
          name: name of the new set.
        """
        new_label = np.full(self.num_classes, -1, np.int32)
        new_label[people] = np.arange(len(people), dtype=np.int32)
        keep = new_label[self.labels] >= 0
        digest = hashlib.sha256(
            self.fingerprint.encode() + np.asarray(people, "<i8").tobytes()
        )
        return dataclasses.replace(
            self,
            name=name,
            rows=self.rows[keep],
            labels=new_label[self.labels[keep]],
            identities=tuple(self.identities[p] for p in people),
            fingerprint=digest.hexdigest()[:16],
            pairs=None,
            gallery=np.zeros(0, int),
            probes=np.zeros(0, int),
        )

    def label_of_row(self) -> np.ndarray:
        """[rows of source] identity, -1 where a row is not in this set."""
        labels = np.full(len(self.source), -1, np.int64)
        labels[self.rows] = self.labels
        return labels


def sample_of(read: Callable[[int], bytes], count: int) -> str:
    """Digest of `SAMPLED` files: the same names and sizes may hold other images.

    Args:
      read: row -> content; a file that is damaged or not there counts as empty.
      count: number of rows.
    """

    def content(row: int) -> bytes:
        try:
            return read(row)
        except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError):
            return b""  # for good; a network that is down is none of these

    rows = np.unique(np.linspace(0, max(count - 1, 0), SAMPLED).astype(int))
    digest = hashlib.sha256()
    with ThreadPoolExecutor(8, thread_name_prefix="sample") as pool:
        for data in pool.map(content, rows[:count].tolist()):
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def fingerprint_of(*parts: Any) -> str:
    """16 hexadecimal digits of strings, bytes, numbers and integer arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            for start in range(0, len(part), 1 << 20):
                chunk = np.ascontiguousarray(part[start : start + (1 << 20)], "<i8")
                digest.update(chunk.data)
        elif isinstance(part, bytes):
            digest.update(len(part).to_bytes(8, "little") + part)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def drop_empty(faces: FaceSet) -> FaceSet:
    """Leaves out identities without an image; the labels of the others move up."""
    present = np.flatnonzero(np.bincount(faces.labels, minlength=faces.num_classes))
    lost = faces.num_classes - len(present)
    if not lost:
        return faces
    log.warning(
        "%s: %d of %d identities have no image, left out (the first: %s)",
        faces.name,
        lost,
        faces.num_classes,
        faces.identities[np.setdiff1d(np.arange(faces.num_classes), present)[0]],
    )
    return dataclasses.replace(
        faces,
        labels=np.searchsorted(present, faces.labels).astype(np.int32),
        identities=tuple(faces.identities[k] for k in present),
    )


def concatenate(sets: Sequence[FaceSet]) -> FaceSet:
    """Several sets as one; nobody is taken for the same person in two of them.

    Args:
      sets: at least one; of a single set the set itself is returned.
    """
    if len(sets) == 1:
        return sets[0]
    classes = np.cumsum([0] + [s.num_classes for s in sets])
    # The labels that records carry may run further than the identities in use.
    carried = np.cumsum([0] + [int(s.source_labels.max(initial=0)) + 1 for s in sets])
    starts = np.cumsum([0] + [len(s.source) for s in sets])
    each = range(len(sets))
    return FaceSet(
        name=" + ".join(s.name for s in sets),
        source=ConcatSource([s.source for s in sets], carried[:-1].tolist()),
        rows=np.concatenate([sets[k].rows.astype(np.int64) + starts[k] for k in each]),
        labels=np.concatenate([sets[k].labels + classes[k] for k in each]).astype(
            np.int32
        ),
        source_labels=np.concatenate(
            [sets[k].source_labels + carried[k] for k in each]
        ).astype(np.int32),
        identities=tuple(f"{k}/{name}" for k in each for name in sets[k].identities),
        fingerprint=fingerprint_of(*(s.fingerprint for s in sets)),
        rejected={
            f"{k}/{name}": why for k in each for name, why in sets[k].rejected.items()
        },
        licence=" + ".join(dict.fromkeys(s.licence for s in sets if s.licence)),
    )
