"""Closed-set rank-k and the containers of results."""

import json

import numpy as np
import pytest

from hyperface_jax.evaluation.identification import mate_ranks, rank_k
from hyperface_jax.evaluation.open_set import open_set_criterion
from hyperface_jax.evaluation.results import HardPair, ProtocolResult, hardest_pairs


def on_a_circle(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


@pytest.mark.core
def test_hand_made_ranks():
    gallery = on_a_circle(0, 40, 80, 120) * 3
    gallery_id = np.array([10, 11, 12, 13])
    probe = on_a_circle(5, 25, 5)
    probe_id = np.array([10, 10, 13])
    np.testing.assert_array_equal(
        mate_ranks(gallery, gallery_id, probe, probe_id), [1, 2, 4]
    )
    result = rank_k(gallery, gallery_id, probe, probe_id, ks=(1, 2, 3, 5))
    assert result == {
        "rank1": pytest.approx(1 / 3),
        "rank2": pytest.approx(2 / 3),
        "rank3": pytest.approx(2 / 3),
        "probes": 3,
        "gallery_size": 4,
    }


def test_the_best_of_several_entries_counts():
    gallery, gallery_id = on_a_circle(0, 60, 20), np.array([0, 0, 1])
    ranks = mate_ranks(gallery, gallery_id, on_a_circle(1, 55), np.array([0, 0]))
    np.testing.assert_array_equal(ranks, [1, 1])


def test_ties_go_against_the_mate():
    same = np.ones((6, 3))
    result = rank_k(same, np.arange(6), same, np.arange(6), ks=(1, 5))
    assert result["rank1"] == result["rank5"] == 0


@pytest.mark.parametrize("block", [1, 5, 100])
def test_against_a_sort(rng, block):
    gallery, probe = rng.normal(size=(30, 5)), rng.normal(size=(17, 5))
    gallery_id, probe_id = rng.permutation(30) // 2, rng.integers(0, 15, 17)
    ranks = mate_ranks(gallery, gallery_id, probe, probe_id, block=block)
    for rank, vector, name in zip(ranks, probe, probe_id, strict=True):
        cos = gallery @ vector / np.linalg.norm(gallery, axis=1)
        ordered = gallery_id[np.argsort(-cos)]
        assert rank == 1 + np.flatnonzero(ordered == name)[0]


def test_wrong_input_is_one_line():
    eye, ids = np.eye(2), np.arange(2)
    with pytest.raises(ValueError, match="1 of 2 probes have no mate"):
        rank_k(eye, ids, eye, np.array([0, 5]))
    with pytest.raises(ValueError, match="0 probes"):
        rank_k(eye, ids, np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ValueError, match="ranks from 1"):
        rank_k(eye, ids, eye, ids, ks=(0,))


def test_hardest_pairs_are_the_worst_first():
    scores = np.array([0.9, 0.2, 0.5, 0.7, 0.2, -0.1])
    is_genuine = np.array([True, True, True, False, False, False])
    genuine, impostor = hardest_pairs(scores, is_genuine, 2)
    assert list(genuine) == [1, 2]
    assert list(impostor) == [3, 4]
    genuine, impostor = hardest_pairs(scores, is_genuine, 99)
    assert len(genuine) == len(impostor) == 3


def test_json_holds_numbers_and_strings_only():
    image = np.zeros((4, 4, 3), np.uint8)
    result = ProtocolResult(
        name="lfw",
        metrics={"eer": 0.25, "auc": float("nan")},
        counts={"genuine_pairs": 2},
        scores=np.array([0.5, 0.25]),
        is_genuine=np.array([True, False]),
        hardest=(HardPair("impostor", 0.5, "a/1", "b/2", image, image),),
        open_set=open_set_criterion(on_a_circle(0, 10, 90), np.array([0, 0, 1])),
        note="two images could not be read",
    )
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["metrics"] == {"eer": 0.25, "auc": "nan"}
    assert document["hardest"] == [
        {"kind": "impostor", "score": 0.5, "first_id": "a/1", "second_id": "b/2"}
    ]
    assert document["open_set"]["min_inter"] == pytest.approx(80)
    assert "intra_histogram" not in document["open_set"]
