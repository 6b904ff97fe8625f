"""Error rates by group of people, at one threshold for all.

A threshold is chosen on all pairs, as an operator would who knows no groups; then false
matches (FMR) and false non-matches (FNMR) are counted by group, as in NIST IR 8280.
Impostor pairs within a group, which look alike more often, stand apart from those
across groups. Intervals are Wilson's, for independent pairs: pairs of one person are
not, so read them as the least uncertainty there is.

Letters: n pairs.
"""

import csv
import io
import math
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from etils import epath

from hyperface_jax.evaluation.roc import Labels, Scores, checked, operating_points

Ids: TypeAlias = Sequence[Hashable] | np.ndarray
"""Identity or image of each pair [n]; keys of the groups."""


class GroupRate(NamedTuple):
    """A row of the table: the error rate of one kind of pair of two groups.

    Attributes:
      kind: "fnmr" counts genuine pairs, "fmr" impostor pairs.
      group: group of one image.
      other: group of the other image; the same within a group. For groups of images,
        such as age, genuine pairs may cross, too.
      pairs: number of pairs.
      errors: rejected genuine pairs, or accepted impostor pairs.
      rate: errors / pairs.
      low: lower end of Wilson's 95 % interval.
      high: upper end.
    """

    kind: Literal["fnmr", "fmr"]
    group: str
    other: str
    pairs: int
    errors: int
    rate: float
    low: float
    high: float


class GroupTable(NamedTuple):
    """Result of `rates_by_group`.

    Attributes:
      threshold: a pair with score >= threshold is accepted.
      fmr: false match rate of all impostor pairs at it, at most the one asked for.
      fnmr: false non-match rate of all genuine pairs at it.
      rows: FNMR, then FMR within groups, then FMR across; each sorted by name.
    """

    threshold: float
    fmr: float
    fnmr: float
    rows: tuple[GroupRate, ...]


def rates_by_group(
    scores: Scores,
    is_genuine: Labels,
    first_id: Ids,
    second_id: Ids,
    groups: Mapping,
    *,
    fmr: float = 1e-3,
) -> GroupTable:
    """FNMR and FMR of each group and pair of groups at one global threshold.

    The threshold is the lowest score whose FMR on all impostor pairs is <= `fmr`: that
    of `roc.tar_at_far`. Groups without a pair of a kind have no row of it.

    Args:
      scores: similarities [n].
      is_genuine: [n].
      first_id: identity or image of the first of each pair [n]; a key of groups.
      second_id: of the second.
      groups: id -> group.
      fmr: the global rate to choose the threshold at, from 1/impostors.

    Raises:
      ValueError: an id without a group, or what `roc.tar_at_far` refuses.
    """
    scores, is_genuine = checked(scores, is_genuine)
    points = operating_points(scores, is_genuine)
    chosen = points.index_at_far(fmr)
    threshold = float(points.thresholds[chosen])
    names, codes = _group_codes((first_id, second_id), groups)
    if codes.shape[1] != len(scores):
        raise ValueError(
            f"found ids of {codes.shape[1]} pairs for {len(scores)} scores"
        )
    low, high = codes.min(axis=0), codes.max(axis=0)
    combination = low * len(names) + high
    accepted = scores >= threshold
    size = len(names) ** 2

    def count(kind: Literal["fnmr", "fmr"], of_kind, wrong) -> list[GroupRate]:
        pairs = np.bincount(combination[of_kind], minlength=size)
        errors = np.bincount(combination[of_kind & wrong], minlength=size)
        rows = []
        for cell in np.flatnonzero(pairs):
            group, other = names[cell // len(names)], names[cell % len(names)]
            n, k = int(pairs[cell]), int(errors[cell])
            rows.append(GroupRate(kind, group, other, n, k, k / n, *wilson(k, n)))
        return rows

    rows = count("fnmr", is_genuine, ~accepted) + count("fmr", ~is_genuine, accepted)
    rows.sort(key=lambda r: (r.kind == "fmr", r.group != r.other, r.group, r.other))
    det = points.det()
    return GroupTable(
        threshold, float(det.fmr[chosen]), float(det.fnmr[chosen]), tuple(rows)
    )


def wilson(errors: int, pairs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (JASA 1927); sensible at 0 errors, too."""
    if not 0 <= errors <= pairs or not pairs or not 0 < confidence < 1:
        raise ValueError(
            f"errors is {errors} of {pairs} and confidence {confidence}, expected 0 to "
            "pairs, at least 1 pair, and (0, 1)"
        )
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (errors + z2 / 2) / (pairs + z2)
    spread = errors * (pairs - errors) / pairs + z2 / 4
    half = math.sqrt(z2 * spread) / (pairs + z2)
    # At 0 and all errors the interval ends there, but for rounding.
    low = 0.0 if errors == 0 else middle - half
    high = 1.0 if errors == pairs else middle + half
    return low, high


def read_groups(file: str | os.PathLike) -> dict[str, str]:
    """Reads `id,group` or `id<tab>group`, one a line, UTF-8.

    The first line decides between tab and comma; a first line that names its columns
    `id` and `group` is a header. Fields may be quoted as in CSV. Blank lines and
    spaces around fields do not count.

    Raises:
      ValueError: with file and line: not two columns, an empty field, an id twice with
        different groups, not UTF-8; or no groups at all.
    """
    path = epath.Path(file)
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8") from error
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    groups: dict[str, str] = {}
    try:
        for row in reader:
            _add_row(groups, [field.strip() for field in row], path, reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not groups:
        raise ValueError(f"{path}: 0 ids, expected lines of id,group")
    return groups


def _add_row(groups: dict[str, str], row: list[str], path, line: int) -> None:
    if not any(row) and len(row) < 2:
        return
    if len(row) != 2:
        raise ValueError(f"{path}, line {line}: {len(row)} columns, expected id,group")
    name, group = row
    if not groups and [name.lower(), group.lower()] == ["id", "group"]:
        return
    if not name or not group:
        raise ValueError(f"{path}, line {line}: the id or the group is empty")
    if groups.setdefault(name, group) != group:
        raise ValueError(
            f"{path}, line {line}: {name!r} is in {group!r} and in {groups[name]!r}"
        )


def _group_codes(ids: Iterable[Ids], groups: Mapping) -> tuple[list[str], np.ndarray]:
    """Sorted names of the groups, and their indices for ids of both sides [2, n]."""
    names = sorted({str(group) for group in groups.values()})
    number = {name: i for i, name in enumerate(names)}
    columns = []
    for column in ids:
        # A NumPy vector gives Python's numbers and strings, as keys are.
        keys = column.tolist() if isinstance(column, np.ndarray) else list(column)
        missing = [key for key in keys if key not in groups]
        if missing:
            raise ValueError(
                f"{len(set(missing))} ids of the pairs have no group, such as "
                f"{missing[0]!r}"
            )
        columns.append(np.array([number[str(groups[key])] for key in keys], np.int64))
    if len(columns[0]) != len(columns[1]):
        raise ValueError(
            f"first_id has {len(columns[0])} entries and second_id {len(columns[1])}"
        )
    return names, np.stack(columns)
