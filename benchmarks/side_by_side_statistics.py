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


def over_folds(differences: dict[str, np.ndarray]) -> dict[str, str]:
    """Of each loss: mean difference of the folds, Student's t interval, what it says.

    The intervals are corrected for training sets that overlap; they are of one loss
    each. The words are Holm's, for all losses together: of 13 that do not differ one
    seldom (5 %) is called higher or lower.

    Args:
      differences: {loss: [folds]}.
    """
    if any(len(each) < 2 for each in differences.values()):
        return dict.fromkeys(differences, "")
    moments = {}
    for name, each in differences.items():
        # A fold of LFW is a tenth of its people: a ninth of what is trained on.
        error = each.std(ddof=1) * (1 / len(each) + 1 / 9) ** 0.5
        moments[name] = each.mean(), error, len(each) - 1
    told = _holm({name: (m / e, df) for name, (m, e, df) in moments.items()})
    cells = {}
    for name, (mean, error, df) in moments.items():
        half = student_t_quantile(0.975, df) * error
        word = "level" if name not in told else "higher" if mean > 0 else "lower"
        cells[name] = f"{_in_points(mean, mean - half, mean + half)} {word}"
    return cells


def _holm(statistics: dict[str, tuple[float, int]], level: float = 0.05) -> set[str]:
    """Losses whose t differs from 0 (Holm, Scand. J. Statistics 1979)."""
    order = sorted(statistics, key=lambda name: -abs(statistics[name][0]))
    told = set()
    for k, name in enumerate(order):
        t, df = statistics[name]
        if abs(t) <= student_t_quantile(1 - level / 2 / (len(order) - k), df):
            break
        told.add(name)
    return told


def _in_points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def with_error(values: list[float]) -> str:
    """Mean over folds and its standard error, where there are several."""
    mean = f"{np.mean(values):.4f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


def over_people(
    ours: list[dict],
    theirs: list[dict],
    folds: list[int],
    told: list[int],
    pairs: list[FoldPairs],
    draws: int,
) -> str:
    """Accuracy of ours minus theirs, by people, of folds that say who was wrong."""
    if not told or ours is theirs:
        return ""
    known = [[x[folds.index(k)] for k in told] for x in (ours, theirs)]
    compared = [pairs[k - 1] for k in told]
    return _in_points(*accuracy_differences(*known, compared, draws))
