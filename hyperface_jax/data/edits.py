"""What may be changed about a training set before it is trained on, from a seed.

Every function takes a FaceSet and returns one; records stay where they are, only the
selection or the labels differ.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from hyperface_jax.data.face_set import FaceSet, drop_empty, fingerprint_of
from hyperface_jax.data.name_lists import read_names
from hyperface_jax.data.records import each_id

_KINDS = ("identity", "image")


def read_exclusions(path: epath.PathLike) -> dict[str, set[str]]:
    """Reads lines "identity<TAB>NAME" or "image<TAB>ID"; more columns are remarks.

    Blank lines and those that begin with # are skipped. `prepare` and `audit` write
    such files.

    Returns:
      {"identity": names, "image": ids}.

    Raises:
      ValueError: another first column, with the line.
    """
    found: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for number, row in enumerate(read_names(path), start=1):
        if not "".join(row).strip() or row[0].startswith("#"):
            continue
        if len(row) < 2 or row[0] not in _KINDS:
            raise ValueError(
                f"{path}, line {number}: found {' '.join(row)[:40]!r}, expected "
                "'identity<TAB>NAME' or 'image<TAB>ID'"
            )
        found[row[0]].add(row[1])
    return found


def read_all_exclusions(paths: Iterable[epath.PathLike]) -> dict[str, set[str]]:
    """Several files as one list: what one excludes another may name again."""
    found: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for path in paths:
        for kind, names in read_exclusions(path).items():
            found[kind] |= names
    return found


def exclude(
    faces: FaceSet,
    excluded: Mapping[str, Iterable[str]],
    *,
    known: FaceSet | None = None,
) -> FaceSet:
    """Leaves out identities by name and images by id.

    Args:
      faces: the set.
      excluded: {"identity": names, "image": ids}.
      known: the set that the list was made for, of which `faces` may be a part.

    Raises:
      ValueError: a name or id that `known` does not have: a list for another set.
    """
    names = set(excluded.get("identity", ()))
    ids = set(excluded.get("image", ()))
    if unknown := names - set((known or faces).identities):
        raise ValueError(
            f"{faces.name}: no identity {sorted(unknown)[0]!r} to exclude "
            f"({len(unknown)} of {len(names)} are unknown)"
        )
    gone = np.array([name in names for name in faces.identities], bool)[faces.labels]
    if ids:
        rows = {row: id_ for row, id_ in each_id(faces.source) if id_ in ids}
        if unknown := ids - set(rows.values()):
            raise ValueError(
                f"{faces.name}: no image {sorted(unknown)[0]!r} to exclude "
                f"({len(unknown)} of {len(ids)} are unknown)"
            )
        gone |= np.isin(faces.rows, list(rows))
    if gone.all():
        raise ValueError(f"{faces.name}: nothing is left after the exclusions")
    return drop_empty(_select(faces, ~gone, "exclude"))


def at_most(faces: FaceSet, most: int, *, seed: int) -> FaceSet:
    """Keeps `most` images of each identity, drawn from the seed; 0 keeps all."""
    if not most:
        return faces
    order = np.random.default_rng([seed, 11]).permutation(len(faces))
    by_label = order[np.argsort(faces.labels[order], kind="stable")]
    ordered = faces.labels[by_label]
    rank = np.arange(len(faces)) - np.searchsorted(ordered, ordered)
    keep = np.zeros(len(faces), bool)
    keep[by_label[rank < most]] = True
    return _select(faces, keep, f"at most {most}")


def at_least(faces: FaceSet, least: int) -> FaceSet:
    """Leaves out identities with fewer images than `least`; 0 keeps all.

    A class of one image teaches to tell that image, not the person.
    """
    if least <= 1:
        return faces
    counts = np.bincount(faces.labels, minlength=faces.num_classes)
    if counts.max() < least:
        raise ValueError(
            f"data.min_images is {least}, but nobody in {faces.name} has more than "
            f"{counts.max()} images"
        )
    kept = _select(faces, counts[faces.labels] >= least, f"at least {least}")
    present = np.unique(kept.labels)
    return dataclasses.replace(
        kept,
        labels=np.searchsorted(present, kept.labels).astype(np.int32),
        identities=tuple(faces.identities[k] for k in present),
    )


def add_label_noise(faces: FaceSet, share: float, *, seed: int) -> FaceSet:
    """Draws the label of a share of the images anew, uniformly over all classes.

    The new label may be the old one, as in OpenSphere's noise_ratio.
    """
    if not share:
        return faces
    rng = np.random.default_rng([seed, 12])
    noisy = rng.random(len(faces)) < share
    drawn = rng.integers(0, faces.num_classes, len(faces), np.int32)
    return _relabelled(faces, np.where(noisy, drawn, faces.labels), faces.identities)


def split_identities(faces: FaceSet, share: float, *, seed: int) -> FaceSet:
    """Cuts a share of the identities in two: one person under two labels.

    The noise of automatically clustered sets. Each image of a cut identity goes to
    either half with probability 1/2, but neither half is empty; identities with one
    image are never cut.
    """
    if not share:
        return faces
    rng = np.random.default_rng([seed, 13])
    counts = np.bincount(faces.labels, minlength=faces.num_classes)
    cut = np.flatnonzero((rng.random(faces.num_classes) < share) & (counts > 1))
    second = np.full(faces.num_classes, -1)
    second[cut] = faces.num_classes + np.arange(len(cut))
    moves = (second[faces.labels] >= 0) & (rng.random(len(faces)) < 0.5)
    order = np.argsort(faces.labels, kind="stable")
    starts = np.searchsorted(faces.labels[order], cut)
    moves[order[starts]] = False  # the first image stays
    moves[order[starts + 1]] = True  # and the second moves
    labels = np.where(moves, second[faces.labels], faces.labels)
    names = faces.identities + tuple(f"{faces.identities[k]} (2)" for k in cut)
    return _relabelled(faces, labels, names)


def sampling_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """Weight of each image [N] when an identity of n images is drawn with n^power.

    Power 1 is uniform over images, 0 uniform over identities, .5 the square-root
    frequency of OpenSphere's SimPLE. The weights sum to N.
    """
    counts = np.bincount(labels)[labels].astype(np.float64)
    weights = counts ** (power - 1)
    return weights * (len(labels) / weights.sum())


def _select(faces: FaceSet, keep: np.ndarray, what: str) -> FaceSet:
    return dataclasses.replace(
        faces,
        rows=faces.rows[keep],
        labels=faces.labels[keep],
        fingerprint=fingerprint_of(faces.fingerprint, what, np.flatnonzero(keep)),
    )


def _relabelled(faces: FaceSet, labels: np.ndarray, names: tuple[str, ...]) -> FaceSet:
    changed = dataclasses.replace(
        faces,
        labels=labels.astype(np.int32),
        identities=names,
        fingerprint=fingerprint_of(faces.fingerprint, "labels", labels),
    )
    return drop_empty(changed)
