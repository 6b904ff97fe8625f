"""Models on their own: folders, cards, starting from one, verification."""

import io
import json
import logging
import shutil
import zipfile

import jax
import numpy as np
import pytest
import toy
from networks import SIZE, call, images, made
from PIL import Image
from test_train import small_config

from hyperface_jax import (
    convert,
    evaluate,
    export,
    model,
    model_card,
    verify,
)
from hyperface_jax.backbones.torch_names import to_torch
from hyperface_jax.interop import torch_file
from hyperface_jax.training import run_evaluation, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of four steps, its faces)."""
    folder = tmp_path_factory.mktemp("faces")
    toy.write_folder(folder / "images", people=24, images=6)
    toy.write_pairs(folder / "pairs.txt", people=12, folds=3)
    work = tmp_path_factory.mktemp("run")
    train.train_and_evaluate(small_config(folder, train__steps=4), work)
    return work, folder


def test_a_folder_gives_back_the_model(tmp_path):
    first = made()
    again = model.load(model.save(first, tmp_path / "m"))
    np.testing.assert_array_equal(first.embed(images()), again.embed(images()))
    assert again.network == first.network
    assert again.card["weights_licence"] == "ours"
    text = (tmp_path / "m" / model_card.MARKDOWN).read_text()
    assert "None was calibrated." in text


def test_a_damaged_folder_is_named(tmp_path):
    folder = model.save(made(), tmp_path / "m")
    description = json.loads((folder / model.DESCRIPTION).read_text())

    def fails(message):
        with pytest.raises(ValueError, match=message) as error:
            model.load(folder)
        assert "\n" not in str(error.value)

    def changed(**values):
        (folder / model.DESCRIPTION).write_text(json.dumps(description | values))

    changed(fingerprint="0" * 16)
    fails("fingerprint .* says 0000000000000000")
    changed(format=9)
    fails("format 9, expected 2; convert again")
    changed(network=description["network"] | {"name": "sfnet10_bn"})
    fails("arrays do not fit sfnet10_bn, 32 pixels: missing batch_stats/layer2_1")
    changed(network=description["network"] | {"width": 8})
    fails(r"is \[128, 8\], sfnet4_bn, 32 pixels expects \[256, 8\]")
    changed(network={})
    fails("damaged")
    changed()
    data = (folder / model.WEIGHTS).read_bytes()
    (folder / model.WEIGHTS).write_bytes(data[: len(data) // 2])
    fails("weights.npz: cannot be read")
    with np.load(io.BytesIO(data)) as arrays:
        weights = dict(arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 2000)  # as if it had gigabytes
        np.savez(folder / model.WEIGHTS, **weights)
    assert b"PK\x06\x06" in (folder / model.WEIGHTS).read_bytes()
    assert model.load(folder).network
    np.savez_compressed(folder / model.WEIGHTS, **weights)
    fails("weights.npz: .* is compressed, expected plain")
    name = next(name for name in weights if name.endswith("/var"))
    np.savez(folder / model.WEIGHTS, **weights | {name: -weights[name]})
    fails(f"{name} has negative numbers in it, expected variances")
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 40):
        (folder / model.WEIGHTS).write_bytes(data[:at] + b"\x7f" + data[at + 1 :])
        refusal = toy.refusal(lambda: model.load(folder))
        assert not refusal or str(folder) in refusal
    (folder / model.WEIGHTS).write_bytes(data)
    card = json.loads((folder / model_card.JSON).read_text())
    measured = {"name": "verification", "test_set": "x", "counts": {}}
    measured["metrics"] = {"threshold@far=1e-3": 1.0000000000000004}
    card |= {"thresholds": model_card.thresholds({"protocols": [measured]})}
    (folder / model_card.JSON).write_text(json.dumps(card))
    assert model.load(folder).card["thresholds"][0]["cosine"] == 1
    row = {"cosine": 0.5, "far": 0.1, "calibrated_on": "x", "impostor_pairs": 9}
    for broken in (None, "x", [row], [row | {"far": None}], [[]]):
        (folder / model_card.JSON).write_text(json.dumps(card | {"thresholds": broken}))
        fails("model_card.json: damaged")
    (folder / model_card.JSON).write_text("[" * 100_000)
    fails("model_card.json: cannot be read")
    with pytest.raises(ValueError, match=r"neither model.json nor config.json in it"):
        model.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [],
        lambda c: c | {"backbone": c["backbone"] | {"embedding_dim": "zzz"}},
        lambda c: c | {"backbone": c["backbone"] | {"value_range": None}},
        lambda c: c | {"head": {"margin": {"a": 1}}},
        lambda c: c | {"head": 3},
        lambda c: c | {"nothing": {"of": "it"}},
    ],
)
def test_a_config_that_somebody_changed_is_one_line(run, tmp_path, change):
    work, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    facts = json.loads((copy / "config.json").read_text())
    changed = change(facts["config"])
    (copy / "config.json").write_text(json.dumps(facts | {"config": changed}))
    with pytest.raises(ValueError, match=r"config\.json") as error:
        model.load(copy)
    assert "\n" not in str(error.value)


def test_a_loss_that_has_no_name_here_keeps_its_network(run, tmp_path):
    """A margin of the user's own was trained with, in another process."""
    work, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    facts = json.loads((copy / "config.json").read_text())
    facts["config"]["head"]["loss"] = "steep"
    (copy / "config.json").write_text(json.dumps(facts))
    assert model.load(copy).card["training"]["loss"] == "steep"
    with pytest.raises(ValueError, match="loss is 'steep', expected one of"):
        run_evaluation.evaluate_workdir(None, copy)


def test_a_workdir_is_a_model_without_its_data(run, tmp_path):
    work, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["data"]["path"] = "/nowhere"
    (copy / "config.json").write_text(json.dumps(config))
    found = model.load(copy)
    assert found.image_size == 32
    assert found.card["training"]["steps"] == 4
    assert found.card["training"]["identities"] == 9
    assert found.card["training"]["licence"] == model_card.UNKNOWN
    assert found.card["evaluation"]
    assert found.embed(images(2)).shape == (2, 16)
    card = json.loads((work / model_card.JSON).read_text())
    assert card["thresholds"][0]["impostor_pairs"] == 12
    assert card["thresholds"][0]["calibrated_on"] == "test/verification"
    with pytest.raises(ValueError, match=r"no checkpoint has log\.best_metric = ''"):
        model.load(copy, "best")


def test_training_starts_from_a_model(run, tmp_path, caplog):
    """The network is the model's, the loss the config's; the licence goes along."""
    _, faces = run
    start = made(embedding_dim=16, color_order="BGR", value_range=(0.0, 1.0))
    folder = model.save(start, tmp_path / "m")
    config = small_config(
        faces,
        init_from=str(folder),
        backbone__name="sfnet10",
        train__steps=1,
        learning_rate__peak=1e-9,
        head__loss="sphereface2_c",
        head__margin=-1.0,
    )
    caplog.set_level(logging.INFO, "hyperface_jax")
    state = train.train_and_evaluate(config, tmp_path / "run")
    assert "backbone.name is sfnet4_bn, the model's, instead of sfnet10" in caplog.text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.params["backbone"],
        start.params,
    )
    again = model.load(tmp_path / "run")
    assert again.network["color_order"] == "BGR"
    assert tuple(again.network["value_range"]) == (0, 1)
    assert again.card["weights_licence"] == "ours"
    assert again.card["training"]["started_from"] == str(folder)
    wrong = small_config(faces, init_from=str(folder), data__image_size=48)
    with pytest.raises(ValueError, match=r"data.image_size is 48, expected 32: init_f"):
        train.train_and_evaluate(wrong, tmp_path / "wrong")
    # The run has its network: it is evaluated and goes on without the model.
    shutil.rmtree(folder)
    results = run_evaluation.evaluate_workdir(config, tmp_path / "run")
    assert results[0].metrics["auc"] > 0
    with config.unlocked():
        config.train.steps = 2
    state = train.train_and_evaluate(config, tmp_path / "run")
    assert int(state.step) == 2


def test_a_card_says_nothing_of_other_weights(run, tmp_path):
    """Thresholds of a results.json hold for the weights that it measured, no others."""
    work, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    assert model.load(copy).card["thresholds"]
    results = json.loads((copy / "results.json").read_text())
    assert results["embedding"] == {
        "weights": model.load(copy).fingerprint,
        "mirror_image_added": True,
        "jitter": 0.0,
    }
    results["embedding"]["weights"] = "0" * 16
    (copy / "results.json").write_text(json.dumps(results))
    card = model.load(copy).card
    assert card["thresholds"] == []
    assert card["evaluation"] == []


def test_runs_and_models_do_not_share_a_folder(run, tmp_path):
    work, faces = run
    first = made(name="iresnet18", width=8)
    params = (first.backbone, SIZE, first.params, first.batch_stats)
    torch_file.write(tmp_path / "x.pth", to_torch(*params))
    with pytest.raises(ValueError, match="holds a run, expected another folder"):
        call(convert, tmp_path / "x.pth", "--out", work)
    model.save(made(), tmp_path / "m")
    with pytest.raises(ValueError, match="holds another model"):
        call(convert, tmp_path / "x.pth", "--out", tmp_path / "m")
    with pytest.raises(ValueError, match="holds a model, expected another folder"):
        train.train_and_evaluate(small_config(faces), tmp_path / "m")


def test_weights_that_are_not_finite_are_named(tmp_path):
    first = made(name="iresnet18", width=8)
    weights = to_torch(first.backbone, SIZE, first.params, first.batch_stats)
    weights["fc.bias"] = weights["fc.bias"] * np.nan
    torch_file.write(tmp_path / "x.pth", weights)
    with pytest.raises(ValueError, match="params/fc/bias has NaN or infinity"):
        call(convert, tmp_path / "x.pth", "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_without_its_card_has_a_poor_one(tmp_path):
    folder = model.save(made(), tmp_path / "m")
    (folder / model_card.JSON).unlink()
    file = call(export, folder, "--out", tmp_path / "x.npz")
    assert file.exists()
    for option in ("--color_order=BGR", "--prototypes", "--licence=MIT"):
        name = option.partition("=")[0]
        with pytest.raises(ValueError, match=f"{name} with .*expected a PyTorch file"):
            call(convert, folder, "--out", tmp_path / "y.pth", option)
    card = json.loads((tmp_path / "x.npz.model_card.json").read_text())
    assert card["weights_licence"] == model_card.UNKNOWN
    (folder / model.DESCRIPTION).write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected an object"):
        model.load(folder)


def test_a_model_is_evaluated_and_its_card_gets_the_thresholds(
    run, tmp_path, monkeypatch, caplog
):
    _, faces = run
    folder = model.save(made(), tmp_path / "m")
    arguments = [
        "--workdir",
        folder,
        "--set",
        f"{faces / 'images'};{faces / 'pairs.txt'}",
    ]
    p = evaluate.parser().parse_args(
        [*map(str, arguments), "--protocols", "verification"]
    )
    results = evaluate.evaluate_files(p)
    assert results[0].metrics["auc"] > 0
    card = model.load(folder).card
    assert card["weights_licence"] == "ours"
    assert card["thresholds"]
    other = str(tmp_path / "parts")
    for part in ("1/2", "2/2"):
        more = ["--out", other, "--part", part]
        p = evaluate.parser().parse_args([*map(str, arguments), *more])
        assert evaluate.evaluate_files(p) == []
    more = ["--protocols", "verification", "--out", other]
    p = evaluate.parser().parse_args([*map(str, arguments), *more])
    assert evaluate.evaluate_files(p)[0].metrics == results[0].metrics

    def not_ours(*_):
        raise ValueError("model_card.md: cannot be written (Permission denied)")

    monkeypatch.setattr(model_card, "write", not_ours)
    assert evaluate.evaluate_files(p)[0].metrics == results[0].metrics
    assert "denied); its card does not say what was measured" in caplog.text
    with pytest.raises(ValueError, match=r"--set missing: .* is a model without data"):
        evaluate.evaluate_files(
            evaluate.parser().parse_args(["--workdir", str(folder)])
        )


def test_verify_gives_a_score_its_thresholds_and_the_pictures(run, tmp_path, caplog):
    work, faces = run
    one, two = sorted((faces / "images").rglob("*.jpg"))[:2]
    caplog.set_level("INFO")
    found = call(verify, work, one, two, "--out", tmp_path / "pair.png")
    state = model.load(work)
    crops = np.stack([np.asarray(Image.open(p)) for p in (one, two)])
    a, b = np.asarray(state.embed(crops)) + np.asarray(state.embed(crops[:, :, ::-1]))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found["score"] == pytest.approx(cosine, abs=1e-3)
    assert found["thresholds"][0]["impostor_pairs"] == 12
    assert Image.open(tmp_path / "pair.png").size == (64, 32)
    assert "a score is no identity" in caplog.text
    assert "same person" not in caplog.text
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    results = json.loads((copy / "results.json").read_text())
    for protocol in results["protocols"]:
        protocol["name"] = "templates_verification"
    (copy / "results.json").write_text(json.dumps(results))
    assert call(verify, copy, one, two)["thresholds"] == []  # of pooled templates
    with pytest.raises(ValueError, match=r"gone.jpg: No such file"):
        call(verify, work, one, tmp_path / "gone.jpg")
