"""IJB-B and IJB-C through `evaluate`: files in, published numbers out."""

import numpy as np
import pytest
import toy
from test_evaluate import run

from hyperface_jax import config as config_lib
from hyperface_jax.data import pipeline
from hyperface_jax.data.records import ids_of
from hyperface_jax.evaluation import (
    embedded,
    embedding_files,
    protocols,
    templates,
    test_sets,
)
from hyperface_jax.evaluation.stored import Stored
from hyperface_jax.training import experiment


def write_ijb(folder, shared):
    """The oracle's numbers in the form of NIST's files; no images."""
    oracle = np.load(shared("oracles/ijb.npz"))
    meta = folder / "meta"
    meta.mkdir(parents=True)
    count = len(oracle["template_id"])
    lines = [
        f"{k}.jpg {t} {m}"
        for k, (t, m) in enumerate(
            zip(oracle["template_id"], oracle["media_id"], strict=True)
        )
    ]
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(lines))
    points = " ".join(["30 40 70 40 50 60 35 80 65 80"])
    lines = [
        f"{k}.jpg {points} {oracle['face_score'][k]!r}".replace(
            "np.float32(", ""
        ).replace(")", "")
        for k in range(count)
    ]
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(lines))
    rows = zip(*(oracle[f"pair_{k}"] for k in ("t1", "t2", "label")), strict=True)
    (meta / "ijbc_template_pair_label.txt").write_text(
        "\n".join(f"{a} {b} {c}" for a, b, c in rows)
    )
    for file, key in (
        ("gallery_G1", "gallery1"),
        ("gallery_G2", "gallery2"),
        ("probe_mixed", "probe"),
    ):
        rows = zip(oracle[f"{key}_t"], oracle[f"{key}_s"], strict=True)
        text = "TEMPLATE_ID,SUBJECT_ID\n" + "\n".join(f"{t},{s}" for t, s in rows)
        (meta / f"ijbc_1N_{file}.csv").write_text(text)
    return oracle


def test_a_probe_without_a_mate_costs_one_algorithm_and_nothing_else(tmp_path, shared):
    oracle = write_ijb(tmp_path / "IJBC", shared)
    gallery = tmp_path / "IJBC" / "meta" / "ijbc_1N_gallery_G1.csv"
    lines = gallery.read_text().splitlines()
    gallery.write_text("\n".join(lines[:-1]) + "\n")
    np.save(tmp_path / "f.npy", oracle["features"])
    one, many = run(
        *("--set", tmp_path / "IJBC", "--embeddings", tmp_path / "f.npy"),
        *("--out", tmp_path / "out"),
    )
    assert one.metrics["auc"] > 0.5
    assert "nist_rank1" in many.metrics
    assert "pairs_rank1" not in many.metrics
    assert "probes are in neither gallery" in many.note


@pytest.mark.parametrize("pooling", ["N1D1F1", "N1D0F1", "N0D1F0"])
def test_ijb_from_its_files_agrees_with_the_oracle(tmp_path, shared, pooling):
    oracle = write_ijb(tmp_path / "IJBC", shared)
    np.save(tmp_path / "f.npy", oracle["features"])
    one, many = run(
        *("--set", tmp_path / "IJBC", "--embeddings", tmp_path / "f.npy"),
        *("--out", tmp_path / "out", "--pooling", pooling),
    )
    assert (one.key, many.key) == (
        "IJBC/templates_verification",
        "IJBC/templates_identification",
    )
    for far, expected in zip(
        ("1e-3", "1e-2", "1e-1"), oracle[f"tar_at_far/{pooling}"][1:], strict=True
    ):
        np.testing.assert_allclose(one.metrics[f"nearest_tar@far={far}"], expected)
    np.testing.assert_allclose(one.metrics["auc"], oracle[f"auc/{pooling}"])
    if pooling == "N1D1F1":
        for name in ("nist", "pairs"):
            found = [many.metrics[f"{name}_rank{k}"] for k in (1, 5, 10)]
            np.testing.assert_allclose(found, oracle[f"{name}/rank1_5_10"])
            found = [many.metrics[f"{name}_tpir@fpir={f}"] for f in ("1e-2", "1e-1")]
            np.testing.assert_allclose(found, oracle[f"{name}/tpir_at_fpir_0.01_0.1"])
    assert pooling in (tmp_path / "out" / "report.html").read_text()


def test_sums_with_mirror_images_are_pooled_as_such(tmp_path, shared, caplog):
    oracle = write_ijb(tmp_path / "IJBC", shared)
    views = oracle["features"]
    np.save(tmp_path / "views.npy", views)
    test = test_sets.open_test(str(tmp_path / "IJBC"))
    names = {row: name for name, row in ids_of(test.faces.source).items()}
    sums = Stored(
        views.sum(axis=1)[:, None], tuple(names[row] for row in range(len(views)))
    )
    embedding_files.write_embeddings(
        tmp_path / "sums.npz", sums, {"model": "m", "mirror_image_added": "True"}
    )
    groups = tmp_path / "groups.txt"
    groups.write_text("1.jpg,a\n")

    def auc(file, pooling):
        results = run(
            *("--set", tmp_path / "IJBC", "--embeddings", tmp_path / file),
            *("--out", tmp_path / "out", "--pooling", pooling, "--groups", groups),
        )
        return results[0].metrics["auc"]

    assert auc("sums.npz", "N1D0F1") == pytest.approx(auc("views.npy", "N1D0F1"))
    assert "IJBC: its protocols compare templates, groups are for im" in caplog.text
    with pytest.raises(ValueError, match="N1D0F0 is of images without their mirror im"):
        auc("sums.npz", "N1D0F0")


def test_mirror_images_that_templates_need_are_missed_before_training(tmp_path, shared):
    write_ijb(tmp_path / "IJBC", shared)
    config = config_lib.default_config()
    config.eval.sets, config.eval.flip = (str(tmp_path / "IJBC"),), False
    with pytest.raises(ValueError, match="N1D1F1 adds the mirror images of IJBC, whic"):
        experiment.open_data(config)
    config.eval.pooling = "N1D1F0"
    assert experiment.open_data(config)[1][-1].name == "IJBC"


def test_ijb_images_are_aligned_while_they_are_read(tmp_path, shared):
    pytest.importorskip("cv2")
    write_ijb(tmp_path / "IJBC", shared)
    crops = tmp_path / "IJBC" / "loose_crop"
    crops.mkdir()
    (crops / "0.jpg").write_bytes(toy.jpeg(toy.person_image(0, 0, 100)))
    test = test_sets.open_test(str(tmp_path / "IJBC"))
    batch = pipeline.BatchReader(test.faces, image_size=112, threads=1)([0, 1])
    assert batch["weight"].tolist() == [1, 0]
    assert batch["image"][0].std() > 5
    assert embedded.needed_rows(test).tolist() == list(range(700))


def test_poolings_have_names():
    for text in ("N1D1F1", "N0D1F0"):
        assert str(templates.parse_pooling(text)) == text
    assert set(protocols.PROTOCOLS) >= {"templates_verification", "distractors"}
