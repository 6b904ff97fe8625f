"""What `embed` costs beside the work that nobody can save.

    python benchmarks/embedding.py

The command `hyperface_jax.embed` on JPEG files (reading, decoding, checking,
both views, writing) with IResNet-18 at 112x112, beside the bare compiled forward pass
of as many images that are on the device already, in one process.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hyperface_jax import embed, model, model_card, workdir
from hyperface_jax.backbones import create_backbone
from hyperface_jax.evaluation import embedder
from hyperface_jax.evaluation.forward import make_embed_fn


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict:
    for work in works.values():
        jax.block_until_ready(work())
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def embedding(count: int, batch: int, repeats: int) -> dict:
    network = {
        "name": "iresnet18",
        "width": 64,
        "embedding_dim": 512,
        "color_order": "RGB",
        "value_range": (-1.0, 1.0),
        "batch_norm_epsilon": 1e-5,
    }
    backbone = create_backbone(**network)
    params, stats = jax.jit(backbone.init, static_argnums=1)(jax.random.key(0), 112)
    card = model_card.of_import(network, 112, {"file": "random weights"})
    made = model.create(network, params, stats, image_size=112, card=card)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model.save(made, root / "m")
        (root / "faces").mkdir()
        for i in range(count):
            stream = io.BytesIO()
            coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((112, 112)).save(stream, "JPEG", quality=95)
            (root / "faces" / f"{i:05d}.jpg").write_bytes(stream.getvalue())
        run = make_embed_fn(backbone, flip=True)
        images = jnp.asarray(rng.integers(0, 256, (batch, 112, 112, 3), np.uint8))

        def forward():
            for _ in range(count // batch):
                out = run(params, stats, images)
            return out

        # The command as it is, but without starting Python and compiling anew.
        embedder.make_embed_fn = lambda *a, **k: run
        number = iter(range(10**6))

        def command():
            out = root / f"{next(number)}.npz"
            a = ["m", "--source", "faces", "--out", out, "--batch_size", batch]
            a[0], a[2] = root / "m", root / "faces"
            embed.embed(embed.parser().parse_args([*map(str, a)]))

        found = interleaved({"forward": forward, "embed": command}, repeats)
        embedder.make_embed_fn = make_embed_fn
    return found | {
        "images": count,
        "embed / forward": found["embed"] / found["forward"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    a = parser.parse_args()
    found = embedding(a.images, a.batch, a.repeats)
    print(json.dumps(found | {"versions": workdir.versions()}, indent=1))


if __name__ == "__main__":
    main()
