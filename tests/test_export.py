"""ONNX, StableHLO and .npz: each is run and compared."""

import hashlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from networks import SIZE, call, images, made

from hyperface_jax import (
    export,
    model,
    model_card,
)


def test_stablehlo_and_npz_hold_the_network(tmp_path):
    first = made()
    model.save(first, tmp_path / "m")
    file = call(export, tmp_path / "m", "--out", tmp_path / "out" / "x.stablehlo")
    loaded = jax.export.deserialize(bytearray(file.read_bytes()))
    for count in (1, 5):  # any batch
        np.testing.assert_allclose(
            loaded.call(images(count)), first.embed(images(count)), rtol=1e-4, atol=1e-5
        )
    assert (tmp_path / "out" / "x.stablehlo.model_card.md").exists()
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
    # Each file has its own card, which says what that file takes.
    for name, takes in (("x.stablehlo", "uint8 RGB [batch, "), ("x.npz", "nothing by")):
        card = model_card.read(epath.Path(tmp_path / "out"), name)
        assert card["network"]["takes"].startswith(takes)
        digest = hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        assert card["network"]["exported_sha256"] == digest
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
