"""report.html: what it says, what it must not contain, and that it is whole."""

import re

import numpy as np
import pytest
from etils import epath

from hyperface_jax.evaluation import open_set, roc, similarity, verification
from hyperface_jax.evaluation.results import (
    HardPair,
    ProtocolResult,
    describe,
    hardest_pairs,
)
from hyperface_jax.margins import MARGINS
from hyperface_jax.reporting import plots, rate_curves, report

TRAINING = [
    {"step": 10, "loss": 9.5, "learning_rate": 0.1, "magnitude_mean": 5.0},
    {"step": 20, "loss": 8.5, "magnitude_mean": 6.0, "magnitude_std": 0.5},
    {"step": 20, "lfw/verification/kfold_accuracy": 0.8, "lfw/verification/auc": 0.9},
    {"step": 30, "loss": 7.5, "grad_norm_backbone": 2.0, "something_new": 1.0},
]


def make_result(name="lfw"):
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(20), 4)
    embeddings = rng.normal(size=(20, 8))[identity] + 0.6 * rng.normal(size=(80, 8))
    first = np.arange(80)
    second = np.where(first % 2 == 0, first + 1, (first + 7) % 80)
    scores = similarity.pair_scores(embeddings, first, second)
    is_genuine = identity[first] == identity[second]
    metrics = verification.verify(scores, is_genuine, first // 20)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    hardest = tuple(
        HardPair(kind, float(scores[i]), f"{kind}<{i}>", f"b&{i}", image, image[:12])
        for kind, indices in zip(
            ("genuine", "impostor"), hardest_pairs(scores, is_genuine, 2), strict=True
        )
        for i in indices
    )
    return ProtocolResult(
        name=name,
        metrics=metrics,
        counts={},
        scores=scores,
        is_genuine=is_genuine,
        hardest=hardest,
        open_set=open_set.open_set_criterion(embeddings, identity),
        note="one <image> was unreadable",
    )


def write(path, **changes):
    arguments = {
        "title": "A run <script>alert(1)</script>",
        "model": "ours",
        "config": {"loss": {"margin": "cosface", "m": 0.35}, "root": "/a&b", "e": {}},
        "versions": {"jax": "9.8.7"},
        "training": TRAINING,
        "results": [make_result()],
        "margin": "sphereface_r_v2",
        "margin_value": None,
        "summary": {"identities": "4,321"},
    }
    report.write_report(path, **(arguments | changes))
    return path.read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.core
def test_headline_numbers_counts_and_definitions(page):
    metrics = make_result().metrics
    assert f"{100 * metrics['kfold_accuracy']:.1f}" in page
    assert f"{100 * metrics['eer']:.1f}" in page
    genuine, impostor = metrics["genuine_pairs"], metrics["impostor_pairs"]
    assert f"{genuine:.0f} genuine pairs, {impostor:.0f} impostor pairs" in page
    for metric in ("kfold_accuracy", "best_accuracy", "eer", "auc", "tar@far=1e-1"):
        definition = describe(metric)[1].partition("'")[0]
        assert definition
        assert definition in page
    assert "4,321" in page
    assert "9.8.7" in page
    assert "biometric data" in page


def test_the_page_is_self_contained(page):
    readable = re.sub(r"base64,[^\"]*", "", page)  # noise that may spell anything
    assert "http" not in readable
    assert "url(" not in readable
    assert "<script" not in readable
    sources = re.findall(r'src="([^"]{0,12})', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)


def test_text_is_escaped(page):
    assert "&lt;script&gt;" in page
    assert "one &lt;image&gt; was unreadable" in page
    assert "genuine&lt;" in page
    assert "/a&amp;b" in page


def test_nested_config_is_flattened(page):
    assert "<td>loss.margin</td><td>cosface</td>" in page


def test_pictures_only_when_asked(page, tmp_path):
    assert page.count("data:image/png") == 4
    without = write(tmp_path / "report.html", pictures=False)
    assert "data:image/png" not in without
    assert "Hardest pairs" not in without
    assert "genuine&lt;" not in without  # the names of people neither


def test_an_empty_run_is_still_a_page(tmp_path):
    path = epath.Path(tmp_path) / "report.html"
    page = write(path, training=[], results=[], margin=None, summary={}, config={})
    assert "No protocol was run" in page
    assert "<img" not in page


def test_results_of_other_kinds_get_their_own_table(tmp_path):
    nothing = {"scores": np.zeros(0), "is_genuine": np.zeros(0, bool)}
    ranks = ProtocolResult("1:N", {"rank1": 0.5}, {"probes": 2000}, **nothing)
    new = ProtocolResult("new", {"own_metric": 12.3456}, {}, **nothing)
    page = write(tmp_path / "report.html", results=[make_result(), ranks, new])
    assert '<p class="big">50.00\u202f%</p>' in page
    assert '<p class="big">12.35</p>' in page
    assert page.count('<table class="numbers">') == 5  # three kinds, thresholds, angles


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the page before")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, results=[], training=[], margin=None)
    assert path.read_text() == "the page before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", ["sphereface", "ga_softmax", "arcface"])
def test_margin_curves(name):
    assert name in MARGINS
    assert plots.margin_curves(name, 1.2).startswith("<?xml")


def test_a_figure_is_the_same_text_twice():
    assert plots.training_curves(TRAINING) == plots.training_curves(TRAINING)


def test_plots_survive_poor_data():
    nan = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}]
    assert plots.training_curves(nan).startswith("<?xml")
    collapsed = ProtocolResult(
        "collapsed", {}, {}, np.ones(4), np.array([True, True, True, False])
    )
    assert plots.score_distributions(collapsed).startswith("<?xml")
    assert rate_curves.roc_curves([collapsed]).startswith("<?xml")


def test_roc_lines_are_strict():
    result = make_result()
    ((name, far, tar),) = rate_curves.roc_lines([result])
    assert name == "lfw"
    assert far[0] == 1 / np.count_nonzero(~result.is_genuine)
    for rate, value in zip(far[::50], tar[::50], strict=True):
        expected = roc.tar_at_far(result.scores, result.is_genuine, rate)
        assert value == expected


def test_pair_picture_holds_both_images():
    from io import BytesIO

    from PIL import Image

    pair = make_result().hardest[0]
    sheet = np.asarray(Image.open(BytesIO(plots.pair_picture(pair))))
    np.testing.assert_array_equal(sheet[:, :16], pair.first_image)
    np.testing.assert_array_equal(sheet[:12, -16:], pair.second_image)


def test_validation_has_panels_beside_training():
    panels = plots.training_curves(TRAINING).count('<g id="axes_')
    without = [{k: v for k, v in row.items() if "/" not in k} for row in TRAINING]
    # k-fold accuracy has one, the AUC none.
    assert panels == plots.training_curves(without).count('<g id="axes_') + 1
