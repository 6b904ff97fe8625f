"""`python -m hyperface_jax.audit`: planted mistakes come out as lists for prepare."""

import numpy as np
import pytest
import toy
from test_train import small_config

from hyperface_jax import audit, prepare
from hyperface_jax.data import datasets, name_lists, sources
from hyperface_jax.evaluation import sub_centres
from hyperface_jax.training import train
from hyperface_jax.training.checkpoint import Checkpoints


@pytest.fixture
def planted(tmp_path):
    """120 people x 4; 17 is 3 again, one image of 40 shows 41, 50 is in the test."""
    folder = toy.write_folder(tmp_path / "faces", people=120, images=4, size=16)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(120, 64))
    centres[17] = centres[3]
    who = np.repeat(np.arange(120), 4)
    who[40 * 4 + 2] = 41
    np.save(tmp_path / "e.npy", centres[who] + 0.4 * rng.normal(size=(480, 64)))
    test = toy.write_folder(tmp_path / "test", people=3, images=2, size=16)
    strangers = rng.normal(size=(3, 64))
    strangers[1] = centres[50]
    seen = np.repeat(strangers, 2, axis=0) + 0.4 * rng.normal(size=(6, 64))
    np.save(tmp_path / "t.npy", seen)
    return folder, test


def run(*arguments):
    return audit.audit(audit.parser().parse_args([*map(str, arguments)]))


def test_planted_mistakes_are_found_and_prepare_takes_the_lists(tmp_path, planted):
    folder, test = planted
    out = run(
        *("--source", folder, "--embeddings", tmp_path / "e.npy"),
        *("--against", test, "--against_embeddings", tmp_path / "t.npy"),
        *("--out", tmp_path / "out", "--threshold", 0.5),
    )
    (alike,) = (out / "look_alikes.tsv").read_text().splitlines()
    names = sources.open_path(str(folder)).identities  # Person_100 before Person_11
    assert alike.startswith(f"identity\t{names[3]}\tlooks like {names[17]}, cosine 0.9")
    (wrong,) = (out / "outliers.tsv").read_text().splitlines()
    assert wrong.startswith(f"image\t{names[40]}/{names[40]}_0003\t{names[40]} 0.")
    (overlap,) = (out / "overlap_test.tsv").read_text().splitlines()
    assert overlap.startswith(f"identity\t{names[50]}\tlooks like Person_01 of test")
    assert "480 images" in (out / "audit.md").read_text()
    lists = [
        f"--exclude={out / name}"
        for name in ("look_alikes.tsv", "outliers.tsv", "overlap_test.tsv")
    ]
    prepare.prepare(
        prepare.parser().parse_args(
            ["--source", str(folder), "--data_dir", str(tmp_path), *lists]
        )
    )
    kept = datasets.open_dataset("faces", config="", data_dir=str(tmp_path))["train"]
    assert (kept.num_classes, len(kept)) == (118, 471)
    assert names[50] not in kept.identities


def test_the_threshold_can_come_from_the_set(tmp_path, planted):
    folder, _ = planted
    out = run(
        *(
            "--source",
            folder,
            "--embeddings",
            tmp_path / "e.npy",
            "--out",
            tmp_path / "o",
        )
    )
    (alike,) = (out / "look_alikes.tsv").read_text().splitlines()
    assert "cosine 0.9" in alike
    assert "estimated from the set itself" in (out / "audit.md").read_text()


def test_wrong_arguments_are_one_line(tmp_path, planted):
    folder, test = planted
    with pytest.raises(SystemExit, match="no embeddings given, and no --workdir"):
        audit.main(["--source", str(folder), "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit, match="--against_embeddings is given 2 times"):
        audit.main(
            [
                "--source",
                str(folder),
                "--out",
                str(tmp_path / "o"),
                "--against",
                str(test),
            ]
            + ["--against_embeddings", "x"] * 2
        )
    assert len(sources.open_path(str(folder))) == 480


def test_sub_centres_find_the_images_that_gather_elsewhere(monkeypatch):
    """Three clean images near one centre, a wrong one near another; by the rule."""
    centres = np.zeros((2, 2, 3))
    centres[0] = [[1, 0, 0], [0, 1, 0]]
    centres[1] = [[0, 0, 2], [0, -1, 0]]
    embeddings = np.array(
        [[5, 0.1, 0], [3, 0, 0.2], [2, 0.1, 0.1], [0.1, 4, 0], [0, 0.3, 1.0], [0, 0, 0]]
    )
    labels = np.array([0, 0, 0, 0, 1, 0])
    monkeypatch.setattr(sub_centres, "BLOCK", 2)
    far = sub_centres.far_from_dominant(embeddings, labels, centres)
    assert far.rows.tolist() == [3]
    assert far.cosines[0] == pytest.approx(0.1 / np.hypot(0.1, 4))
    assert far.judged == 5
    labels[3] = -1
    assert not len(sub_centres.far_from_dominant(embeddings, labels, centres).rows)
    with pytest.raises(
        ValueError, match=r"are \[2, 3\], expected \[C, K, D\] of a run"
    ):
        sub_centres.far_from_dominant(embeddings, labels, centres[:, 0])


def test_a_sub_center_run_cleans_its_own_training_set(tmp_path):
    faces = tmp_path / "faces"
    toy.write_folder(faces / "images", people=24, images=6)
    toy.write_pairs(faces / "pairs.txt", people=12, folds=3)
    config = small_config(faces, head__loss="subcenter_arcface", head__margin=0.2)
    train.train_and_evaluate(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run", clean=False) as checkpoints:
        assert checkpoints.restore_prototypes().shape == (16, 3, 16)
    source = ("--source", faces / "images", "--sub_centres", "--threshold", 0.9)
    out = run(*source, "--workdir", tmp_path / "run", "--out", tmp_path / "audit")
    noisy = list(name_lists.read_names(out / "noisy.tsv"))
    (line,) = (x for x in (out / "audit.md").read_text().splitlines() if "centre" in x)
    # Only the people that were trained on are judged.
    assert line.endswith(f"their identity: {len(noisy)} of {9 * 6}")
    store = out / "embeddings" / "images"
    with pytest.raises(ValueError, match="--sub_centres needs --workdir"):
        run(*source, "--embeddings", store, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()  # before any work
    # Of another size than the embeddings of what they are compared with.
    np.save(tmp_path / "small.npy", np.ones((144, 8), np.float32))
    with pytest.raises(ValueError, match=r"of 8 numbers, those of images have 16"):
        run(
            *source[:2],
            *("--embeddings", store, "--threshold", 0.9, "--out", tmp_path / "c"),
            *("--against", f"{faces / 'images'};{faces / 'pairs.txt'}"),
            *("--against_embeddings", tmp_path / "small.npy"),
        )
