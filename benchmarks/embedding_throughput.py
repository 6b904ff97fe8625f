"""Images a second of a large network, beside PyTorch and onnxruntime.

    pip install torch -e '.[onnx]' && pip install --no-deps jax2onnx
    python benchmarks/embedding_throughput.py
    python benchmarks/embedding_throughput.py --backbone iresnet18 --width 8 --size 32 \
        --batch 8 --dtype float32   # on a CPU, to see that it runs

The same random weights in all three, images on the device already, not mirrored: ours
jitted from uint8 pixels in bfloat16; PyTorch with channels_last, autocast and
torch.compile from pixels that are normalised already; onnxruntime with our exported
float32 file, on CUDA where its provider is there, from memory of the host. Each is
compared with ours before it is timed; what is not installed is left out.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from embedding import interleaved

from hyperface_jax import export, model, model_card, workdir
from hyperface_jax.backbones import create_backbone, torch_names


def make_model(a: argparse.Namespace) -> model.Model:
    """Random weights, with running statistics and slopes that matter."""
    network = {
        "name": a.backbone,
        "width": a.width,
        "embedding_dim": 512,
        "color_order": "RGB",
        "value_range": (-1.0, 1.0),
        "batch_norm_epsilon": 1e-5,
    }
    backbone = create_backbone(**network, dtype=a.dtype)
    init = jax.jit(backbone.init, static_argnums=1)
    params, stats = init(jax.random.key(0), a.size)
    card = model_card.of_import(network, a.size, {"file": "random weights"})
    made = model.create(network, params, stats, image_size=a.size, card=card)
    return dataclasses.replace(made, backbone=backbone)


def torch_network(made: model.Model, a: argparse.Namespace) -> Callable | None:
    """float32 NCHW in [-1, 1] -> embeddings, of the state_dict's own IResNet."""
    try:
        import torch
        import torch_peer
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    weights = torch_names.to_torch(
        made.backbone, made.image_size, made.params, made.batch_stats
    )
    forward = torch_peer.Network(a.backbone, weights, device=device, train=False)
    run = torch.compile(forward, mode="max-autotune") if device == "cuda" else forward
    low = a.dtype == "bfloat16"

    def embed(pixels):
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, low):
            found = run(pixels)
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    def place(pixels):
        placed = torch.tensor(pixels, device=device)
        return placed.contiguous(memory_format=torch.channels_last)

    return lambda pixels: (embed, place(pixels))


def onnx_network(made: model.Model) -> Callable | None:
    """Our exported file in onnxruntime, or None where a package is missing."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        export._check_onnx()
    except (ImportError, ValueError):
        return None
    float32 = dataclasses.replace(made, backbone=create_backbone(**made.network))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "network.onnx"
        export.write_onnx(float32, path)
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        there = onnxruntime.get_available_providers()
        providers = [name for name in wanted if name in there]
        session = onnxruntime.InferenceSession(str(path), providers=providers)

    def embed(pixels):
        return session.run(None, {"input": pixels})[0]

    return lambda pixels: (embed, pixels)


def check(name: str, found: np.ndarray, expected: np.ndarray, least: float) -> None:
    """Raises unless every embedding points where ours does."""
    product = (found * expected).sum(axis=1)
    cosine = product / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    if not cosine.min() >= least:
        raise SystemExit(f"{name}: cosine {cosine.min():.5f} with ours, not {least}")


def measure(a: argparse.Namespace, batch: int) -> dict:
    """Images a second of each for one batch size."""
    made = make_model(a)
    shape = (batch, a.size, a.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    placed = jnp.asarray(images)
    works: dict[str, Callable[[], object]] = {"ours": lambda: made.embed(placed)}
    expected = np.asarray(made.embed(placed), np.float32)
    least = 0.99 if a.dtype == "bfloat16" else 0.99999
    for name, network in (
        ("PyTorch", torch_network(made, a)),
        ("onnxruntime, float32", onnx_network(made)),
    ):
        if network is None:
            continue
        embed, given = network(np.ascontiguousarray(pixels))
        found = embed(given)
        found = found.float().cpu().numpy() if hasattr(found, "cpu") else found
        check(name, np.asarray(found), expected, least)
        works[name] = lambda embed=embed, given=given: embed(given)
    seconds = interleaved(works, a.repeats)
    rates = {name: round(batch / value, 1) for name, value in seconds.items()}
    return {"batch": batch, "images a second": rates}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="iresnet100", help="an IResNet")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=11)
    a = parser.parse_args()
    for batch in a.batch:
        print(json.dumps(measure(a, batch)), flush=True)
    print(json.dumps({"network": vars(a), "versions": workdir.versions()}, indent=1))


if __name__ == "__main__":
    main()
