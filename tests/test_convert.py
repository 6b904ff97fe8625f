"""Weights from PyTorch and back, and what cannot be converted."""

import json

import jax
import numpy as np
import pytest
from networks import SIZE, call, images, made, write_images
from test_backbones import filled, oracle_weights

from hyperface_jax import (
    convert,
    embed,
    export,
    model,
    model_card,
)
from hyperface_jax.backbones.torch_names import to_torch
from hyperface_jax.interop import torch_file


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


def test_an_export_beside_it_does_not_change_how_a_file_is_read(tmp_path):
    """Once o/x.npz took the place of the card of o/x.pth, and BGR was read as RGB."""
    folder = model.save(made(color_order="BGR"), tmp_path / "m")
    file = call(convert, folder, "--out", tmp_path / "o" / "x.pth", "--as_is")
    call(export, folder, "--out", tmp_path / "o" / "x.npz")
    again = model.load(call(convert, file, "--out", tmp_path / "again"))
    assert again.network["color_order"] == "BGR"


def test_a_file_for_pytorch_takes_rgb(tmp_path):
    """The same function as the model's, which takes BGR and has its own epsilon."""
    first = made(name="iresnet18", width=8, color_order="BGR", batch_norm_epsilon=1e-3)
    folder = model.save(first, tmp_path / "m")
    file = call(convert, folder, "--out", tmp_path / "x.pth")
    (tmp_path / "x.pth.model_card.json").rename(tmp_path / "elsewhere.json")
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
