"""Verification metrics: the peers' printed numbers, hand-made scores, ties."""

import numpy as np
import pytest

from hyperface_jax.evaluation import roc as r
from hyperface_jax.evaluation import similarity
from hyperface_jax.evaluation import verification as v

GENUINE = np.array([0.9, 0.8, 0.7, 0.3])
IMPOSTOR = np.array([0.6, 0.5, 0.2, 0.1, 0.0])


def pairs(genuine, impostor, seed=0):
    """Scores and labels in a shuffled order, because no metric may depend on it."""
    scores = np.concatenate([genuine, impostor]).astype(np.float64)
    is_genuine = np.arange(len(scores)) < len(genuine)
    order = np.random.default_rng(seed).permutation(len(scores))
    return scores[order], is_genuine[order]


@pytest.fixture
def oracle(shared):
    data = dict(np.load(shared("oracles/verification.npz")))
    n = len(data["is_same"])
    scores = similarity.pair_scores(
        data["embeddings"], np.arange(n) * 2, np.arange(n) * 2 + 1
    )
    return data, scores, data["is_same"]


@pytest.mark.core
def test_insightface_folds(oracle):
    data, scores, is_genuine = oracle
    result = v.kfold_accuracy(scores, is_genuine, np.arange(len(scores)) // 120)
    np.testing.assert_array_equal(result.per_fold, data["kfold_accuracy"])
    np.testing.assert_allclose(result.mean, data["kfold_accuracy"].mean())
    np.testing.assert_allclose(result.std, data["kfold_accuracy"].std())


@pytest.mark.core
def test_opensphere_metrics(oracle):
    data, scores, is_genuine = oracle
    for function, key in (
        (v.best_accuracy, "best_accuracy"),
        (r.equal_error_rate, "eer"),
        (r.auc, "auc"),
    ):
        value = 100 * function(scores, is_genuine)
        np.testing.assert_allclose(value, data[key], rtol=1e-12, err_msg=key)
    tar = [
        100 * r.interpolated_tar_at_far(scores, is_genuine, far)
        for far in data["fpr_points"]
    ]
    np.testing.assert_allclose(tar, data["tpr_at_fpr"], rtol=1e-12)


def test_the_mean_over_folds_is_not_the_best_accuracy(oracle):
    _, scores, is_genuine = oracle
    folds = v.kfold_accuracy(scores, is_genuine, np.arange(len(scores)) // 120)
    assert folds.mean < v.best_accuracy(scores, is_genuine)


def test_kfold_against_a_plain_loop(rng):
    scores = np.round(rng.uniform(-1, 1, 210), 3)  # many distances sit on a threshold
    is_genuine = scores + rng.normal(0, 0.5, 210) > 0
    fold = rng.integers(0, 3, 210) * 7 + 2
    result = v.kfold_accuracy(scores, is_genuine, fold)
    for place, name in enumerate(np.unique(fold)):
        test, best, chosen = fold == name, -1, None
        for tau in np.arange(0, 4, 0.01):
            right = (2 - 2 * scores < tau) == is_genuine
            if right[~test].mean() > best:
                best, chosen, accuracy = right[~test].mean(), tau, right[test].mean()
        assert result.per_fold[place] == accuracy
        assert result.thresholds[place] == pytest.approx(1 - chosen / 2)
    error = np.std(result.per_fold, ddof=1) / np.sqrt(3)
    assert result.standard_error == pytest.approx(error)


@pytest.mark.core
def test_hand_made_scores():
    scores, is_genuine = pairs(GENUINE, IMPOSTOR)
    # 18 of the 20 genuine-impostor comparisons are in the right order.
    assert r.auc(scores, is_genuine) == pytest.approx(18 / 20)
    # Accepting the upper three: one genuine pair lost, no impostor let in.
    assert v.best_accuracy(scores, is_genuine) == pytest.approx(8 / 9)
    assert v.accuracy_at_threshold(scores, is_genuine, 0.65) == pytest.approx(8 / 9)
    # From (.2, .75) to (.4, .75) the line crosses 1 - TAR = .25.
    assert r.equal_error_rate(scores, is_genuine) == pytest.approx(0.25)
    assert r.tar_at_far(scores, is_genuine, 0.2) == 0.75
    assert r.tar_at_far(scores, is_genuine, 0.399) == 0.75
    assert r.tar_at_far(scores, is_genuine, 0.4) == 1
    assert r.interpolated_tar_at_far(scores, is_genuine, 0.001) == 0.75


def test_roc_of_hand_made_scores():
    far, tar, thresholds = r.roc(*pairs([0.9, 0.5], [0.5, 0.1]))
    np.testing.assert_array_equal(thresholds, [np.inf, 0.9, 0.5, 0.1])
    np.testing.assert_array_equal(far, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(tar, [0, 0.5, 1, 1])


@pytest.mark.core
def test_ties_move_as_a_group():
    # One threshold accepts both groups of .5 or neither.
    scores, is_genuine = pairs([0.9, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.0])
    assert r.tar_at_far(scores, is_genuine, 0.25) == 0.25
    assert r.tar_at_far(scores, is_genuine, 0.5) == 1
    assert r.interpolated_tar_at_far(scores, is_genuine, 0.25) == 0.625
    assert r.auc(scores, is_genuine) == pytest.approx((4 + 3 * (0.5 + 0.5 + 2)) / 16)


def test_a_collapsed_network_earns_nothing():
    scores, is_genuine = pairs(np.ones(10), np.ones(10))
    assert r.auc(scores, is_genuine) == 0.5
    assert r.equal_error_rate(scores, is_genuine) == 0.5
    assert v.best_accuracy(scores, is_genuine) == 0.5
    assert r.tar_at_far(scores, is_genuine, 0.9) == 0


def test_perfect_and_reversed_scores():
    scores, is_genuine = pairs([0.8, 0.9], [0.1, 0.2])
    for function, right, wrong in (
        (r.auc, 1, 0),
        (r.equal_error_rate, 0, 1),
        (v.best_accuracy, 1, 0.5),
    ):
        assert function(scores, is_genuine) == right
        assert function(scores, ~is_genuine) == wrong


def test_any_increasing_map_leaves_roc_metrics(rng):
    scores, is_genuine = pairs(rng.normal(1, 1, 300), rng.normal(0, 1, 500))
    for function in (r.auc, r.equal_error_rate, v.best_accuracy):
        assert function(scores, is_genuine) == function(np.exp(scores), is_genuine)


def test_auc_counts_ordered_comparisons(rng):
    scores, is_genuine = pairs(rng.integers(1, 9, 60), rng.integers(0, 8, 80))
    genuine, impostor = scores[is_genuine][:, None], scores[~is_genuine][None, :]
    expected = np.mean((genuine > impostor) + (genuine == impostor) / 2)
    assert r.auc(scores, is_genuine) == pytest.approx(expected)


def test_the_chosen_threshold_separates_what_can_be_separated():
    for genuine, impostor in (([0.9, 0.7], [0.1, 0.0]), ([0.5], [0.4]), ([1], [-1])):
        scores, is_genuine = pairs(genuine, impostor)
        threshold = v.choose_threshold(scores, is_genuine)
        assert max(impostor) < threshold <= min(genuine)
    same, is_genuine = pairs([0.3, 0.3], [0.3])
    assert np.isfinite(v.choose_threshold(same, is_genuine))


def test_the_chosen_threshold_scatters_less_than_the_plain_best(rng):
    """Of two normal distributions the densities meet at .2066 (a quadratic)."""
    is_genuine = np.arange(1200) % 2 == 0
    chosen, plain = [], []
    for _ in range(60):
        scores = np.where(
            is_genuine, rng.normal(0.43, 0.22, 1200), rng.normal(0.0, 0.16, 1200)
        )
        chosen.append(v.choose_threshold(scores, is_genuine))
        points = r.operating_points(scores, is_genuine)
        plain.append(points.thresholds[np.argmax(points.genuine - points.impostor)])
    a, b = 1 / 0.16**2 - 1 / 0.22**2, 2 * 0.43 / 0.22**2
    c = -(0.43**2) / 0.22**2 + 2 * np.log(0.16 / 0.22)
    meet = (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert np.mean(chosen) == pytest.approx(meet, abs=0.012)
    assert np.std(chosen) < 0.6 * np.std(plain)


def test_rates_below_one_impostor_are_refused():
    scores, is_genuine = pairs(GENUINE, IMPOSTOR)
    with pytest.raises(ValueError, match="5 impostor pairs"):
        r.tar_at_far(scores, is_genuine, 0.1)
    with pytest.raises(ValueError, match="expected 1/impostors to 1"):
        r.tar_at_far(scores, is_genuine, 1.5)
    metrics = v.verify(scores, is_genuine, np.arange(9) % 2, fars=(1e-3, 0.2, 0.25))
    assert "tar@far=1e-3" not in metrics
    assert metrics["tar@far=2e-1"] == metrics["tar@far=2.5e-1"] == 0.75


def test_rates_on_the_grid_of_the_impostors_are_exact():
    scores, is_genuine = pairs([-1.0], np.linspace(0, 1, 100))
    for count in range(1, 101):  # .29 * 100 is 28.999999999999996
        impostors = np.sort(scores[~is_genuine])[::-1]
        threshold_scores = np.where(is_genuine, impostors[count - 1], scores)
        far = float(f"{count / 100:.2f}")
        assert r.tar_at_far(threshold_scores, is_genuine, far) == 1


@pytest.mark.core
def test_verify_names_and_counts():
    scores, is_genuine = pairs(GENUINE, IMPOSTOR)
    metrics = v.verify(scores, is_genuine, np.arange(9) % 3, fars=(0.2,))
    assert set(metrics) == {
        "kfold_accuracy",
        "kfold_std",
        "kfold_standard_error",
        "kfold_threshold",
        "best_accuracy",
        "eer",
        "auc",
        "tar@far=2e-1",
        "threshold@far=2e-1",
        "genuine_pairs",
        "impostor_pairs",
    }
    assert metrics["genuine_pairs"] == 4
    assert metrics["impostor_pairs"] == 5
    accepted = scores >= metrics["threshold@far=2e-1"]
    assert accepted[~is_genuine].mean() <= 0.2
    assert accepted[is_genuine].mean() == metrics["tar@far=2e-1"]
    assert all(type(value) is float for value in metrics.values())
    assert "kfold_accuracy" not in v.verify(scores, is_genuine)


@pytest.mark.parametrize(
    "function",
    [r.auc, v.best_accuracy, r.equal_error_rate, v.choose_threshold, r.roc, v.verify],
)
def test_degenerate_input_is_one_line(function):
    scores, is_genuine = pairs(GENUINE, IMPOSTOR)
    for bad, labels, message in (
        (np.where(scores == 0.9, np.nan, scores), is_genuine, "1 of 9 are NaN"),
        (scores, np.ones(9, bool), "9 genuine and 0 impostor"),
        (scores, np.zeros(9, bool), "0 genuine and 9 impostor"),
        (np.zeros(0), np.zeros(0, bool), "0 genuine and 0 impostor"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            function(bad, labels)
        assert "\n" not in str(error.value)


def test_kfold_refuses_what_it_cannot_mean():
    scores, is_genuine = pairs(GENUINE, IMPOSTOR)
    with pytest.raises(ValueError, match="1 different folds"):
        v.kfold_accuracy(scores, is_genuine, np.zeros(9, int))
    with pytest.raises(ValueError, match="needs cosines"):
        v.kfold_accuracy(scores * 30, is_genuine, np.arange(9) % 3)


@pytest.mark.parametrize("count", [3, 500])
def test_pair_scores_by_gather_and_by_blocks(rng, count):
    embeddings = rng.normal(size=(20, 8)).astype(np.float32) * 5
    embeddings[4] = 0
    first, second = rng.integers(0, 20, count), rng.integers(0, 20, count)
    for scale in (1, 20):  # a larger N takes the other way for few pairs
        rows = np.tile(embeddings, (scale, 1))
        scores = similarity.pair_scores(rows, first, second)
        a, b = rows[first].astype(float), rows[second].astype(float)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        expected = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
        np.testing.assert_allclose(scores, expected, atol=1e-14)


def test_pair_scores_refuse_bad_rows():
    embeddings = np.eye(3)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="there are 3 embeddings"):
            similarity.pair_scores(embeddings, np.array([0]), np.array([wrong]))
    embeddings[1, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 3 rows hold NaN"):
        similarity.pair_scores(embeddings, np.array([0]), np.array([2]))
