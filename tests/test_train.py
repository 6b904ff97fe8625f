"""Whole runs on small data: resume, contradictions, damage, and that it learns."""

import json
import shutil

import jax
import numpy as np
import pytest
import record_files
import toy

from hyperface_jax import config as config_lib
from hyperface_jax import evaluate, workdir
from hyperface_jax.data import pipeline
from hyperface_jax.evaluation import embedding_files
from hyperface_jax.training import metric_writer, run_evaluation, train
from hyperface_jax.training.checkpoint import FOLDER

core = pytest.mark.core  # checkpoints and one run from end to end


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    toy.write_folder(folder / "images", people=24, images=6)
    toy.write_pairs(folder / "pairs.txt", people=12, folds=3)
    return folder


def small_config(faces, **updates):
    c = config_lib.default_config()
    c.data.name = "face_folder"
    c.data.config = "toy"
    c.data.path = str(faces / "images")
    c.data.pairs_path = str(faces / "pairs.txt")
    c.data.data_dir = str(faces / "tfds")
    c.data.image_size = 32
    c.data.dev_fraction = 0.25
    c.backbone.name = "sfnet4_bn"
    c.backbone.width = 4
    c.backbone.embedding_dim = 16
    c.head.loss_weight = 10.0
    c.head.class_multiple = 8
    c.train.batch_size = 16
    c.train.steps = 6
    c.log.every_steps = 2
    c.log.checkpoint_every_steps = 3
    c.log.tensorboard = False
    c.eval.batch_size = 16
    c.report.hardest = 1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in updates.items()})
    return c.lock()


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory):
    """A run of six steps in one go."""
    folder = tmp_path_factory.mktemp("run")
    return train.train_and_evaluate(small_config(faces), folder), folder


def assert_bit_equal(a, b):
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get((a.params, a.batch_stats, a.opt_state, a.step)),
        jax.device_get((b.params, b.batch_stats, b.opt_state, b.step)),
    )


def test_embeddings_of_a_run_are_stored_and_reused(finished, tmp_path):
    """The command line of evaluate repeats the run's own results, from parts."""
    _, folder = finished
    out = tmp_path / "out"
    store = tmp_path / "embeddings"
    arguments = ["--workdir", folder, "--out", out, "--embeddings", store]
    arguments += ["--protocols", "verification,held_out_threshold", "--bootstrap", 0]

    def evaluate_it(*more):
        return evaluate.evaluate_files(
            evaluate.parser().parse_args([*map(str, (*arguments, *more))])
        )

    bins = record_files.write_bin(tmp_path / "lfw.bin", pairs=20)
    assert evaluate_it("--set", bins, "--part", "2/2") == []
    results = evaluate_it("--set", bins)
    assert [r.key for r in results] == ["lfw/verification"]
    assert embedding_files.open_embeddings(store).views.shape == (40, 2, 16)
    before = (store / "embeddings.npy").stat().st_mtime_ns
    again = evaluate_it("--set", bins)
    assert again[0].metrics == results[0].metrics
    assert (store / "embeddings.npy").stat().st_mtime_ns == before
    # Without --set and --embeddings: the run's own test set, as after training.
    own = evaluate.evaluate_files(
        evaluate.parser().parse_args(["--workdir", str(folder), "--out", str(out)])
    )
    saved = json.loads((folder / workdir.RESULTS).read_text())["metrics"]
    for result in own:
        for key, value in result.metrics.items():
            assert value == pytest.approx(saved[f"{result.key}/{key}"], abs=1e-6)
    with pytest.raises(ValueError, match="--part is '3/2', expected I/N"):
        evaluate_it("--set", bins, "--part", "3/2")


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_an_insightface_folder_trains_as_it_is(tmp_path, cache):
    """Nothing is typed: classes, images and the .bin sets beside the records."""
    source = record_files.write_insightface(tmp_path / "ms1m", people=6, images=8)
    record_files.write_bin(source / "lfw.bin", pairs=20)
    record_files.write_bin(source / "agedb_30.bin", pairs=20, kind="ndarray")
    config = small_config(
        tmp_path,
        data__name="ms1m",
        data__path=str(source),
        data__pairs_path="",
        data__fold=0,
        data__cache=cache,
        train__steps=2,
    )
    train.train_and_evaluate(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / workdir.RESULTS).read_text())
    assert results["summary"]["Training set"] == "ms1m: 6 people, 48 images"
    assert {key.rsplit("/", 1)[0] for key in results["metrics"]} == {
        "agedb_30/verification",
        "lfw/verification",
        "all/combined",
    }
    table = (tmp_path / "run" / workdir.TABLE_MD).read_text()
    assert "lfw<br>k-fold acc." in table


def test_a_run_leaves_everything(finished):
    _, folder = finished
    for name in (workdir.CONFIG, workdir.RESULTS, workdir.REPORT, workdir.SCORES):
        assert (folder / name).stat().st_size > 0
    results = json.loads((folder / workdir.RESULTS).read_text())
    assert 0 <= results["metrics"]["test/verification/kfold_accuracy"] <= 1
    assert results["step"] == 6
    rows = metric_writer.read_metrics(folder)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert {
        "loss",
        "margin",
        "target_angle",
        "grad_norm_backbone",
        "images_per_second",
        "data_wait_share",
        "magnitude_std",
        "learning_rate",
    } <= rows[0].keys()
    assert not list(folder.glob("*.tmp"))


@core
def test_rows_in_a_bucket_are_written_once_a_minute(tmp_path, monkeypatch):
    """It takes no appending: each log line wrote all of a run's lines again."""
    written = []
    monkeypatch.setattr(metric_writer.workdir, "is_bucket", lambda _: True)
    monkeypatch.setattr(
        metric_writer.workdir,
        "write_text",
        lambda path, text: (written.append(text), path.write_text(text)),
    )
    rows = metric_writer.JsonLines(tmp_path)
    for step in range(50):
        rows.write(step, {"loss": 1.0})
    assert not written
    monkeypatch.setattr(metric_writer, "COPY_SECONDS", 0.0)
    rows.write(50, {"loss": 1.0})
    assert len(written) == 1
    monkeypatch.setattr(metric_writer, "COPY_SECONDS", 60.0)
    rows.write(51, {"loss": 1.0})
    rows.close()
    assert [row["step"] for row in metric_writer.read_metrics(tmp_path)] == [*range(52)]
    metric_writer.JsonLines(tmp_path).drop_after(51)
    assert len(written) == 2  # nothing to drop, nothing written
    path = tmp_path / metric_writer.FILE
    path.write_text(path.read_text()[:-1])  # a kill before the newline
    metric_writer.JsonLines(tmp_path).drop_after(51)
    assert path.read_text().endswith("}\n")
    metric_writer.JsonLines(tmp_path).drop_after(20)
    assert len(metric_writer.read_metrics(tmp_path)) == 21


def test_k_steps_restart_k_steps_equals_2k_steps(faces, finished, tmp_path, caplog):
    whole, _ = finished
    train.train_and_evaluate(small_config(faces, train__steps=3), tmp_path)
    with caplog.at_level("INFO", "hyperface_jax"):
        resumed = train.train_and_evaluate(
            small_config(faces, data__threads=1), tmp_path
        )
    assert_bit_equal(whole, resumed)
    assert "resuming" in caplog.text
    assert "extended: train.steps was 3 and is 6" in caplog.text
    steps = [row["step"] for row in metric_writer.read_metrics(tmp_path)]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_not_trained_again(faces, finished):
    state, folder = finished
    again = train.train_and_evaluate(small_config(faces), folder)
    assert_bit_equal(state, again)


def test_a_run_cannot_become_shorter_than_it_is(faces, finished):
    _, folder = finished
    before = (folder / workdir.CONFIG).read_text()
    with pytest.raises(ValueError, match=r"train.steps is 2, but the run .* at step 6"):
        train.train_and_evaluate(small_config(faces, train__steps=2), folder)
    assert (folder / workdir.CONFIG).read_text() == before


def test_the_best_checkpoint_is_kept_and_evaluated(faces, tmp_path, caplog):
    key = "test/verification/kfold_accuracy"
    more = dict(eval__every_steps=2, log__checkpoint_every_steps=2, log__keep_last=1)
    config = small_config(faces, log__best_metric=key, **more)
    with caplog.at_level("INFO", "hyperface_jax"):
        train.train_and_evaluate(config, tmp_path)
    assert f"step 2: {key} = " in caplog.text
    rows = metric_writer.read_metrics(tmp_path)
    scores = {row["step"]: row[key] for row in rows if key in row}
    best = max(scores, key=lambda step: (scores[step], step))
    facts = json.loads((tmp_path / workdir.RESULTS).read_text())["summary"]
    assert facts["Best checkpoint"].startswith(f"step {best} by {key}")
    with config.unlocked():
        config.eval.checkpoint = "best"
    run_evaluation.evaluate_workdir(config.lock(), tmp_path)
    found = json.loads((tmp_path / workdir.RESULTS).read_text())
    assert found["step"] == best
    assert found["metrics"][key] == pytest.approx(scores[best], abs=1e-6)
    for checkpoint, step in (("best", best), ("last", 6)):
        arguments = ("--workdir", tmp_path, "--checkpoint", checkpoint)
        out = ("--out", tmp_path / checkpoint, "--protocols", "verification")
        p = evaluate.parser().parse_args([*map(str, (*arguments, *out))])
        (result,) = evaluate.evaluate_files(p)
        assert result.metrics["kfold_accuracy"] == pytest.approx(scores[step], abs=1e-6)


def test_a_best_metric_that_nobody_measures_is_said(faces, tmp_path, caplog):
    config = small_config(
        faces, log__best_metric="test/acc", eval__every_steps=3, train__steps=3
    )
    train.train_and_evaluate(config, tmp_path)
    assert "log.best_metric is test/acc, which is not measured" in caplog.text
    with config.unlocked():
        config.eval.checkpoint = "best"
    with pytest.raises(ValueError, match=r"eval.checkpoint is 'best', but no check"):
        run_evaluation.evaluate_workdir(config.lock(), tmp_path)


def test_an_unreadable_image_of_a_tested_person_ends_nothing(faces, tmp_path):
    shutil.copytree(faces / "images", tmp_path / "images")
    bad = tmp_path / "images" / "Person_00" / "Person_00_0005.jpg"  # in no pair
    bad.write_bytes(b"junk")
    config = small_config(faces, train__steps=1, log__best_metric="")
    with config.unlocked():
        config.data.name, config.data.path = "faces", str(tmp_path / "images")
    train.train_and_evaluate(config.lock(), tmp_path / "run")
    found = json.loads((tmp_path / "run" / workdir.RESULTS).read_text())
    counts = {row["name"]: row["counts"] for row in found["protocols"]}
    assert counts["open_set"]["unreadable_images"] == 1
    assert counts["open_set"]["genuine_pairs"] == 11 * 15 + 10


def test_training_on_nothing_is_an_error(faces, tmp_path):
    shutil.copytree(faces / "images", tmp_path / "images")
    config = small_config(faces, train__steps=2)
    with config.unlocked():
        config.data.name, config.data.path = "faces", str(tmp_path / "images")
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.write_bytes(b"junk")
    with pytest.raises(
        ValueError, match=r"step 2: no image of 2 batches in a row .* not an imag"
    ):
        train.train_and_evaluate(config.lock(), tmp_path / "run")


def test_a_few_batches_without_an_image_end_nothing(faces, tmp_path, monkeypatch):
    read, empty = pipeline.BatchReader.__call__, []

    def reads(self, indices):
        batch = read(self, indices)
        if len(empty) < 3:
            empty.append(batch["weight"])
            batch["weight"][:] = 0
        return batch

    monkeypatch.setattr(pipeline.BatchReader, "__call__", reads)
    state = train.train_and_evaluate(small_config(faces, train__steps=5), tmp_path)
    assert len(empty) == 3
    assert int(state.step) == 5


def test_another_config_in_the_same_workdir_is_refused(faces, finished):
    _, folder = finished
    with pytest.raises(ValueError, match=r"head.margin was 1.4 and is 1.5"):
        train.train_and_evaluate(small_config(faces, head__margin=1.5), folder)


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(
    faces, finished, tmp_path, monkeypatch
):
    _, folder = finished
    shutil.copy(folder / workdir.CONFIG, tmp_path)
    config = small_config(faces, head__margin=1.5, train__steps=1)
    monkeypatch.chdir(tmp_path.parent)
    train.train_and_evaluate(config, tmp_path.name)  # relative, as in the README
    run_evaluation.evaluate_workdir(None, tmp_path.name)
    saved = json.loads((tmp_path / workdir.CONFIG).read_text())["config"]
    assert saved["head"]["margin"] == 1.5


def test_other_data_under_the_same_config_is_refused(finished, tmp_path_factory):
    _, folder = finished
    other = tmp_path_factory.mktemp("other")
    toy.write_folder(other / "images", people=25, images=6)
    toy.write_pairs(other / "pairs.txt", people=12, folds=3)
    config = small_config(other)
    with config.ignore_type():
        config.head.scale = json.loads((folder / "config.json").read_text())["config"][
            "head"
        ]["scale"]
    with pytest.raises(ValueError, match="a run on other data"):
        train.train_and_evaluate(config, folder)


def test_evaluating_a_workdir_repeats_its_numbers(finished):
    _, folder = finished
    before = json.loads((folder / workdir.RESULTS).read_text())["metrics"]
    run_evaluation.evaluate_workdir(None, folder)
    assert json.loads((folder / workdir.RESULTS).read_text())["metrics"] == before


def damaged_copy(finished, tmp_path):
    _, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy, copy / FOLDER / "6" / "state"


def test_a_truncated_checkpoint_is_one_line(faces, finished, tmp_path):
    copy, state = damaged_copy(finished, tmp_path)
    for file in state.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"checkpoint .*/6: cannot be read"):
        train.train_and_evaluate(small_config(faces), copy)


@core
def test_a_checkpoint_of_another_network_names_the_array(faces, finished, tmp_path):
    copy, _ = damaged_copy(finished, tmp_path)
    (copy / workdir.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"is \(\(\d.*expected \(\(\d"):
        train.train_and_evaluate(small_config(faces, backbone__embedding_dim=24), copy)


@core
def test_a_non_finite_loss_stops_the_run_and_leaves_no_nan(faces, tmp_path):
    config = small_config(faces, learning_rate__peak=1e30, train__steps=20)
    with pytest.raises(train.NonFiniteError, match="not finite at step") as error:
        train.train_and_evaluate(config, tmp_path)
    assert "there is no checkpoint" in str(error.value)
    assert not [p for p in (tmp_path / FOLDER).iterdir() if p.name.isdigit()]


def test_a_read_only_or_full_workdir(faces, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir .*file.*cannot be written to"):
        train.train_and_evaluate(small_config(faces), tmp_path / "file" / "run")


def test_batch_must_divide_over_the_devices(faces, tmp_path):
    with pytest.raises(
        ValueError, match=r"train.batch_size is 18, expected a multiple of the 4"
    ):
        train.train_and_evaluate(small_config(faces, train__batch_size=18), tmp_path)


@core
def test_it_learns(faces, tmp_path):
    """SphereFace-R tells apart people whom it has never seen."""
    config = small_config(
        faces,
        train__steps=120,
        log__every_steps=60,
        log__checkpoint_every_steps=60,
        eval__every_steps=60,
        log__best_metric="test/held_out_threshold/accuracy",
        train__ema_decay=0.9,
        learning_rate__warmup_steps=10,
    )
    train.train_and_evaluate(config, tmp_path)
    results = json.loads((tmp_path / workdir.RESULTS).read_text())
    assert results["metrics"]["test/held_out_threshold/accuracy"] >= 0.85
    assert results["metrics"]["test/verification/auc"] >= 0.95
    assert "Best checkpoint" in results["summary"]
    rows = metric_writer.read_metrics(tmp_path)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert "test/verification/kfold_accuracy" in rows[-1]
