"""Error versus discard: the curve, ties, and the protocol on embeddings."""

import itertools
import json

import numpy as np
import pytest
import record_files
from test_evaluate import run

from hyperface_jax.evaluation import image_protocols, roc
from hyperface_jax.evaluation.discard import error_versus_discard


def pairs(rng, count=400):
    """Scores, labels and qualities in which good pairs score higher."""
    is_genuine = np.arange(count) % 2 == 0
    quality = rng.uniform(size=count)
    spread = np.where(is_genuine, 5 * quality, 0)
    return rng.normal(size=count) + spread, is_genuine, quality


@pytest.mark.core
def test_against_a_plain_loop(rng):
    scores, is_genuine, quality = pairs(rng)
    found = error_versus_discard(scores, is_genuine, quality, fmr=0.02, points=61)
    assert found.threshold == roc.threshold_at_far(scores, is_genuine, 0.02)
    assert found.fmr == 0.02
    genuine = sorted(zip(quality[is_genuine], scores[is_genuine], strict=True))
    for share, fnmr in zip(found.share, found.fnmr, strict=True):
        if abs(share * 200 - round(share * 200)) < 1e-9:  # a whole number of pairs
            left = genuine[round(share * 200) :]
            rejected = sum(score < found.threshold for _, score in left)
            assert fnmr == pytest.approx(rejected / len(left))
    assert found.fnmr[0] == pytest.approx(1 - roc.tar_at_far(scores, is_genuine, 0.02))
    assert found.area < 0.9
    assert error_versus_discard(scores, is_genuine, -quality, fmr=0.02).area > 1.1


def test_ties_are_the_mean_over_all_orders():
    genuine = np.array([0.1, 0.9, 0.2, 0.8, 0.95, 0.85, 0.97, 0.3, 0.99, 0.98])
    scores = np.append(genuine, [0.5, 0.4])
    is_genuine = np.arange(12) < 10
    quality = np.array([1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0.0])
    found = error_versus_discard(scores, is_genuine, quality, fmr=0.5, points=4)
    assert found.threshold == 0.5
    for share, fnmr in zip(found.share, found.fnmr, strict=True):
        gone = round(10 * share)
        each = []
        for order in itertools.permutations(range(4)):  # of the four worst
            left = genuine[[*order, *range(4, 10)][gone:]]
            each.append((left < 0.5).mean())
        assert fnmr == pytest.approx(np.mean(each))


def test_a_quality_without_meaning_has_area_one(rng):
    scores, is_genuine, _ = pairs(rng, 2000)
    areas = [
        error_versus_discard(scores, is_genuine, rng.uniform(size=2000), fmr=0.01).area
        for _ in range(200)
    ]
    assert np.mean(areas) == pytest.approx(1, abs=0.01)
    rng.shuffle(rejected := np.arange(1000) < image_protocols._REJECTED)
    few = np.append(np.where(rejected, -9.0, 9.0), rng.normal(size=1000))
    kinds = np.arange(2000) < 1000  # with fewer it would be wider than this
    areas = [
        error_versus_discard(few, kinds, rng.uniform(size=2000), fmr=0.01).area
        for _ in range(400)
    ]
    low, high = np.quantile(areas, (0.025, 0.975))
    assert 0.85 < low < 0.95
    assert 1.05 < high < 1.15
    constant = error_versus_discard(scores, is_genuine, np.ones(2000), fmr=0.01)
    np.testing.assert_allclose(constant.fnmr, constant.fnmr[0])
    assert constant.area == pytest.approx(1)
    perfect = np.where(is_genuine, 1.0, -1.0)
    assert np.isnan(error_versus_discard(perfect, is_genuine, scores, fmr=0.1).area)


def test_wrong_input_is_one_line(rng):
    scores, is_genuine, quality = pairs(rng)
    unknown = np.append(np.nan, quality[1:])
    with pytest.raises(
        ValueError, match=r"quality is \[400\] with 1 NaN, expected one"
    ):
        error_versus_discard(scores, is_genuine, unknown)
    with pytest.raises(ValueError, match="far is 1e-05, expected 1/impostors to 1"):
        error_versus_discard(scores, is_genuine, quality, fmr=1e-5)


def test_the_protocol_reads_the_length_of_embeddings(tmp_path, rng):
    """Short embeddings of noise, as a network that knows what it cannot see."""
    path = record_files.write_bin(tmp_path / "lfw.bin", pairs=400)
    centres = rng.normal(size=(400, 32))
    people = np.repeat(np.arange(400), 2)
    people[3::4] = (people[3::4] + 1) % 400  # every second pair is of two people
    noise = rng.uniform(0.2, 2.5, size=800)
    views = centres[people] + noise[:, None] * rng.normal(size=(800, 32))
    views /= np.linalg.norm(views, axis=1, keepdims=True) * noise[:, None]

    def protocols(array):
        np.save(tmp_path / "lfw.npy", array.astype(np.float32))
        where = ("--set", path, "--embeddings", tmp_path / "lfw.npy")
        run(*where, "--out", tmp_path / "out", "--bootstrap", 0)
        written = json.loads((tmp_path / "out" / "results.json").read_text())
        return {p["name"]: p for p in written["protocols"]}

    found = protocols(views)["error_versus_discard"]
    metrics = found["metrics"]
    rates = [metrics[f"fnmr@discard={p}"] for p in (0, 0.05, 0.1, 0.2)]
    assert rates == sorted(rates, reverse=True)
    assert metrics["edc_area"] < 0.95
    assert found["counts"] == {"genuine_pairs": 200, "impostor_pairs": 200}
    assert found["discard"]["fmr"] <= 0.01
    page = (tmp_path / "out" / "report.html").read_text()
    assert "EDC of all sets" in page
    heads = [table.partition("</tr>")[0] for table in page.split("<table")]
    (own,) = [head for head in heads if "FNMR, 20\u202f% discarded" in head]
    assert "AUC" not in own  # one table of both is too wide for a page
    lost = views.copy()
    lost[:40] = 0  # unreadable ones say nothing of the lengths of others
    found = protocols(lost)["error_versus_discard"]
    assert found["counts"]["genuine_pairs"] == 190
    lost = views / np.linalg.norm(views, axis=1, keepdims=True)
    lost[0] = 0
    assert "error_versus_discard" not in protocols(lost)
    sure = centres[people] * rng.uniform(1, 2, size=(800, 1))  # nothing is rejected
    metrics = protocols(sure)["error_versus_discard"]["metrics"]
    assert metrics["fnmr@discard=0"] == 0
    assert "edc_area" not in metrics
    unit = views / np.linalg.norm(views, axis=1, keepdims=True)
    assert "error_versus_discard" not in protocols(unit)
