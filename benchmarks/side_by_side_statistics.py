"""Differences of accuracy between losses of `side_by_side.py`, with intervals."""

import dataclasses
from pathlib import Path

import numpy as np

from hyperface_jax.evaluation.intervals import student_t_quantile


@dataclasses.dataclass(frozen=True)
class FoldPairs:
    """Who is compared in a fold: names of people [n], and whether they are one."""

    first: np.ndarray
    second: np.ndarray
    is_genuine: np.ndarray


def pairs_of_folds(path: Path) -> list[FoldPairs]:
    """Of LFW's pairs.txt."""
    header, *lines = path.read_text().splitlines()
    fields = [line.split() for line in lines]
    first = np.asarray([f[0] for f in fields])
    second = np.asarray([f[0] if len(f) == 3 else f[2] for f in fields])
    each = np.split(np.stack([first, second]), int(header.split()[0]), axis=1)
    return [FoldPairs(a, b, a == b) for a, b in each]


def accuracy_differences(
    ours: list[dict], theirs: list[dict], pairs: list[FoldPairs], draws: int
) -> tuple[float, float, float]:
    """Mean over folds of ours minus theirs, and its 95 % interval over people.

    Args:
      ours: what the runs left (`facts_of`), one a fold.
      theirs: the same of the other loss.
      pairs: of these folds.
      draws: of the bootstrap.
    """
    rng = np.random.default_rng(0)
    values = np.zeros(draws + 1)
    for a, b, compared in zip(ours, theirs, pairs, strict=True):
        people, ends = np.unique([compared.first, compared.second], return_inverse=True)
        gain = np.zeros(len(compared.first))
        for one in (a, b):  # of these very pairs
            share = 1 - len(one["wrong"]) / len(gain)
            np.testing.assert_allclose(one["measures"]["accuracy"], share)
        gain[a["wrong"]] -= 1
        gain[b["wrong"]] += 1
        times = rng.multinomial(
            len(people), np.full(len(people), 1 / len(people)), draws
        )
        times = np.vstack([np.ones(len(people), int), times])
        of_second = np.where(compared.is_genuine, 1, times[:, ends[1]])
        weight = times[:, ends[0]] * of_second
        values += (weight @ gain) / weight.sum(axis=1) / len(ours)
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)


def over_folds(each: np.ndarray) -> str:
    """Mean difference of the folds, and Student's t interval, corrected."""
    # A fold of LFW is a tenth of its people: a ninth of what is trained on.
    error = each.std(ddof=1) * (1 / len(each) + 1 / 9) ** 0.5
    half = student_t_quantile(0.975, len(each) - 1) * error
    return interval_cell(each.mean(), each.mean() - half, each.mean() + half)


def interval_cell(value: float, low: float, high: float) -> str:
    """In points, with what it says."""
    verdict = "higher" if low > 0 else "lower" if high < 0 else "level"
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {verdict}"


def with_error(values: list[float]) -> str:
    """Mean over folds and its standard error, where there are several."""
    mean = f"{np.mean(values):.4f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


def difference_cells(
    ours: list[dict],
    theirs: list[dict],
    folds: list[int],
    told: list[int],
    pairs: list[FoldPairs],
    draws: int,
) -> list[str]:
    """Accuracy of ours minus theirs: over all folds, and by people of those told."""
    if ours is theirs:
        return [""] * (1 + bool(told))
    accuracies = np.array(
        [[r["measures"]["accuracy"] for r in x] for x in (ours, theirs)]
    )
    each = accuracies[0] - accuracies[1]
    cells = [over_folds(each) if len(each) > 1 else ""]
    if told:
        known = [[x[folds.index(k)] for k in told] for x in (ours, theirs)]
        compared = [pairs[k - 1] for k in told]
        cells.append(interval_cell(*accuracy_differences(*known, compared, draws)))
    return cells
