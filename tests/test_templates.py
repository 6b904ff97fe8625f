"""Template pooling: the eight published switches, a plain loop, and degenerate sets."""

import itertools

import numpy as np
import pytest

from hyperface_jax.evaluation import identification, roc, similarity, templates
from hyperface_jax.evaluation.templates import Pooling, pool_templates

SWITCHES = [Pooling(*bits) for bits in itertools.product((False, True), repeat=3)]


def plain_loop(features, template_id, media_id, score, pooling):
    x = features.astype(np.float64)
    x = x[:, 0] + x[:, 1] if pooling.flip else x[:, 0]
    if not pooling.keep_norm:
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(lengths == 0, 1, lengths)
    if pooling.detector_score:
        x = x * score[:, None]
    result = []
    for template in np.unique(template_id):
        total = np.zeros(x.shape[1])
        for media in np.unique(media_id[template_id == template]):
            total += x[(template_id == template) & (media_id == media)].mean(axis=0)
        length = np.linalg.norm(total)
        result.append(total / length if length else total)
    return np.array(result)


@pytest.fixture
def images(rng):
    features = rng.normal(size=(90, 2, 6)).astype(np.float32)
    features[:4] = 0
    template_id, media_id = rng.integers(0, 12, 90) * 5, rng.integers(0, 3, 90)
    template_id[:3] = 1000  # a template of nothing but zeros
    return features, template_id, media_id, rng.uniform(0, 1, 90).astype(np.float32)


@pytest.mark.core
@pytest.mark.parametrize("pooling", SWITCHES, ids=str)
def test_insightface_tar(shared, pooling):
    data = np.load(shared("oracles/ijb.npz"))
    pooled = pool_templates(
        data["features"],
        data["template_id"],
        data["media_id"],
        data["face_score"],
        pooling,
    )
    first, second = (np.searchsorted(pooled.ids, data[f"pair_t{i}"]) for i in (1, 2))
    scores = similarity.pair_scores(pooled.vectors, first, second)
    points = roc.operating_points(scores, data["pair_label"] == 1)
    tar = points.nearest_tar_at_far(data["far_points"].tolist())
    np.testing.assert_allclose(tar, data[f"tar_at_far/{pooling}"], rtol=1e-12)
    np.testing.assert_allclose(points.auc(), data[f"auc/{pooling}"], rtol=1e-6)


@pytest.mark.core
def test_insightface_identification(shared):
    data = np.load(shared("oracles/ijb.npz"))
    names = ("features", "template_id", "media_id", "face_score")
    vectors, ids = pool_templates(*(data[name] for name in names))

    def enrolled(name):
        return vectors[np.searchsorted(ids, data[f"{name}_t"])], data[f"{name}_s"]

    galleries = [enrolled("gallery1"), enrolled("gallery2")]
    for function, key in (
        (identification.tpir_at_fpir_nist, "nist"),
        (identification.tpir_at_fpir_pairs, "pairs"),
    ):
        found = function(galleries, *enrolled("probe"))
        ranks = [found[f"rank{k}"] for k in (1, 5, 10)]
        np.testing.assert_allclose(ranks, data[f"{key}/rank1_5_10"])
        rates = [found[f"tpir@fpir={f}"] for f in ("1e-2", "1e-1")]
        np.testing.assert_allclose(rates, data[f"{key}/tpir_at_fpir_0.01_0.1"])


@pytest.mark.parametrize("pooling", SWITCHES, ids=str)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_against_a_plain_loop(images, pooling, block):
    vectors, ids = pool_templates(*images, pooling, block=block)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(ids, np.unique(images[1]))
    np.testing.assert_allclose(vectors, plain_loop(*images, pooling), atol=2e-6)
    assert not vectors[-1].any()  # zero stays zero


def test_a_memory_map_and_any_order(images, tmp_path, rng):
    features, *columns = images
    features.tofile(tmp_path / "features")
    mapped = np.memmap(
        tmp_path / "features", np.float32, mode="r", shape=features.shape
    )
    expected = pool_templates(*images)
    found = pool_templates(mapped, *columns)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    order = rng.permutation(len(features))
    found = pool_templates(*(column[order] for column in images))
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)


def test_media_are_scoped_within_templates():
    features = np.eye(4, dtype=np.float32)[:, None]
    found = pool_templates(
        features,
        np.array([1, 1, 1, 2]),
        np.array([7, 7, 8, 7]),
        pooling=Pooling(detector_score=False, flip=False),
    )
    expected = np.array([[0.5, 0.5, 1, 0], [0, 0, 0, 1]])
    expected[0] /= np.sqrt(1.5)
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)


def test_wrong_input_is_one_line(images):
    features, template_id, media_id, score = images
    for arguments, message in (
        ((features, template_id, media_id), "N1D1F1 needs detector_score"),
        ((features[:, :1], template_id, media_id, score), "needs 2 views"),
        ((features[:, [0, 0, 0]], template_id, media_id, score), "has 3 views"),
        ([column[:0] for column in images], "0 images"),
    ):
        with pytest.raises(ValueError, match=message):
            pool_templates(*arguments)
    for wrong in (np.nan, np.inf):
        bad = features.copy()
        bad[5, 0, 2] = wrong
        for pooling in SWITCHES:
            with pytest.raises(ValueError, match="NaN or infinity in images of 1 of"):
                pool_templates(bad, template_id, media_id, score, pooling)


def test_every_name_is_a_different_setting():
    assert [str(p) for p in SWITCHES[:3]] == ["N0D0F0", "N0D0F1", "N0D1F0"]
    assert str(templates.Pooling()) == "N1D1F1"
