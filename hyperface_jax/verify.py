"""How similar two face crops are, and what a threshold on that is worth.

    python -m hyperface_jax.verify runs/sfr a.jpg b.jpg --out pair.png

prints the cosine, and each threshold that the network's own evaluation calibrated: the
share of impostor pairs above it, how many pairs that was measured on, and where. It
never says that two pictures show one person: that is for whoever knows the prior.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hyperface_jax import command_line, model, workdir
from hyperface_jax.data import decode
from hyperface_jax.evaluation.forward import make_embed_fn

log = logging.getLogger("hyperface_jax.verify")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.verify",
        description="How similar two face crops are.",
    )
    add = p.add_argument
    add("model", help="a model folder (of convert), or the workdir of a run")
    add("first", metavar="A", help="an aligned crop of the network's size")
    add("second", metavar="B", help="another")
    add("--out", default="", metavar="PNG", help="both as the network saw them")
    add("--resize", action="store_true", help="scale images of another size")
    add("--checkpoint", default="last", choices=["last", "best"], help="of a workdir")
    return p


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a parsed command line.

    Returns:
      "score", and "thresholds": rows of the model card with "above", whether the score
      is at or above it.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    made = model.load(a.model, a.checkpoint)
    images = np.stack(
        [
            read_crop(path, made.image_size, resize=a.resize)
            for path in (a.first, a.second)
        ]
    )
    thresholds = [
        row
        for row in made.card.get("thresholds", [])
        if row.get("compares", "images") == "images"
    ]
    # As the thresholds were measured: all of them in one evaluation.
    views = {
        "flip": all(row["mirror_image_added"] for row in thresholds),
        "jitter": max((row.get("jitter", 0.0) for row in thresholds), default=0.0),
    }
    params, stats = jax.device_put((made.params, made.batch_stats))
    found = make_embed_fn(made.backbone, **views)(params, stats, jnp.asarray(images))
    one, two = np.asarray(found, np.float64).sum(axis=1)
    lengths = np.linalg.norm(one) * np.linalg.norm(two)
    score = float(one @ two / lengths) if lengths else 0.0
    rows = [row | {"above": score >= row["cosine"]} for row in thresholds]
    log.info("score %.4f (cosine of both embeddings)", score)
    for row in rows:
        log.info(
            "%s the threshold %.4f, which at most %g of the impostor pairs reach "
            "(%s, %s pairs)",
            "at or above" if row["above"] else "below",
            row["cosine"],
            row["far"],
            row["calibrated_on"],
            row["impostor_pairs"],
        )
    if not rows:
        log.info("no threshold was calibrated for this network: the score has no scale")
    if a.out:
        workdir.create(Path(a.out).parent)
        Image.fromarray(np.concatenate(list(images), axis=1)).save(a.out, "PNG")
    log.info("a score is no identity: other cameras and people have other error rates")
    return {"score": score, "thresholds": rows}


def read_crop(path: str, size: int, *, resize: bool) -> np.ndarray:
    """uint8 RGB [size, size, 3].

    Raises:
      ValueError: there is no image, or one of another size without `resize`.
    """
    try:
        data = Path(path).read_bytes()
        if not resize:
            decode.check_size(data, size)
        return decode.decode_image(data, size)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(verify, parser(), argv)


if __name__ == "__main__":
    main()
