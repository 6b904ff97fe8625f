"""Who is trained on and who is tested on: never the same people."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperface_jax.data import datasets, face_folder
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pairs import Pairs, random_pairs


@dataclass(frozen=True)
class EvaluationSet:
    """What the protocols need. All numbers are rows of `faces.source`.

    Attributes:
      name: prefix of metric names, e.g. "test" or "fold8".
      faces: the images and who they show.
      pairs: pairs to verify, or None.
      dev_pairs: pairs of other people, to choose a threshold with; or None.
      open_set_rows: images for the open-set criterion.
      gallery: one image a person.
      probes: images to look for in the gallery.
    """

    name: str
    faces: FaceSet
    pairs: Pairs | None
    dev_pairs: Pairs | None
    open_set_rows: np.ndarray
    gallery: np.ndarray
    probes: np.ndarray


def train_and_test(
    builder: Any, *, fold: int = 0, dev_fraction: float = 0.1, seed: int = 0
) -> tuple[FaceSet, EvaluationSet | None]:
    """Splits a prepared dataset by people.

    Sets with "train" and "test" are taken as they are. A face folder has one split:
    with `fold` = K (from 1) the people of fold K's pairs are tested on, a share
    `dev_fraction` of the others chooses the threshold, and the rest is trained on;
    with `fold` = 0 the people of all pairs are tested on.

    Args:
      builder: from `datasets.prepare`.
      fold: fold of the pairs file to test on, from 1; 0 for all.
      dev_fraction: share of the training people held out for the threshold.
      seed: chooses those people and their impostor pairs.
    """
    if face_folder.SPLIT not in builder.info.splits:
        test = datasets.open_split(builder, "test")
        return datasets.open_split(builder, "train"), _whole_test_set(test)
    faces = datasets.open_split(builder, face_folder.SPLIT)
    if faces.pairs is None:
        if fold:
            raise ValueError(
                f"data.fold is {fold}, expected data.pairs_path to name a pairs file"
            )
        return faces, None
    return _split_face_folder(faces, faces.pairs, fold, dev_fraction, seed)


def _whole_test_set(test: FaceSet) -> EvaluationSet:
    return EvaluationSet(
        name="test",
        faces=test,
        pairs=test.pairs,
        dev_pairs=None,
        open_set_rows=test.rows,
        gallery=test.gallery,
        probes=test.probes,
    )


def _split_face_folder(
    faces: FaceSet, pairs: Pairs, fold: int, dev_fraction: float, seed: int
) -> tuple[FaceSet, EvaluationSet]:
    folds = int(pairs.fold.max()) + 1
    if not 0 <= fold <= folds:
        raise ValueError(f"data.fold is {fold}, expected 1 to {folds} or 0 for all")
    tested = pairs.take(pairs.fold == fold - 1) if fold else pairs
    rows = np.union1d(tested.first, tested.second)
    test_people = np.unique(faces.labels[rows])
    others = np.setdiff1d(np.arange(faces.num_classes), test_people)
    rng = np.random.default_rng([seed, fold])
    dev_people = np.sort(
        rng.choice(others, round(dev_fraction * len(others)), replace=False)
    )
    train_people = np.setdiff1d(others, dev_people)
    if len(train_people) < 2:
        raise ValueError(
            f"{faces.name}: {len(train_people)} people are left to train on, "
            "expected at least 2"
        )
    train = faces.select_people(train_people, f"{faces.name}, training people")
    in_test = np.isin(faces.labels, test_people)
    return train, EvaluationSet(
        name=f"fold{fold}" if fold else "test",
        faces=faces,
        pairs=tested,
        dev_pairs=_dev_pairs(faces, dev_people, rng) if len(dev_people) else None,
        open_set_rows=faces.rows[in_test],
        gallery=np.zeros(0, int),
        probes=np.zeros(0, int),
    )


def _dev_pairs(
    faces: FaceSet, people: np.ndarray, rng: np.random.Generator, most: int = 3000
) -> Pairs | None:
    """Balanced pairs among the held-out people, as rows of the source."""
    rows = np.flatnonzero(np.isin(faces.labels, people))
    labels = faces.labels[rows]
    # One person's many pictures would dominate all their pairs.
    keep = np.zeros(len(rows), bool)
    for person in people:
        own = np.flatnonzero(labels == person)
        keep[rng.permutation(own)[:8]] = True
    rows, labels = rows[keep], labels[keep]
    chosen = random_pairs(labels, folds=1, per_fold=most, rng=rng)
    if not len(chosen):
        return None
    return dataclasses.replace(
        chosen, first=rows[chosen.first], second=rows[chosen.second]
    )
