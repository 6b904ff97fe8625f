"""Confidence intervals: against scipy, plain repetition of pairs, and coverage."""

import numpy as np
import pytest
from scipy import stats

from hyperface_jax.evaluation import intervals, roc
from hyperface_jax.evaluation.intervals import Interval


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 10, 101])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.9999])
def test_student_t(freedom, p):
    expected = stats.t.ppf(p, freedom)
    assert intervals.student_t_quantile(p, freedom) == pytest.approx(
        expected, abs=1e-9, rel=1e-9
    )


@pytest.mark.core
def test_folds(rng):
    folds = rng.uniform(0.9, 1, 10)
    found = intervals.fold_interval(folds, confidence=0.9)
    low, high = stats.t.interval(0.9, 9, folds.mean(), stats.sem(folds))
    np.testing.assert_allclose(found, (folds.mean(), low, high))
    same = intervals.fold_interval(np.full(3, 0.5))
    assert same == Interval(0.5, 0.5, 0.5)


def all_pairs(rng, subjects=12, images=4, noise=0.7):
    """Cosines of all pairs of a few images of a few subjects, rounded so as to tie."""
    subject = np.repeat(np.arange(subjects) * 10, images)
    x = rng.normal(size=(subjects, 6))[subject // 10]
    x = x + noise * rng.normal(size=(len(subject), 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), k=1)
    order = rng.permutation(len(i))
    i, j = i[order], j[order]
    scores = np.round((x[i] * x[j]).sum(axis=1), 2)
    return scores, subject[i] == subject[j], subject[i], subject[j]


def recorded(monkeypatch):
    """Names and rates of the draws, before percentiles are taken."""
    seen = []
    monkeypatch.setattr(
        intervals,
        "_percentiles",
        lambda names, found, _: seen.append((names, found)) or {},
    )
    return seen


FARS = (0.01, 0.1)
NAMES = ["eer", "tar@far=1e-2", "tar@far=1e-1"]


def metrics(scores, is_genuine):
    points = roc.operating_points(scores, is_genuine)
    return [points.equal_error_rate(), *(points.tar_at_far(far) for far in FARS)]


@pytest.mark.core
def test_draws_are_repetitions_of_pairs(rng, monkeypatch):
    scores, is_genuine, first, second = all_pairs(rng)
    times = np.stack([rng.multinomial(12, np.full(12, 1 / 12)) for _ in range(5)])
    ones = np.ones((1, 12), np.int64)
    monkeypatch.setattr(intervals, "_multiplicities", lambda *_: iter([ones, times]))
    seen = recorded(monkeypatch)
    intervals.bootstrap_verification(scores, is_genuine, first, second, (1e-9, *FARS))
    [(names, found)] = seen
    assert names == NAMES
    np.testing.assert_allclose(found[0], metrics(scores, is_genuine))
    for row, m in zip(found[1:], times, strict=True):
        a, b = m[first // 10], m[second // 10]
        repeated = np.repeat(np.arange(len(scores)), np.where(is_genuine, a, a * b))
        expected = metrics(scores[repeated], is_genuine[repeated])
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_the_seed_decides(rng, monkeypatch):
    data = all_pairs(rng)
    one = intervals.bootstrap_verification(*data, FARS, draws=200, seed=3)
    assert list(one) == NAMES
    for interval in one.values():
        assert interval.low <= interval.value <= interval.high
    monkeypatch.setattr(intervals, "_AT_ONCE", 1)  # one draw at a time
    assert one == intervals.bootstrap_verification(*data, FARS, draws=200, seed=3)
    other = intervals.bootstrap_verification(*data, FARS, draws=200, seed=4)
    assert other["eer"] != one["eer"]
    narrow = intervals.bootstrap_verification(*data, FARS, draws=200, confidence=0.5)
    assert narrow["eer"].high - narrow["eer"].low < one["eer"].high - one["eer"].low


def test_perfect_scores_have_no_spread(rng):
    _, is_genuine, first, second = all_pairs(rng)
    found = intervals.bootstrap_verification(
        is_genuine.astype(float), is_genuine, first, second, draws=50
    )
    assert found["eer"] == Interval(0, 0, 0)
    assert found["tar@far=1e-1"] == Interval(1, 1, 1)


def test_subjects_matter_not_images(rng):
    # Subjects are all right or all wrong: the spread is that of 30 coins, not of 3000.
    subject = np.repeat(np.arange(30), 100)
    ranks = np.where(subject % 3 == 0, 9, 1)
    found = intervals.bootstrap_rank_k(ranks, subject, (1, 9), draws=2000)
    assert found["rank1"].value == pytest.approx(2 / 3)
    half = (found["rank1"].high - found["rank1"].low) / 2
    assert half == pytest.approx(1.96 * np.sqrt(2 / 9 / 30), rel=0.1)
    assert found["rank9"] == Interval(1, 1, 1)


def test_rank_k_of_subjects_with_unequal_counts(monkeypatch):
    times = np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]])
    monkeypatch.setattr(intervals, "_multiplicities", lambda *_: iter([times]))
    seen = recorded(monkeypatch)
    ranks, subject = np.array([1, 2, 1, 1, 5]), np.array([7, 7, 7, 8, 9])
    intervals.bootstrap_rank_k(ranks, subject, (1, 2))
    [(_, found)] = seen
    np.testing.assert_allclose(found, [[3 / 5, 4 / 5], [2 / 3, 1], [1 / 3, 1 / 3]])


def test_intervals_cover_about_as_often_as_they_say(rng):
    # The EER of very many subjects of the same kind stands in for the truth.
    truth = metrics(*all_pairs(rng, subjects=150)[:2])[0]
    covered = 0
    for _ in range(60):
        data = all_pairs(rng, subjects=25, images=3)
        low, high = intervals.bootstrap_verification(*data, draws=100)["eer"][1:]
        covered += low <= truth <= high
    assert covered >= 48  # 80 %: few subjects and few draws cost some of the 95 %


def test_wrong_input_is_one_line(rng):
    scores, is_genuine, first, second = all_pairs(rng)
    with pytest.raises(ValueError, match="pair 0 has subjects"):
        intervals.bootstrap_verification(scores, ~is_genuine, first, second)
    with pytest.raises(ValueError, match="draws is 0"):
        intervals.bootstrap_verification(scores, is_genuine, first, second, draws=0)
    with pytest.raises(ValueError, match="confidence is 1"):
        intervals.fold_interval(scores, confidence=1.0)
    with pytest.raises(ValueError, match="at least 2 finite"):
        intervals.fold_interval(scores[:1])
    with pytest.raises(ValueError, match="0 ranks"):
        intervals.bootstrap_rank_k(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"p is 0\.3"):
        intervals.student_t_quantile(0.3, 5)


def test_draws_without_a_class_are_left_out(monkeypatch):
    # Two subjects; a draw of one of them twice has no impostor pair.
    scores, is_genuine = np.array([0.9, 0.8, 0.1]), np.array([True, True, False])
    first, second = np.array([0, 1, 0]), np.array([0, 1, 1])
    found = intervals.bootstrap_verification(
        scores, is_genuine, first, second, draws=50
    )
    assert found["eer"] == Interval(0, 0, 0)
    times = np.array([[1, 1], [2, 0]])
    monkeypatch.setattr(intervals, "_multiplicities", lambda *_: iter([times]))
    with pytest.raises(ValueError, match="none of 1 draws holds"):
        intervals.bootstrap_verification(scores, is_genuine, first, second)
