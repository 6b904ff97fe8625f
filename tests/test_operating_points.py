"""One sort, all metrics: against plain loops, scikit-learn, and the large-set path."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from hyperface_jax.evaluation import roc as r
from hyperface_jax.evaluation import similarity
from hyperface_jax.evaluation import verification as v


def cases():
    rng = np.random.default_rng(5)
    for n, step in ((2, 1.0), (5, 0.5), (40, 0.3), (300, 0.05), (300, 1e-6)):
        for share in (0.1, 0.5, 0.9):
            is_genuine = rng.uniform(size=n) < share
            is_genuine[:2] = True, False
            scores = rng.normal(size=n) + 0.8 * is_genuine
            yield np.round(scores / step) * step, is_genuine


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_points_against_a_plain_loop(dtype):
    for scores, is_genuine in cases():
        scores = scores.astype(dtype)
        points = r.operating_points(scores, is_genuine)
        expected = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
        np.testing.assert_array_equal(points.thresholds, expected)
        for threshold, genuine, impostor in zip(*points, strict=True):
            accepted = scores >= threshold
            assert genuine == np.count_nonzero(accepted & is_genuine)
            assert impostor == np.count_nonzero(accepted & ~is_genuine)


@pytest.mark.core
def test_methods_and_functions_agree():
    for scores, is_genuine in cases():
        points = r.operating_points(scores, is_genuine)
        assert points.auc() == r.auc(scores, is_genuine)
        assert points.equal_error_rate() == r.equal_error_rate(scores, is_genuine)
        for one, other in zip(points.roc(), r.roc(scores, is_genuine), strict=True):
            np.testing.assert_array_equal(one, other)
        metrics = v.verify(scores, is_genuine, fars=(0.3, 0.9), nearest=True)
        assert metrics["eer"] == points.equal_error_rate()
        assert metrics["best_accuracy"] == v.best_accuracy(scores, is_genuine)
        for far in (0.3, 0.9):
            if far >= 1 / points.impostor[-1]:
                name = r.far_label(far)
                strict = r.tar_at_far(scores, is_genuine, far)
                assert metrics[f"tar@far={name}"] == strict
                near = r.nearest_tar_at_far(scores, is_genuine, far)
                assert metrics[f"nearest_tar@far={name}"] == near


def test_equal_error_rate_against_a_plain_loop():
    for scores, is_genuine in cases():
        far, tar, _ = r.roc(scores, is_genuine)
        for i in range(1, len(far)):
            before, after = far[i - 1] + tar[i - 1] - 1, far[i] + tar[i] - 1
            if after >= 0:
                expected = far[i - 1] - before / (after - before) * (
                    far[i] - far[i - 1]
                )
                break
        found = r.equal_error_rate(scores, is_genuine)
        assert found == pytest.approx(expected, abs=1e-14)


@pytest.mark.core
def test_nearest_is_insightface_with_scikit_learn():
    for scores, is_genuine in cases():
        far, tar, _ = roc_curve(is_genuine, scores)
        far, tar = np.flipud(far), np.flipud(tar)
        for wanted in (0, 1e-4, 0.013, 0.1, 0.25, 0.5, 0.77, 1):
            _, index = min(zip(abs(far - wanted), range(len(far)), strict=True))
            found = r.nearest_tar_at_far(scores, is_genuine, float(wanted))
            assert found == tar[index]


def test_strict_and_nearest_differ_where_they_should():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    is_genuine = np.array([True, False, True, False, False])
    # FAR 0, 1/3, 1: .3 is nearest to 1/3, which a strict threshold may not reach.
    assert r.nearest_tar_at_far(scores, is_genuine, 0.3) == 1
    assert r.tar_at_far(scores, is_genuine, 0.34) == 1
    with pytest.raises(ValueError, match="expected 1/impostors"):
        r.tar_at_far(scores, is_genuine, 0.3)
    metrics = v.verify(scores, is_genuine, fars=(0.3, 0.4), nearest=True)
    assert "tar@far=3e-1" not in metrics
    assert "nearest_tar@far=3e-1" not in metrics


def test_det_is_one_minus_tar():
    for scores, is_genuine in cases():
        curve, det = r.roc(scores, is_genuine), r.det(scores, is_genuine)
        np.testing.assert_array_equal(det.fmr, curve.far)
        np.testing.assert_allclose(det.fnmr, 1 - curve.tar, atol=1e-15)
        np.testing.assert_array_equal(det.thresholds, curve.thresholds)
        assert (det.fnmr[0], det.fnmr[-1]) == (1, 0)


@pytest.mark.parametrize("rows", [20, 700])
def test_many_pairs_are_float32(rng, monkeypatch, rows):
    embeddings = (7 * rng.normal(size=(rows, 16))).astype(np.float32)
    embeddings[3] = 0
    first, second = rng.integers(0, rows, (2, 5000))
    exact = similarity.pair_scores(embeddings, first, second)
    assert exact.dtype == np.float64
    monkeypatch.setattr(similarity, "FLOAT64_PAIRS", 4999)
    for dtype in (np.int64, np.int32):
        scores = similarity.pair_scores(
            embeddings, first.astype(dtype), second.astype(dtype)
        )
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, exact, atol=5e-7)
    # A threshold from float32 scores means the same to all functions.
    is_genuine = rng.uniform(size=5000) < 0.2
    chosen = v.choose_threshold(scores, is_genuine)
    assert chosen == v.choose_threshold(scores.astype(np.float64), is_genuine)
    folds = v.kfold_accuracy(scores, is_genuine, np.arange(5000) % 5)
    same = v.kfold_accuracy(scores.astype(np.float64), is_genuine, np.arange(5000) % 5)
    assert folds.mean == same.mean


def test_threshold_at_far_is_the_one_of_tar_at_far():
    for scores, is_genuine in cases():
        impostors = (~is_genuine).sum()
        for far in np.unique(np.clip([1 / impostors, 0.1, 0.5, 1], 1 / impostors, 1)):
            threshold = r.threshold_at_far(scores, is_genuine, far)
            accepted = scores >= threshold
            assert accepted[~is_genuine].mean() <= far
            np.testing.assert_allclose(
                accepted[is_genuine].mean(), r.tar_at_far(scores, is_genuine, far)
            )
    with pytest.raises(ValueError, match="expected 1/impostors to 1"):
        r.threshold_at_far(np.array([1.0, 0.0]), np.array([True, False]), 0.5)
