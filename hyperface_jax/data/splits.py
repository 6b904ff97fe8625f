"""Who is trained on and who is tested on: never the same people."""

import dataclasses

import numpy as np

from hyperface_jax.data import datasets, edits, sources
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pairs import Pairs, random_pairs


def train_and_test(
    name: str,
    *,
    config: str = "",
    path: str = "",
    pairs_path: str = "",
    data_dir: str = "",
    copy_to: str = "",
    exclude: str = "",
    fold: int = 0,
    dev_fraction: float = 0.1,
    min_images: int = 0,
    max_images: int = 0,
    split_identities: float = 0.0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> tuple[FaceSet, tuple[EvaluationSet, ...]]:
    """The people to train on, and the sets to test on.

    Tested on are the split "test" of the dataset, or else the people of its pairs (see
    `by_people_of_pairs`), and every .bin file beside InsightFace records.

    Args:
      name: see `datasets.open_dataset`; the next five, too.
      config: its configuration.
      path: of its source.
      pairs_path: of its pairs.
      data_dir: of prepared datasets.
      copy_to: local folder to copy the source to before it is read; "": not.
      exclude: files of people and images not to train on, with commas between.
      fold: see `by_people_of_pairs`.
      dev_fraction: see there.
      min_images: people with fewer images are not trained on.
      max_images: at most so many images of a person; 0 for all.
      split_identities: share of the people whose images get two labels.
      label_noise: share of the images whose label is drawn anew.
      seed: of everything drawn.
    """
    if fold and path and not pairs_path:
        raise ValueError(
            f"data.fold is {fold}, expected data.pairs_path to name a pairs file"
        )
    found = datasets.open_dataset(
        name,
        config=config,
        path=path,
        pairs_path=pairs_path,
        data_dir=data_dir,
        copy_to=copy_to,
    )
    whole = train = found["train"]
    tests = []
    if "test" in found:
        tests.append(test_set(found["test"]))
    else:
        train, test = by_people_of_pairs(
            train, fold=fold, dev_fraction=dev_fraction, seed=seed
        )
        tests += [] if test is None else [test]
    tests += sources.validation_sets(path)
    # From training only: what a protocol tests is not ours to choose.
    if exclude:
        listed = edits.read_all_exclusions(sources.split_paths(exclude))
        train = edits.exclude(train, listed, known=whole)
    train = edits.at_least(train, min_images)
    train = edits.at_most(train, max_images, seed=seed)
    train = edits.split_identities(train, split_identities, seed=seed)
    return edits.add_label_noise(train, label_noise, seed=seed), tuple(tests)


def test_set(faces: FaceSet) -> EvaluationSet:
    """A split of people to test on, with everything that it offers."""
    return EvaluationSet(
        name="test",
        faces=faces,
        pairs=faces.pairs,
        open_set_rows=faces.rows,
        gallery=faces.gallery,
        probes=faces.probes,
    )


def by_people_of_pairs(
    faces: FaceSet, *, fold: int = 0, dev_fraction: float = 0.1, seed: int = 0
) -> tuple[FaceSet, EvaluationSet | None]:
    """Trains on the people who are in no tested pair.

    With `fold` = K (from 1) the people of fold K's pairs are tested on, a share
    `dev_fraction` of the others chooses the threshold, and the rest is trained on;
    with `fold` = 0 the people of all pairs are tested on. Without pairs all people
    are trained on.

    Args:
      faces: all people.
      fold: fold of the pairs file to test on, from 1; 0 for all.
      dev_fraction: share of the training people held out for the threshold.
      seed: chooses those people and their impostor pairs.
    """
    if faces.pairs is None:
        if fold:
            raise ValueError(
                f"data.fold is {fold}, expected data.pairs_path to name a pairs file"
            )
        return faces, None
    return _split(faces, faces.pairs, fold, dev_fraction, seed)


def _split(
    faces: FaceSet, pairs: Pairs, fold: int, dev_fraction: float, seed: int
) -> tuple[FaceSet, EvaluationSet]:
    folds = int(pairs.fold.max()) + 1
    if not 0 <= fold <= folds:
        raise ValueError(f"data.fold is {fold}, expected 1 to {folds} or 0 for all")
    tested = pairs.take(pairs.fold == fold - 1) if fold else pairs
    rows = np.union1d(tested.first, tested.second)
    test_people = np.setdiff1d(faces.label_of_row()[rows], [-1])  # -1: left out
    others = np.setdiff1d(np.arange(faces.num_classes), test_people)
    rng = np.random.default_rng([seed, fold])
    dev_people = np.sort(
        rng.choice(others, round(dev_fraction * len(others)), replace=False)
    )
    train_people = np.setdiff1d(others, dev_people)
    if len(train_people) < 2:
        raise ValueError(
            f"{faces.name}: {len(train_people)} of {faces.num_classes} people are left "
            f"to train on, expected at least 2: {len(test_people)} are in tested pairs "
            f"(data.fold chooses a fold), {len(dev_people)} are held out for the "
            "threshold (data.dev_fraction)"
        )
    train = faces.select_people(train_people, f"{faces.name}, training people")
    in_test = np.isin(faces.labels, test_people)
    return train, EvaluationSet(
        name=f"fold{fold}" if fold else "test",
        faces=faces,
        pairs=tested,
        dev_pairs=_dev_pairs(faces, dev_people, rng) if len(dev_people) else None,
        open_set_rows=faces.rows[in_test],
    )


def _dev_pairs(
    faces: FaceSet, people: np.ndarray, rng: np.random.Generator, most: int = 3000
) -> Pairs | None:
    """Balanced pairs among the held-out people, as rows of the source."""
    mine = np.isin(faces.labels, people)
    rows, labels = faces.rows[mine], faces.labels[mine]
    # One person's many pictures would dominate all their pairs.
    keep = np.zeros(len(rows), bool)
    order = np.argsort(labels, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        keep[rng.permutation(own)[:8]] = True
    rows, labels = rows[keep], labels[keep]
    chosen = random_pairs(labels, folds=1, per_fold=most, rng=rng)
    if not len(chosen):
        return None
    return dataclasses.replace(
        chosen, first=rows[chosen.first], second=rows[chosen.second]
    )
