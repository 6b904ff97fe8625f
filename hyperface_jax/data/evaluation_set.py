"""What the protocols of one test set need."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pairs import Pairs


def _no_rows() -> np.ndarray:
    return np.zeros(0, int)


@dataclass(frozen=True)
class EvaluationSet:
    """What the protocols need. All numbers are rows of `faces.source`.

    Attributes:
      name: prefix of metric names, e.g. "test", "fold8" or "agedb_30".
      faces: the images and who they show.
      pairs: pairs to verify, or None.
      dev_pairs: pairs of other people, to choose a threshold with; or None.
      open_set_rows: images for the open-set criterion.
      gallery: one image a person.
      probes: images to look for in the gallery.
      templates: metadata of a protocol of templates (`evaluation.ijb.IjbMetadata`),
        whose image n is image n of `faces`; or None.
    """

    name: str
    faces: FaceSet
    pairs: Pairs | None
    dev_pairs: Pairs | None = None
    open_set_rows: np.ndarray = dataclasses.field(default_factory=_no_rows)
    gallery: np.ndarray = dataclasses.field(default_factory=_no_rows)
    probes: np.ndarray = dataclasses.field(default_factory=_no_rows)
    templates: Any = None

    @classmethod
    def of_pairs(cls, name: str, faces: FaceSet) -> "EvaluationSet":
        """Verification of the pairs of a set, and nothing else."""
        return cls(name=name, faces=faces, pairs=faces.pairs)
