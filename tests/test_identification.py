"""Closed-set rank-k, open-set identification, distractors, containers of results."""

import json

import numpy as np
import pytest

from hyperface_jax.evaluation import distractors, mate_counts
from hyperface_jax.evaluation import identification as ident
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
def test_against_a_sort(rng, block, monkeypatch):
    gallery, probe = rng.normal(size=(30, 5)), rng.normal(size=(17, 5))
    gallery_id, probe_id = rng.permutation(30) // 2, rng.integers(0, 15, 17)
    ranks = mate_ranks(gallery, gallery_id, probe, probe_id, block=block)
    with monkeypatch.context() as m:  # a gallery so large that few probes fit
        m.setattr(ident, "_SCORES", 70)
        few = mate_ranks(gallery, gallery_id, probe, probe_id, block=block)
    np.testing.assert_array_equal(few, ranks)
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


def brute_scores(gallery, probe):
    """Cosines in a loop, float64."""
    return np.array(
        [
            [p @ g / (np.linalg.norm(p) * np.linalg.norm(g)) for g in gallery]
            for p in probe
        ]
    )


def small_integers(rng, *shape):
    """Vectors whose cosines tie often."""
    vectors = rng.integers(-2, 3, shape).astype(np.float64)
    vectors[~vectors.any(axis=-1)] = 1
    return vectors


@pytest.fixture
def two_galleries(rng):
    """Mates in one of two galleries each, 12 + 9 subjects.

    Entries are ±1 in 16 dimensions, so that cosines are exact and tie often.
    """
    people = rng.choice([-1.0, 1.0], (21, 16))
    galleries = [
        (people[:12], np.arange(12) * 3),
        (people[12:], np.arange(12, 21) * 3),
    ]
    probe_id = rng.integers(0, 21, 60) * 3
    kept = rng.uniform(size=(60, 16)) < 0.7
    return galleries, np.where(kept, people[probe_id // 3], -1), probe_id


FPIRS = (0.01, 0.1, 0.35, 1.0)


def test_nist_against_a_plain_loop(two_galleries):
    galleries, probe, probe_id = two_galleries
    found = ident.tpir_at_fpir_nist(galleries, probe, probe_id, FPIRS, (1, 3))
    tpir, hits = np.zeros(len(FPIRS)), np.zeros(2)
    for gallery, gallery_id in galleries:
        scores = brute_scores(gallery, probe)
        mated = np.isin(probe_id, gallery_id)
        alarms = sorted((max(row) for row in scores[~mated]), reverse=True)
        for i, fpir in enumerate(FPIRS):
            threshold = alarms[max(int(len(alarms) * fpir) - 1, 0)] + 1e-12
            good = 0
            for row, name in zip(scores[mated], probe_id[mated], strict=True):
                mate, others = row[gallery_id == name][0], row[gallery_id != name]
                good += mate > others.max() + 1e-12 and mate > threshold
            tpir[i] += good / mated.sum() / 2
        for row, name in zip(scores[mated], probe_id[mated], strict=True):
            mate, others = row[gallery_id == name][0], row[gallery_id != name]
            rank = 1 + np.count_nonzero(others >= mate - 1e-12)
            hits += [rank <= 1, rank <= 3]
    labels = ("1e-2", "1e-1", "3.5e-1", "1e0")
    rates = [found[f"tpir@fpir={label}"] for label in labels]
    np.testing.assert_allclose(rates, tpir, atol=1e-12)
    np.testing.assert_allclose([found["rank1"], found["rank3"]], hits / 60)
    assert (found["probes"], found["gallery_size"]) == (60, 21)


@pytest.mark.parametrize("block", [7, 1024])
def test_pairs_against_a_plain_loop(two_galleries, monkeypatch, block):
    galleries, probe, probe_id = two_galleries
    search = ident._search
    monkeypatch.setattr(
        ident, "_search", lambda *a, keep: search(*a, keep=keep, block=block)
    )
    found = ident.tpir_at_fpir_pairs(galleries, probe, probe_id, FPIRS, (1, 3))
    scores = brute_scores(np.concatenate([g for g, _ in galleries]), probe)
    is_mate = probe_id[:, None] == np.arange(21) * 3
    others = np.sort(scores[~is_mate])[::-1]
    labels = ("1e-2", "1e-1", "3.5e-1", "1e0")
    for label, fpir in zip(labels, FPIRS, strict=True):
        threshold = others[int(np.ceil(60 * fpir)) - 1] + 1e-12
        expected = np.mean(scores[is_mate] > threshold)
        assert found[f"tpir@fpir={label}"] == pytest.approx(expected)
    mate = scores[is_mate][:, None]
    ranks = 1 + np.count_nonzero(~is_mate & (scores >= mate - 1e-12), axis=1)
    assert found["rank3"] == np.mean(ranks <= 3)


def test_open_set_input_is_checked(two_galleries):
    galleries, probe, probe_id = two_galleries
    for function in (ident.tpir_at_fpir_nist, ident.tpir_at_fpir_pairs):
        with pytest.raises(ValueError, match=r"fpirs is \(0.0,\)"):
            function(galleries, probe, probe_id, (0.0,))
        with pytest.raises(ValueError, match="ranks from 1"):
            function(galleries, probe, probe_id, ks=(0,))
    (first, first_id), _ = galleries
    with pytest.raises(ValueError, match="60 probes with a mate and 0 without"):
        ident.tpir_at_fpir_nist(
            [(first, first_id)], first[[0] * 60], first_id[[0] * 60]
        )
    with pytest.raises(ValueError, match="have no mate"):
        ident.tpir_at_fpir_pairs([(first, first_id)], probe, probe_id)
    with pytest.raises(ValueError, match="12 of 24 gallery entries repeat"):
        ident.tpir_at_fpir_pairs([(first, first_id)] * 2, first, first_id)
    with pytest.raises(ValueError, match=r"asks for the 1\. of 0 scores"):
        ident.tpir_at_fpir_pairs([(first[:1], first_id[:1])], first[:1], first_id[:1])


def test_cmc_is_rank_k():
    curve = ident.cmc(np.array([1, 3, 1, 7, 99]), 4)
    np.testing.assert_allclose(curve, [0.4, 0.4, 0.6, 0.6])
    for ranks, most in ((np.zeros(0, int), 3), (np.array([0]), 3), (np.array([1]), 0)):
        with pytest.raises(ValueError, match="expected ranks from 1"):
            ident.cmc(ranks, most)


@pytest.fixture
def strangers(rng):
    """Probes and distractors with ties, of all lengths and with zeros."""
    probe = small_integers(rng, 23, 4)
    distractors = small_integers(rng, 300, 4) * rng.uniform(0.1, 9, (300, 1))
    distractors[[5, 6, 250]] = 0
    return probe, rng.integers(0, 6, 23), distractors


def as_high(distractors, probe, score):
    lengths = np.linalg.norm(distractors, axis=1) * np.linalg.norm(probe)
    cos = distractors @ probe / np.where(lengths == 0, 1, lengths)
    return np.count_nonzero(cos >= score - 1e-12)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize(("block", "threads"), [(1, 1), (17, 3), (4096, 2)])
def test_megaface_against_a_plain_loop(strangers, block, threads):
    probe, probe_id, faces = strangers
    found = distractors.ranks_among_distractors(
        probe, probe_id, faces, block=block, threads=threads
    )
    expected = []
    for i in range(len(probe)):
        for j in range(len(probe)):
            if i != j and probe_id[i] == probe_id[j]:
                score = cosine(probe[i], probe[j])
                expected.append((1 + as_high(faces, probe[i], score), i, j))
    np.testing.assert_array_equal(np.stack(found, axis=1), expected)


@pytest.mark.parametrize("block", [13, 4096])
def test_tinyface_against_a_plain_loop(strangers, rng, block):
    probe, probe_id, faces = strangers
    gallery, gallery_id = small_integers(rng, 20, 4), np.arange(20) % 8
    found = distractors.gallery_ranks_among_distractors(
        gallery, gallery_id, probe, probe_id, faces, block=block
    )
    for rank, vector, name in zip(found, probe, probe_id, strict=True):
        mates = gallery[gallery_id == name]
        score = max(cosine(vector, mate) for mate in mates)
        others = np.concatenate([gallery[gallery_id != name], faces])
        assert rank == 1 + as_high(others, vector, score)


@pytest.mark.parametrize("signal", [0.0, 0.1, 0.5])
def test_many_scores_by_bins_against_a_plain_loop(rng, monkeypatch, signal):
    monkeypatch.setattr(mate_counts, "EXACT_RANKS", 3000)
    # Without a signal most strangers beat the worst mate of each probe.
    identity = np.arange(40) % 3
    centre = rng.normal(size=(3, 64))[identity]
    probe = np.sqrt(signal) * centre + np.sqrt(1 - signal) * rng.normal(size=(40, 64))
    faces = rng.normal(size=(3000, 64)).astype(np.float32)
    faces[17], faces[18] = probe[0], -probe[3]
    ranks = distractors.ranks_among_distractors(probe, identity, faces, block=1000)
    for rank, i, j in zip(*ranks, strict=True):
        score = cosine(probe[i], probe[j])
        assert rank == 1 + as_high(faces.astype(float), probe[i], score)


@pytest.mark.parametrize("max_rank", [0, 1, 5, 60, 10**6])
def test_ranks_beyond_the_last_of_interest_are_one(strangers, rng, max_rank):
    probe, probe_id, faces = strangers
    for block in (10, 4096):
        found, short = (
            distractors.ranks_among_distractors(
                probe, probe_id, faces, max_rank=most, block=block
            ).rank
            for most in (None, max_rank)
        )
        np.testing.assert_array_equal(short, np.minimum(found, max_rank + 1))
        gallery, gallery_id = small_integers(rng, 20, 4), np.arange(20) % 8
        found, short = (
            distractors.gallery_ranks_among_distractors(
                gallery, gallery_id, probe, probe_id, faces, max_rank=most, block=block
            )
            for most in (None, max_rank)
        )
        np.testing.assert_array_equal(short, np.minimum(found, max_rank + 1))


def test_close_scores_are_decided_in_float64(monkeypatch):
    # The distractors differ from the mate by angles far below float32's resolution.
    probe = on_a_circle(0, 40)
    faces = on_a_circle(*(40 + 1e-9 * np.arange(-30, 31)), 39.9, 40.1)
    ranks = distractors.ranks_among_distractors(probe, np.zeros(2, int), faces)
    # As near or nearer than 40: 30 below, itself, and 39.9; from 40 most are nearer.
    assert ranks.rank[0] == 1 + 30 + 1 + 1
    assert ranks.rank[1] == 1 + len(faces)
    monkeypatch.setattr(mate_counts, "EXACT_RANKS", 0)
    ranks = distractors.ranks_among_distractors(probe, np.zeros(2, int), faces)
    assert ranks.rank[0] == 1 + 61 + 1


def test_the_same_image_among_the_distractors_is_a_tie(rng):
    faces = rng.normal(size=(500, 64)).astype(np.float32)
    faces[7] *= 1e-25  # float32 cannot square these lengths
    faces[8] *= 1e25
    probe = np.stack([faces[7], faces[8], faces[9]]) + np.float32(0)
    ranks = distractors.ranks_among_distractors(probe, np.zeros(3, int), faces)
    for rank, i, j in zip(*ranks, strict=True):
        score = cosine(probe[i].astype(float), probe[j].astype(float))
        assert rank == 1 + as_high(faces.astype(float), probe[i].astype(float), score)
        assert rank >= 3  # the probe itself and its mate are there


def test_distractors_from_a_memory_map(tmp_path, strangers):
    probe, probe_id, faces = strangers
    faces.astype(np.float32).tofile(tmp_path / "faces")
    mapped = np.memmap(tmp_path / "faces", np.float32, mode="r", shape=faces.shape)
    found = distractors.ranks_among_distractors(probe, probe_id, mapped)
    expected = distractors.ranks_among_distractors(probe, probe_id, np.array(mapped))
    np.testing.assert_array_equal(found.rank, expected.rank)


def test_distractors_are_checked(strangers):
    probe, probe_id, faces = strangers
    with pytest.raises(ValueError, match="none of 23 probes has another image"):
        distractors.ranks_among_distractors(probe, np.arange(23), faces)
    with pytest.raises(ValueError, match="0 distractors"):
        distractors.ranks_among_distractors(probe, probe_id, faces[:0])
    faces[77, 0] = np.nan
    with pytest.raises(ValueError, match="distractors 70 to 79: 1 of 10 rows hold NaN"):
        distractors.ranks_among_distractors(probe, probe_id, faces, block=10, threads=1)
