"""Verification pairs: which images to compare, and in which fold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath


@dataclass(frozen=True)
class Pairs:
    """Pairs of records of one dataset.

    Attributes:
      first: int64 [n], row of the first image.
      second: int64 [n], row of the second image.
      is_genuine: bool [n], the two show one person.
      fold: int64 [n], from 0.
    """

    first: np.ndarray
    second: np.ndarray
    is_genuine: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def take(self, mask: np.ndarray) -> "Pairs":
        """The pairs where `mask` [n] is True."""
        return Pairs(*(getattr(self, name)[mask] for name in self.__dict__))

    def to_json(self) -> dict[str, list[int]]:
        """For a dataset's metadata."""
        return {name: value.astype(int).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[int]]) -> "Pairs":
        """Inverse of `to_json`."""
        arrays = {name: np.asarray(value, np.int64) for name, value in values.items()}
        arrays["is_genuine"] = arrays["is_genuine"].astype(bool)
        found = cls(**arrays)
        if len({value.shape for value in arrays.values()}) > 1 or found.fold.ndim != 1:
            raise ValueError("pairs: columns of different lengths")
        return found


def random_pairs(
    labels: np.ndarray, *, folds: int, per_fold: int, rng: np.random.Generator
) -> Pairs:
    """Balanced pairs in LFW's manner: the people of different folds are disjoint.

    Args:
      labels: [N] identity of each record.
      folds: number of folds.
      per_fold: genuine pairs a fold, and as many impostor pairs; fewer where the
        people of a fold do not have that many.
      rng: draws the people of a fold and the pairs, without repetition.
    """
    people = rng.permutation(np.unique(labels))
    parts = []
    for fold, members in enumerate(np.array_split(people, folds)):
        rows = np.flatnonzero(np.isin(labels, members))
        every = _EveryPair(labels[rows])
        count = min(per_fold, every.genuine, every.impostors)
        for genuine in (True, False):
            there = every.genuine if genuine else every.impostors
            chosen = rng.choice(there, count, replace=False)
            a, b = every.take(chosen, genuine=genuine)
            parts.append((rows[a], rows[b], genuine, fold))
    return Pairs(
        first=np.concatenate([p[0] for p in parts]),
        second=np.concatenate([p[1] for p in parts]),
        is_genuine=np.concatenate([np.full(len(p[0]), p[2]) for p in parts]),
        fold=np.concatenate([np.full(len(p[0]), p[3]) for p in parts]),
    )


class _EveryPair:
    """All pairs a < b of n images by number, genuine and impostor pairs apart.

    In the order of `np.triu_indices`, but without its lists of all of them: 45 GB for
    the 75 000 images that MS1M holds out.

    Args:
      labels: [n].
    """

    def __init__(self, labels: np.ndarray):
        self._labels = labels
        order = np.argsort(labels, kind="stable")
        first = np.append(True, np.diff(labels[order]) != 0)
        group = np.cumsum(first) - 1
        self._order = order
        self._place = np.empty(len(labels), np.int64)
        self._place[order] = np.arange(len(labels))
        end = np.append(np.flatnonzero(first)[1:], len(labels))[group]
        same_later, later = end[self._place] - self._place - 1, np.arange(len(labels))
        self._genuine = np.cumsum(same_later)
        self._impostors = np.cumsum(later[::-1] - same_later)

    @property
    def genuine(self) -> int:
        """Number of pairs of one person."""
        return int(self._genuine[-1]) if len(self._genuine) else 0

    @property
    def impostors(self) -> int:
        """Number of pairs of two people."""
        return int(self._impostors[-1]) if len(self._impostors) else 0

    def take(
        self, numbers: np.ndarray, *, genuine: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """First and second image of the pairs with these numbers of their kind."""
        counts = self._genuine if genuine else self._impostors
        a = np.searchsorted(counts, numbers, side="right")
        k = numbers - np.append(0, counts)[a]
        if genuine:
            return a, self._order[self._place[a] + 1 + k]
        b = a + 1 + k
        for i, (row, place) in enumerate(zip(a, self._place[a], strict=True)):
            # Images of the same person on the way do not count.
            for other in self._order[place + 1 :]:
                if self._labels[other] != self._labels[row] or other > b[i]:
                    break
                b[i] += 1
        return a, b


def read_lfw_pairs(path: epath.PathLike, rows: Mapping[str, int]) -> Pairs:
    """Reads LFW's pairs.txt, any number of folds.

    First line "folds<TAB>per_fold" ("per_fold" alone means one fold); then for each
    fold that many lines "name i j" and that many "name_a i name_b j"; image i of a
    person is "name/name_%04d".

    Args:
      path: the pairs file.
      rows: image id "name/name_0001" -> row.

    Raises:
      ValueError: wrong counts or a missing image, with the line.
    """
    path = epath.Path(path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"pairs file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"pairs file {path}: not UTF-8 ({error})") from None
    folds, per_fold = _header(path, lines[0] if lines else "")
    numbered = enumerate(lines[1:], start=2)
    body = [(number, line) for number, line in numbered if line.strip()]
    if len(body) != 2 * folds * per_fold:
        raise ValueError(
            f"pairs file {path}: {len(body)} pairs found, expected "
            f"2 x {folds} folds x {per_fold} = {2 * folds * per_fold}"
        )
    columns = [_parse_pair(path, number, line, rows) for number, line in body]
    first, second, genuine = map(np.asarray, zip(*columns, strict=True))
    position = np.arange(len(body))
    expected = position % (2 * per_fold) < per_fold
    if (wrong := np.flatnonzero(genuine != expected)).size:
        kind = "genuine (3 fields)" if expected[wrong[0]] else "impostor (4 fields)"
        number = body[wrong[0]][0]
        raise ValueError(f"pairs file {path}, line {number}: expected {kind}")
    return Pairs(first, second, genuine, position // (2 * per_fold))


def _header(path: epath.Path, line: str) -> tuple[int, int]:
    fields = line.split()
    if not 1 <= len(fields) <= 2 or not all(_is_count(f) for f in fields):
        raise ValueError(
            f"pairs file {path}, line 1: found {line[:40]!r}, expected 'folds per_fold'"
        )
    return (1, int(fields[0])) if len(fields) == 1 else (int(fields[0]), int(fields[1]))


def _is_count(text: str) -> bool:
    """A number from 1 of so few digits that no file could hold more pairs."""
    return text.isdecimal() and len(text) < 10 and int(text) > 0


def _parse_pair(
    path: epath.Path, number: int, line: str, rows: Mapping[str, int]
) -> tuple[int, int, bool]:
    fields = line.split("\t") if "\t" in line else line.split()
    where = f"pairs file {path}, line {number}"
    if len(fields) == 3:
        names, numbers = (fields[0], fields[0]), fields[1:]
    elif len(fields) == 4:
        names, numbers = (fields[0], fields[2]), (fields[1], fields[3])
    else:
        raise ValueError(f"{where}: {len(fields)} fields found, expected 3 or 4")
    found = []
    for name, text in zip(names, numbers, strict=True):
        if not _is_count(text.strip()):
            raise ValueError(
                f"{where}: image number is {text[:40]!r}, expected a number from 1"
            )
        image = f"{name}/{name}_{int(text):04d}"
        if image not in rows:
            raise ValueError(f"{where}: no image {image} in the dataset")
        found.append(rows[image])
    if len(fields) == 4 and names[0] == names[1]:
        raise ValueError(f"{where}: {names[0]} twice, expected two people in 4 fields")
    if found[0] == found[1]:
        raise ValueError(f"{where}: compares an image with itself")
    return found[0], found[1], len(fields) == 3
