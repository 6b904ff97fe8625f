"""A trained network as a file that runs without this package.

    python -m hyperface_jax.export runs/sfr --out sfr.onnx
    python -m hyperface_jax.export models/r100 --out r100.stablehlo
    python -m hyperface_jax.export runs/sfr --out sfr.npz

.onnx       float32, opset 17, any batch: "input" [B, 3, H, W] RGB in [-1, 1] ->
            "embedding" [B, D], the form of InsightFace's evaluations
.stablehlo  `jax.export.deserialize(bytes).call(images)`: uint8 RGB [B, H, W, 3] ->
            [B, D], on CPU, GPU and TPU
.npz        the weights by path, for whoever writes the network anew

Each file is run once and compared with the network before it gets its name, and has a
model card beside it. Class vectors are in none of them.
"""

import argparse
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jax.extend.core import jaxpr_as_fun

from hyperface_jax import command_line, model, model_card, workdir
from hyperface_jax.model import Model

log = logging.getLogger("hyperface_jax.export")

OPSET = 17
TOLERANCE = 1e-5
"""Largest error of an exported network, relative to its largest output."""

_PLATFORMS = ("cpu", "cuda", "tpu")
_ONNX_HINT = (
    "pip install -e '.[onnx]' && pip install --no-deps 'jax2onnx>=0.17.1' (by itself "
    "it asks for an older Orbax)"
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.export",
        description="A trained network as a file that runs without this package.",
    )
    add = p.add_argument
    add("model", help="a model folder (of convert), or the workdir of a run")
    add("--out", required=True, help="FILE.onnx, FILE.stablehlo or FILE.npz")
    add("--checkpoint", default="last", choices=["last", "best"], help="of a workdir")
    return p


def export(arguments: argparse.Namespace) -> Path:
    """Runs a parsed command line; returns the file.

    Raises:
      ValueError: one line on what is wrong, or that the file computes something else.
    """
    a = arguments
    out = Path(a.out)
    if out.suffix not in WRITERS:
        raise ValueError(f"--out is {a.out!r}, expected .onnx, .stablehlo or .npz")
    if out.suffix == ".onnx":
        _check_onnx()
    made = model.load(a.model, a.checkpoint)
    folder = workdir.create(out.parent)
    # Beside its final place: a rename must not cross file systems.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        whole = Path(scratch) / out.name
        error = WRITERS[out.suffix](made, whole)
        if not error <= TOLERANCE:
            raise ValueError(
                f"{out}: differs from the network by {error:.2g} of its largest "
                f"output, expected at most {TOLERANCE:g}; nothing is written"
            )
        whole.replace(out)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    card = model_card.exported(made.card, _takes(made, out.suffix), digest)
    model_card.write(folder, card, out.name)
    log.info("%s: %.1f MiB, error %.1g", out, out.stat().st_size / 2**20, error)
    return out


def write_onnx(made: Model, path: Path) -> float:
    """Writes and runs it; returns the relative error of its embeddings."""
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    # Warnings with tracebacks of plugins for libraries that are not here, and of shapes
    # that are left out: the file is compared with the network below.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    size = made.image_size
    (batch,) = jax.export.symbolic_shape("B")
    spec = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    # Traced by us: jax2onnx replaces functions of JAX and Flax while it traces.
    traced = jax.make_jaxpr(lambda pixels: _float32(made, pixels))(spec)
    try:
        proto: Any = to_onnx(
            lambda pixels: jaxpr_as_fun(traced)(pixels)[0],
            [spec],
            opset=OPSET,
            inputs_as_nchw=[0],
            input_names=["input"],
            output_names=["embedding"],
            model_name=made.backbone.name,
        )
    except Exception as error:  # an operation without a counterpart, of any type
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{made.backbone.name} cannot be exported to ONNX ({reason})"
        ) from error
    # InsightFace's evaluation looks for "Sub" and "Mul" among the first names, and then
    # believes that the network normalises its pixels itself.
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    try:
        onnx.save(proto, str(path))
    except Exception as error:  # protobuf's own: a message is below 2 GiB
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{made.backbone.name} is too large a file ({reason})"
        ) from error
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    pixels = _samples(3, size).astype(np.float32) / 127.5 - 1
    found = session.run(
        None, {"input": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
    )
    return _error(found[0], _exact(lambda: _float32(made, jnp.asarray(pixels))))


def write_stablehlo(made: Model, path: Path) -> float:
    """Writes and runs it; returns the relative error of its embeddings."""
    size = made.image_size
    (batch,) = jax.export.symbolic_shape("B")
    spec = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(made.forward), platforms=_PLATFORMS)(spec)
    path.write_bytes(exported.serialize())
    images = _samples(3, size)
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    return _error(
        _exact(lambda: again.call(images)), _exact(lambda: made.embed(images))
    )


def write_npz(made: Model, path: Path) -> float:
    """Writes the weights and reads them; returns the largest difference."""
    tree = {"params": made.params, "batch_stats": made.batch_stats}
    arrays = {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}
    with epath.Path(path).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    with np.load(path) as again:
        return max(float(np.abs(again[k] - v).max()) for k, v in arrays.items())


WRITERS: dict[str, Callable[[Model, Path], float]] = {
    ".onnx": write_onnx,
    ".stablehlo": write_stablehlo,
    ".npz": write_npz,
}


def _takes(made: Model, suffix: str) -> str:
    """What a file is fed with, for its card."""
    size, network = made.image_size, made.network
    if suffix == ".onnx":
        return f"float32 RGB [batch, 3, {size}, {size}] in -1 to 1"
    if suffix == ".stablehlo":
        return f"uint8 RGB [batch, {size}, {size}, 3]"
    low, high = network["value_range"]
    return (
        f"nothing by itself; these weights were trained on {network['color_order']} in "
        f"{low:g} to {high:g}, width {network['width']}, BatchNorm's epsilon "
        f"{network['batch_norm_epsilon']:g}"
    )


def _float32(made: Model, pixels: jax.Array) -> jax.Array:
    return made.backbone.apply(made.params, made.batch_stats, pixels, train=False)[0]


def _exact(compute: Callable[[], jax.Array]) -> np.ndarray:
    """Computed in float32 throughout: by itself a GPU or TPU takes fewer bits."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(compute())


def _samples(count: int, size: int) -> np.ndarray:
    shape = (count, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _check_onnx() -> None:
    for name in ("onnx", "onnxruntime", "jax2onnx"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed, ONNX needs it: {_ONNX_HINT}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(export, parser(), argv)


if __name__ == "__main__":
    main()
