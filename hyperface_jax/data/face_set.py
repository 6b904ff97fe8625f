"""A set of face images as the rest of the program sees it."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hyperface_jax.data.pairs import Pairs


class RecordSource(Protocol):
    """Random access to records: dicts with `image` (encoded bytes) and `id`."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Records of the given rows, in that order."""
        ...


@dataclass(frozen=True)
class FaceSet:
    """Images with identities; a selection of people is a FaceSet again.

    Attributes:
      name: for messages, e.g. "synth_faces/laptop train".
      source: all records of the underlying split.
      rows: int64 [N], the records of `source` that belong to this set.
      labels: int32 [N], identity of each, 0..C-1.
      source_labels: int32 [rows of source], the label that each record must carry.
      identities: names of the C people.
      fingerprint: changes when images, labels or their order change.
      pairs: verification pairs as rows of `source`, or None.
      gallery: rows of `source` of a gallery, one a person; empty if there is none.
      probes: rows of `source` to look for in the gallery.
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

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.identities)

    def read(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
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
