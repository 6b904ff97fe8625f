"""Models on their own: folders, conversion, export, embedding, verification."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from PIL import Image
from test_backbones import filled, oracle_weights
from test_train import small_config

from hyperface_jax import (
    audit,
    convert,
    embed,
    evaluate,
    export,
    model,
    model_card,
    search,
    verify,
)
from hyperface_jax.backbones import create_backbone
from hyperface_jax.backbones.torch_names import to_torch
from hyperface_jax.evaluation import embedding_files, forward, parquet, stored
from hyperface_jax.interop import torch_file
from hyperface_jax.training import run_evaluation, train

NETWORK = {
    "name": "sfnet4_bn",
    "width": 4,
    "embedding_dim": 8,
    "color_order": "RGB",
    "value_range": (-1.0, 1.0),
    "batch_norm_epsilon": 1e-5,
}
SIZE = 32


def made(**network):
    network = NETWORK | network
    params, stats = filled(create_backbone(**network), SIZE)
    card = model_card.of_import(network, SIZE, {"file": "none", "licence": "ours"})
    return model.create(network, params, stats, image_size=SIZE, card=card)


def images(count=3, size=SIZE, seed=0):
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_images(folder, count=5, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images(count, size)):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder


def call(command, *arguments, **more):
    work = getattr(command, command.__name__.rpartition(".")[2])
    return work(command.parser().parse_args([*map(str, arguments)]), **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of four steps, its faces)."""
    folder = tmp_path_factory.mktemp("faces")
    toy.write_folder(folder / "images", people=24, images=6)
    toy.write_pairs(folder / "pairs.txt", people=12, folds=3)
    work = tmp_path_factory.mktemp("run")
    train.train_and_evaluate(small_config(folder, train__steps=4), work)
    return work, folder


# --- folders --------------------------------------------------------------------------


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


def test_embeddings_of_two_networks_are_not_compared(tmp_path):
    write_images(tmp_path / "faces")
    source = ("--source", tmp_path / "faces", "--out")
    for name, order in (("a", "RGB"), ("b", "BGR")):
        model.save(made(color_order=order), tmp_path / name)
        for kind in (".npz", ".parquet", ""):
            call(embed, tmp_path / name, *source, tmp_path / f"e_{name}{kind}")
    call(embed, tmp_path / "a", *source, tmp_path / "plain.npz", "--no_flip")

    def found(gallery, probes):
        files = ("--gallery", tmp_path / gallery, "--probes", tmp_path / probes)
        return call(search, *files, "--top", 1, "--out", tmp_path / "f.tsv")

    for kind in (".npz", ".parquet", ""):
        same = found("e_a.npz", f"e_a{kind}")
        assert same.rows[:, 0].tolist() == list(range(5))
        with pytest.raises(ValueError, match=r"e_b.*: made by network .*e_a"):
            found("e_a.npz", f"e_b{kind}")
    with pytest.raises(ValueError, match="mirror image left out"):
        found("e_a.npz", "plain.npz")
    # A file of `embed` is read, not taken for a folder to go on with.
    faces = toy.write_folder(tmp_path / "people", people=3, images=2)
    out = tmp_path / "people.npz"
    call(embed, tmp_path / "a", "--source", faces, "--out", out)
    more = ("--source", faces, "--threshold", 0.9, "--embeddings", out)
    where = ("--out", tmp_path / "audit")
    call(audit, *more, *where, "--workdir", tmp_path / "a")
    assert (tmp_path / "audit" / "outliers.tsv").exists()
    with pytest.raises(ValueError, match=r"people.npz: made by network .*the model by"):
        call(audit, *more, *where, "--workdir", tmp_path / "b")
    # Distractors, too, before anything is embedded.
    crowd = ("--set", faces, "--distractors", tmp_path / "e_b.npz")
    crowd += ("--protocols", "distractors", "--out", tmp_path / "report")
    for source in (("--embeddings", out), ("--workdir", tmp_path / "a")):
        p = evaluate.parser().parse_args([*map(str, (*crowd, *source))])
        with pytest.raises(ValueError, match=r"distractors: made by .*people"):
            evaluate.evaluate_files(p)
    assert not (tmp_path / "report" / "embeddings").exists()
    config = small_config(tmp_path, eval__distractors=str(tmp_path / "e_b.npz"))
    with pytest.raises(ValueError, match=r"e_b.npz: made by network .* training will"):
        train.train_and_evaluate(config, tmp_path / "run")


def test_a_model_without_its_card_has_a_poor_one(tmp_path):
    folder = model.save(made(), tmp_path / "m")
    (folder / model_card.JSON).unlink()
    file = call(export, folder, "--out", tmp_path / "x.npz")
    assert file.exists()
    for option in ("--color_order=BGR", "--prototypes", "--licence=MIT"):
        name = option.partition("=")[0]
        with pytest.raises(ValueError, match=f"{name} with .*expected a PyTorch file"):
            call(convert, folder, "--out", tmp_path / "y.pth", option)
    card = json.loads((tmp_path / "x.model_card.json").read_text())
    assert card["weights_licence"] == model_card.UNKNOWN
    (folder / model.DESCRIPTION).write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected an object"):
        model.load(folder)


# --- conversion -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["insightface", "magface"])
def test_conversion_keeps_the_embeddings(layout, shared, tmp_path):
    """IResNet-18's own output from its own file, and back under its names."""
    facts = json.loads(shared("oracles/backbones.json").read_text())
    facts = facts["insightface/iresnet18"]
    weights = oracle_weights(facts["parameters"], set(facts["prelu"]))
    content, name = weights, "backbone.pth"
    if layout == "magface":
        content = {"features.module." + k: v for k, v in weights.items()}
        content["parallel_fc.weight"] = np.ones((7, 512), np.float32)
        content, name = {"state_dict": content, "epoch": 3}, "magface.pth"
    torch_file.write(tmp_path / name, content)
    folder = call(convert, tmp_path / name, "--out", tmp_path / "m", "--licence", "MIT")
    found = model.load(folder)
    assert found.network["name"] == "iresnet18"
    assert found.card["weights_licence"] == "MIT"
    assert not (folder / convert.PROTOTYPES).exists()
    pixels = np.random.RandomState(0).uniform(-1, 1, (2, 3, 112, 112))
    rgb = pixels.transpose(0, 2, 3, 1).astype(np.float32)
    if layout == "magface":  # took BGR in [0, 1]: give it what becomes the oracle's
        assert found.network["color_order"] == "BGR"
        assert found.network["batch_norm_epsilon"] == 2e-5
        rgb = rgb[..., ::-1] * 2 - 1
    embeddings, _ = found.backbone.apply(
        found.params, found.batch_stats, rgb, train=False
    )
    oracle = np.load(shared("oracles/backbones.npz"))["insightface/iresnet18"]
    error = np.abs(embeddings - oracle).max() / np.abs(oracle).max()
    assert error < 1e-4
    if layout == "magface":
        with pytest.raises(
            ValueError, match=r"on pixels in \[0, 1\], .* expected \[-1"
        ):
            call(convert, folder, "--out", tmp_path / "back.pth")
    more = ["--as_is"] if layout == "magface" else []
    back = call(convert, folder, "--out", tmp_path / "back.pth", *more)
    again = torch_file.read(back)
    for key, value in weights.items():
        np.testing.assert_array_equal(again[key], value)
    # The card beside it says what the file cannot.
    twice = model.load(call(convert, back, "--out", tmp_path / "twice"))
    assert twice.network == found.network
    assert twice.card["weights_licence"] == "MIT"
    # ... as long as it is that file's: of other weights in its place it says nothing.
    torch_file.write(back, {k: v * 2 for k, v in weights.items()})
    other = model.load(call(convert, back, "--out", tmp_path / "other"))
    assert other.network["color_order"] == "RGB"
    assert other.card["weights_licence"] == model_card.UNKNOWN


def test_a_file_for_pytorch_takes_rgb(tmp_path):
    """The same function as the model's, which takes BGR and has its own epsilon."""
    first = made(name="iresnet18", width=8, color_order="BGR", batch_norm_epsilon=1e-3)
    folder = model.save(first, tmp_path / "m")
    file = call(convert, folder, "--out", tmp_path / "x.pth")
    (tmp_path / "x.model_card.json").rename(tmp_path / "elsewhere.json")
    again = model.load(call(convert, file, "--out", tmp_path / "again"))
    assert again.network["color_order"] == "RGB"
    assert again.network["batch_norm_epsilon"] == 1e-5
    want = np.asarray(first.embed(images()))
    error = np.abs(again.embed(images()) - want).max() / np.abs(want).max()
    assert error < 1e-5


def test_another_colour_order_is_another_model(tmp_path):
    """Its embeddings are not those of the first, though the weights are."""
    first, second = made(), made(color_order="BGR")
    np.testing.assert_array_equal(
        jax.tree.leaves(first.params)[0], jax.tree.leaves(second.params)[0]
    )
    assert first.fingerprint != second.fingerprint
    model.save(first, tmp_path / "m")
    write_images(tmp_path / "faces")
    arguments = ("--source", tmp_path / "faces", "--out", tmp_path / "kept")
    call(embed, tmp_path / "m", *arguments)
    call(embed, tmp_path / "m", *arguments)
    model.save(second, tmp_path / "m")
    with pytest.raises(ValueError, match="kept holds embeddings with other weights"):
        call(embed, tmp_path / "m", *arguments)


def test_what_cannot_be_converted_is_said(tmp_path):
    weights = made(name="sfnet4").backbone
    params, stats = filled(weights, SIZE)
    good = to_torch(weights, SIZE, params, stats)

    def fails(content, message, *more):
        torch_file.write(tmp_path / "x.pth", content)
        with pytest.raises(ValueError, match=message) as error:
            call(convert, tmp_path / "x.pth", "--out", tmp_path / "m", *more)
        assert "\n" not in str(error.value)
        assert "x.pth" in str(error.value)

    fails(good, "fit sfnet4 or sfnet4_deprecated alike; give --backbone")
    fails(
        {**good, "more.weight": np.ones(3, np.float32)},
        "more.weight",
        "--backbone",
        "sfnet4",
    )
    fails(
        {k: v for k, v in good.items() if k != "fc.bias"},
        "missing fc.bias",
        "--backbone",
        "sfnet4",
    )
    fails({"a": np.ones(3, np.float32)}, "of no network known here")
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"x\.pth"):
        call(convert, tmp_path / "x.pth", "--out", tmp_path / "m")
    torch_file.write(tmp_path / "x.pth", good)
    with pytest.raises(ValueError, match="expected LOW,HIGH such as -1,1"):
        call(convert, tmp_path / "x.pth", "--out", tmp_path / "m", "--value_range", "1")
    with pytest.raises(ValueError, match=r"expected a name ending in \.pth"):
        call(convert, tmp_path, "--out", tmp_path / "m")
    with pytest.raises(ValueError, match=r"y\.pth', expected a folder"):
        call(convert, tmp_path / "x.pth", "--out", tmp_path / "y.pth")
    assert not (tmp_path / "m").exists()


# --- export ---------------------------------------------------------------------------


def test_stablehlo_and_npz_hold_the_network(tmp_path):
    first = made()
    model.save(first, tmp_path / "m")
    file = call(export, tmp_path / "m", "--out", tmp_path / "out" / "x.stablehlo")
    loaded = jax.export.deserialize(bytearray(file.read_bytes()))
    for count in (1, 5):  # any batch
        np.testing.assert_allclose(
            loaded.call(images(count)), first.embed(images(count)), rtol=1e-4, atol=1e-5
        )
    assert (tmp_path / "out" / "x.model_card.md").exists()
    np.save(tmp_path / "images.npy", images(2))
    np.save(tmp_path / "want.npy", first.embed(images(2)))
    alone = (
        "import jax.export, numpy as np, sys; data = bytearray(open(sys.argv[1], 'rb')"
        ".read()); found = jax.export.deserialize(data).call(np.load('images.npy')); "
        "assert 'hyperface_jax' not in sys.modules; "
        "np.testing.assert_allclose(found, np.load('want.npy'), rtol=1e-4, atol=1e-5)"
    )
    subprocess.run([sys.executable, "-c", alone, str(file)], check=True, cwd=tmp_path)
    file = call(export, tmp_path / "m", "--out", tmp_path / "out" / "x.npz")
    with np.load(file) as arrays:
        assert "params/fc/kernel" in arrays.files
        assert not any("prototype" in name for name in arrays.files)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == []
    with pytest.raises(ValueError, match=r"expected .onnx, .stablehlo or .npz"):
        call(export, tmp_path / "m", "--out", tmp_path / "x.pb")


@pytest.mark.parametrize("name", ["sfnet4_bn", "iresnet18", "mbf", "vit_t", "ir18"])
def test_onnx_takes_any_batch_of_channels_first_rgb(name, tmp_path, caplog):
    pytest.importorskip("jax2onnx", reason="pip install --no-deps jax2onnx")
    ort = pytest.importorskip("onnxruntime")
    first = made(name=name, color_order="BGR")
    model.save(first, tmp_path / "m")
    file = call(export, tmp_path / "m", "--out", tmp_path / "x.onnx")
    assert {record.name for record in caplog.records} <= {"hyperface_jax.export"}
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.shape[1:] == [3, SIZE, SIZE]
    for count in (1, 4):
        pixels = images(count).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        (found,) = session.run(None, {taken.name: pixels})
        want = np.asarray(first.embed(images(count)))
        assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


def test_what_onnx_does_not_know_is_one_line(tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx", reason="pip install --no-deps jax2onnx")

    def fails(*arguments, **settings):
        raise NotImplementedError("no plugin for\nprimitive 'erf_inv'")

    monkeypatch.setattr(jax2onnx, "to_onnx", fails)
    model.save(made(), tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be exported") as error:
        call(export, tmp_path / "m", "--out", tmp_path / "x.onnx")
    assert "erf_inv" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*x.onnx*"))


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx is not installed.*--no-deps"):
        call(export, tmp_path, "--out", tmp_path / "x.onnx")


# --- embeddings -----------------------------------------------------------------------


def test_embeddings_of_a_folder_and_of_listed_paths(tmp_path):
    first = made()
    model.save(first, tmp_path / "m")
    folder = write_images(tmp_path / "faces" / "deep")
    out = call(
        embed,
        tmp_path / "m",
        "--source",
        tmp_path / "faces",
        "--out",
        tmp_path / "e.npz",
    )
    found = embedding_files.open_embeddings(out)
    assert found.ids == tuple(f"deep/{k}" for k in range(5))
    want = first.embed(images(5)) + first.embed(images(5)[:, :, ::-1])
    np.testing.assert_allclose(found.views[:, 0], want, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "e.npz.parts").exists()
    lines = [f"{folder / '3.png'}\n", "\n", f"{tmp_path / 'gone.png'}\n"]
    out = call(
        embed,
        tmp_path / "m",
        *("--source", "-", "--out", tmp_path / "e.parquet"),
        lines=lines,
    )
    ids, embeddings, facts = parquet.read_parquet(out)
    assert ids == (str(folder / "3.png"), str(tmp_path / "gone.png"))
    np.testing.assert_allclose(embeddings[0], want[3], rtol=1e-4, atol=1e-5)
    assert not embeddings[1].any()
    assert facts["model"] == first.fingerprint


def test_an_embedding_run_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    model.save(made(), tmp_path / "m")
    write_images(tmp_path / "faces", count=5)
    create = stored.EmbeddingStore.create

    def in_small_parts(*arguments, **settings):
        return create(*arguments, part_images=2, **settings)

    monkeypatch.setattr(stored.EmbeddingStore, "create", in_small_parts)
    arguments = (
        tmp_path / "m",
        "--source",
        tmp_path / "faces",
        "--out",
        tmp_path / "e.npz",
    )
    write = stored.EmbeddingStore.write

    def killed(self, number, *more):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, *more)

    monkeypatch.setattr(stored.EmbeddingStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        call(embed, *arguments)
    assert not (tmp_path / "e.npz").exists()
    numbers = []

    def counted(self, number, *more):
        numbers.append(number)
        write(self, number, *more)

    monkeypatch.setattr(stored.EmbeddingStore, "write", counted)
    out = call(embed, *arguments)
    assert numbers == [1, 2]
    assert embedding_files.open_embeddings(out).views.shape == (5, 1, 8)


def test_damaged_images_are_left_out_wherever_they_stand(tmp_path):
    model.save(made(), tmp_path / "m")
    faces = write_images(tmp_path / "faces", count=2)
    (faces / "+.png").write_bytes(b"none")  # the first by name
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e.npz")
    found = embedding_files.open_embeddings(call(embed, *where))
    assert found.ids == ("+", "0", "1")
    assert found.views.any(axis=(1, 2)).tolist() == [False, True, True]
    assert list(found.unreadable) == [0]
    assert "not an image" in found.unreadable[0]
    out = call(embed, *where[:-1], tmp_path / "e.parquet")
    again = embedding_files.open_embeddings(out)
    assert again.unreadable == found.unreadable
    assert again.network == found.network
    for name in ("0.png", "1.png"):
        (faces / name).write_bytes(b"none")
    (tmp_path / "e.npz").unlink()
    with pytest.raises(ValueError, match="none of 3 images can be read"):
        call(embed, *where)
    assert not (tmp_path / "e.npz").exists()


def test_a_folder_of_embeddings_is_mended_or_refused(tmp_path):
    model.save(made(), tmp_path / "m")
    faces = write_images(tmp_path / "faces", count=3)
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e")
    want = np.array(embedding_files.open_embeddings(call(embed, *where)).views)
    done = tmp_path / "e" / "done" / "00000.json"
    for text in ("", "[1]", "null", "{"):  # the machine went down
        done.write_text(text)
        found = embedding_files.open_embeddings(call(embed, *where)).views
        np.testing.assert_array_equal(found, want)
    array = tmp_path / "e" / "embeddings.npy"
    array.write_bytes(array.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"e/embeddings.npy: damaged"):
        call(embed, *where)
    meta = tmp_path / "e" / "meta.json"
    facts = json.loads(meta.read_text())
    for broken in (None, facts | {"part_images": 0}, facts | {"rows": "3"}):
        meta.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="e: no embeddings in it"):
            call(embed, *where)
    with pytest.raises(ValueError, match="faces: holds other files, expected a new"):
        call(embed, *where[:-1], faces)
    (faces / os.fsdecode(b"\xff.png")).write_bytes((faces / "0.png").read_bytes())
    with pytest.raises(ValueError, match="is no UTF-8, which Parquet needs"):
        call(embed, *where[:-1], tmp_path / "e.parquet")
    assert call(embed, *where[:-1], tmp_path / "e.npz").exists()


def test_a_network_that_gives_nan_is_said(tmp_path, monkeypatch):
    model.save(made(), tmp_path / "m")
    monkeypatch.setattr(
        forward, "normalize", lambda images: jnp.full(images.shape, jnp.nan)
    )
    faces = write_images(tmp_path / "faces", count=3)
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e.npz")
    with pytest.raises(ValueError, match="NaN or infinity in 3 of 3 embeddings"):
        call(embed, *where)
    assert not (tmp_path / "e.npz").exists()


def test_images_that_are_no_crops_are_refused(tmp_path):
    model.save(made(), tmp_path / "m")
    write_images(tmp_path / "faces", size=48)
    arguments = (
        tmp_path / "m",
        "--source",
        tmp_path / "faces",
        "--out",
        tmp_path / "e.npz",
    )
    with pytest.raises(
        ValueError, match=r"0: is 48x48, expected an aligned crop of 32x"
    ):
        call(embed, *arguments)
    out = call(embed, *arguments, "--resize", "--no_flip")
    assert embedding_files.open_embeddings(out).views.any()
    (tmp_path / "none").mkdir()
    (tmp_path / "taken.npz").mkdir()
    for name, found in (("e.npy", "e.npy'"), ("taken.npz", r"taken.npz' \(a folder\)")):
        with pytest.raises(
            ValueError, match=f"{found}, expected a file ending in .npz"
        ):
            call(embed, *arguments[:-1], tmp_path / name)
    with pytest.raises(ValueError, match="no images in it, at any depth"):
        call(embed, tmp_path / "m", "--source", tmp_path / "none", "--out", "x.npz")
    with pytest.raises(ValueError, match="standard input: no path in it"):
        call(embed, tmp_path / "m", "--source", "-", "--out", "x.npz", lines=["\n"])


def test_a_model_is_evaluated_and_its_card_gets_the_thresholds(run, tmp_path):
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
