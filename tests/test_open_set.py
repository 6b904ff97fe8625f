"""The open-set criterion on hand-made angles and against brute force."""

import numpy as np
import pytest

from hyperface_jax.evaluation import open_set
from hyperface_jax.evaluation.open_set import open_set_criterion


def on_a_circle(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


@pytest.mark.core
def test_hand_made_angles():
    embeddings = on_a_circle(0, 10.5, 90.25, 95.75) * [[1], [2], [3], [4]]
    result = open_set_criterion(embeddings, np.array([7, 7, 3, 3]))
    assert result.max_intra == pytest.approx(10.5)
    assert result.min_inter == pytest.approx(79.75)
    assert result.gap == pytest.approx(69.25)
    assert (result.genuine_pairs, result.impostor_pairs) == (2, 4)
    assert result.overlap == 0
    assert list(np.flatnonzero(result.intra_histogram)) == [5, 10]
    assert list(np.flatnonzero(result.inter_histogram)) == [79, 85, 90, 95]


def test_overlap_is_the_common_mass():
    # All at one point: the same distribution twice.
    same = open_set_criterion(on_a_circle(30, 30, 30, 30), np.array([0, 0, 1, 1]))
    assert same.overlap == 1
    assert same.max_intra == same.min_inter == pytest.approx(0, abs=1e-5)
    half = open_set_criterion(on_a_circle(0.5, 45.0, 0.5, 45.0), np.array([0, 0, 1, 1]))
    # Intra: 44.5 twice; inter: 0 twice, 44.5 twice.
    assert half.overlap == 0.5


def brute_force(embeddings, identity):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), k=1)
    angle = np.rad2deg(np.arccos(np.clip((unit[i] * unit[j]).sum(axis=1), -1, 1)))
    same = identity[i] == identity[j]
    return angle[same], angle[~same]


@pytest.mark.parametrize("block", [1, 7, 60, 1024])
@pytest.mark.parametrize("exact", [True, False])
def test_against_brute_force(rng, monkeypatch, block, exact):
    identity = rng.integers(0, 9, 60)
    embeddings = rng.normal(size=(9, 16))[identity] + rng.normal(size=(60, 16))
    if not exact:
        monkeypatch.setattr(open_set, "EXACT_PAIRS", 0)
    result = open_set_criterion(embeddings, identity, block=block)
    intra, inter = brute_force(embeddings, identity)
    assert (result.genuine_pairs, result.impostor_pairs) == (len(intra), len(inter))
    assert result.max_intra == pytest.approx(intra.max(), rel=1e-12)
    assert result.min_inter == pytest.approx(inter.min(), rel=1e-12)
    counts, _ = np.histogram(inter, bins=180, range=(0, 180))
    np.testing.assert_array_equal(result.inter_histogram, counts)
    if exact:
        assert result.intra_q99 == pytest.approx(np.quantile(intra, 0.99), rel=1e-12)
        assert result.inter_q01 == pytest.approx(np.quantile(inter, 0.01), rel=1e-12)
    else:
        # The histogram's quantile inverts the distribution function itself.
        for value, data, q in (
            (result.intra_q99, intra, 0.99),
            (result.inter_q01, inter, 0.01),
        ):
            expected = np.quantile(data, q, method="inverted_cdf")
            assert value == pytest.approx(expected, abs=0.01)


def test_opposite_embeddings_are_in_the_last_bin():
    embeddings = on_a_circle(0, 0, 180)
    result = open_set_criterion(embeddings, np.array([0, 0, 1]))
    assert result.inter_histogram[179] == 2
    assert result.min_inter == pytest.approx(180)


@pytest.mark.parametrize(
    ("identity", "message"),
    [([0, 1, 2], "0 genuine and 3 impostor"), ([0, 0, 0], "3 genuine and 0 impostor")],
)
def test_one_kind_of_pair_is_refused(identity, message):
    with pytest.raises(ValueError, match=message):
        open_set_criterion(np.eye(3), np.array(identity))


def test_rows_without_an_angle_are_refused():
    embeddings = np.eye(3)
    embeddings[0] = 0
    with pytest.raises(ValueError, match="1 of 3 rows are zero"):
        open_set_criterion(embeddings, np.array([0, 0, 1]))
    embeddings[0] = np.inf
    with pytest.raises(ValueError, match="1 of 3 rows hold NaN or infinity"):
        open_set_criterion(embeddings, np.array([0, 0, 1]))
