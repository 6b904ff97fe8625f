"""Weights from PyTorch, and back.

    python -m hyperface_jax.convert backbone.pth --out models/r100
    python -m hyperface_jax.convert adaface_ir101.ckpt --out models/ada --licence MIT
    python -m hyperface_jax.convert runs/sfr --out backbone.pth

reads checkpoints of InsightFace, OpenSphere (old and new), AdaFace, CVLface and MagFace
without PyTorch and without running what is in them, and writes a model folder, which
`evaluate`, `embed`, `verify`, `export` and `--config.init_from` take. The other way a
model or a run becomes a state_dict under InsightFace's (or the network's own) names.
"""

import argparse
import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax import command_line, model, model_card, workdir
from hyperface_jax.backbones import create_backbone, torch_names
from hyperface_jax.interop import folding, state_dicts, torch_file
from hyperface_jax.interop.state_dicts import StateDict

log = logging.getLogger("hyperface_jax.convert")

PROTOTYPES = "prototypes.npy"
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
_OF_A_FILE = ("backbone", "color_order", "value_range", "image_size", "licence")
_OF_A_FILE += ("head", "prototypes")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.convert",
        description="Weights from PyTorch, and back.",
    )
    add = p.add_argument
    add("source", help="a PyTorch checkpoint, a model folder, or a run's workdir")
    add("--out", required=True, help="model folder, or .pth for PyTorch")
    add("--backbone", default="", help="network, where the file does not tell")
    add("--color_order", default="", choices=["", "RGB", "BGR"], help="it was fed with")
    add("--value_range", default="", metavar="LOW,HIGH", help="of its pixels")
    add("--image_size", type=int, default=0, help="side in pixels; 0: of the weights")
    add(
        "--licence",
        "--license",
        default="",
        help="of the weights; goes into the model card",
    )
    add(
        "--head", default="", metavar="FILE", help="second file, with the class vectors"
    )
    add("--prototypes", action="store_true", help="write the class vectors, too")
    add("--checkpoint", default="last", choices=["last", "best"], help="of a workdir")
    add("--as_is", action="store_true", help="to .pth: with its own kind of pixels")
    return p


def convert(arguments: argparse.Namespace) -> epath.Path:
    """Runs a parsed command line; returns what was written.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    source, out = epath.Path(a.source), epath.Path(a.out)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if source.is_dir():
        if out.suffix not in TORCH_SUFFIXES:
            raise ValueError(
                f"--out is {a.out!r}, expected a name ending in .pth: {source} is a "
                "model already"
            )
        _check_way_back(a)
        return _to_torch(model.load(source, a.checkpoint), out, as_is=a.as_is)
    if out.suffix in TORCH_SUFFIXES:
        raise ValueError(f"--out is {a.out!r}, expected a folder: {source} is a file")
    loaded = torch_file.read(source)
    head = torch_file.read(a.head) if a.head else None
    try:
        found = state_dicts.find_state_dict(loaded, head)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        card = model_card.of_file(source, digest)
        fed = card["network"]["file"] if card else {}
        made = imported(
            found,
            backbone=a.backbone,
            color_order=a.color_order or fed.get("color_order", ""),
            value_range=_range(a.value_range) or fed.get("value_range"),
            epsilon=fed.get("batch_norm_epsilon", 0.0),
            image_size=a.image_size,
            source={
                "file": source.name,
                "sha256": digest,
                "layout": found.layout,
                "licence": a.licence or card.get("weights_licence", ""),
            },
        )
    except ValueError as error:
        where = f"{source} with --head {a.head}" if a.head else source
        raise ValueError(f"{where}: {error}") from None
    if a.prototypes and found.prototypes is None:
        raise ValueError(
            f"{a.head}: no class vectors in it"
            if a.head
            else f"{source}: no class vectors in it (--head FILE)"
        )
    _check_free(out, made)
    folder = model.save(made, out)
    if a.prototypes:
        with workdir.whole_file(folder / PROTOTYPES, "wb") as file:
            np.save(file, np.asarray(found.prototypes, np.float32))
    elif found.prototypes is not None:
        log.info(
            "%d class vectors left out: each is a biometric template of a person "
            "(--prototypes writes them)",
            len(found.prototypes),
        )
    low, high = made.network["value_range"]
    log.info(
        "%s: %s of %s for %d pixels, trained on %s in [%g, %g]; here it takes RGB",
        folder,
        made.network["name"],
        found.layout,
        made.image_size,
        made.network["color_order"],
        low,
        high,
    )
    return folder


def _check_way_back(a: argparse.Namespace) -> None:
    """Refuses what only says how a PyTorch file is to be read."""
    for name in _OF_A_FILE:
        if getattr(a, name):
            raise ValueError(f"--{name} with {a.source}, expected a PyTorch file")


def _check_free(out: epath.Path, made: model.Model) -> None:
    """Refuses a folder that holds a run, or another model with its evaluation."""
    if (out / workdir.CONFIG).exists():
        raise ValueError(f"--out {out}: holds a run, expected another folder")
    description = out / model.DESCRIPTION
    if description.exists():
        there = workdir.read_json(description)
        if there.get("fingerprint") != made.fingerprint:
            raise ValueError(
                f"--out {out}: holds another model, expected its own folder"
            )


def imported(
    found: StateDict,
    *,
    backbone: str = "",
    color_order: str = "",
    value_range: tuple[float, float] | None = None,
    epsilon: float = 0.0,
    image_size: int = 0,
    source: dict[str, Any],
) -> model.Model:
    """A model from another program's state_dict.

    Args:
      found: from `state_dicts.find_state_dict`.
      backbone: our network; "" takes the only one that fits.
      color_order: "RGB" or "BGR"; "" takes the program's.
      value_range: of the pixels; None takes the program's.
      epsilon: of BatchNorm; 0 takes the program's.
      image_size: H = W; 0 takes the one that the weights are for.
      source: facts for the model card.

    Raises:
      ValueError: the network or the colour order is not known; an array is missing,
        superfluous or of another shape.
    """
    name = backbone or _only(found)
    color_order = color_order or found.color_order or ""
    if not color_order:
        raise ValueError(
            f"nothing in a file of {found.layout} says whether its images were RGB or "
            "BGR; give --color_order"
        )
    network = {
        "name": name,
        "width": state_dicts.width(found.weights),
        "embedding_dim": found.embedding_dim,
        "color_order": color_order,
        "value_range": value_range or found.value_range,
        "batch_norm_epsilon": epsilon
        or (2e-5 if found.layout == "magface" else folding.TORCH_EPSILON),
    }
    made = create_backbone(**network)
    image_size = image_size or state_dicts.image_size(found.weights)
    params, batch_stats = torch_names.to_flax(made, image_size, found.weights)
    card = model_card.of_import(network, image_size, source)
    return model.create(network, params, batch_stats, image_size=image_size, card=card)


def _only(found: StateDict) -> str:
    if len(found.candidates) == 1:
        return found.candidates[0]
    if found.candidates:
        names = " or ".join(found.candidates)
        raise ValueError(f"the weights fit {names} alike; give --backbone")
    return state_dicts.guess_backbone(found.weights)


def _range(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"--value_range is {text!r}, expected LOW,HIGH such as -1,1 "
            "(--value_range=-1,1)"
        )
    return low, high


def _to_torch(made: model.Model, out: epath.Path, *, as_is: bool) -> epath.Path:
    """For pixels as InsightFace's programs feed them, RGB in [-1, 1], or `as_is`."""
    weights = torch_names.to_torch(
        made.backbone, made.image_size, made.params, made.batch_stats
    )
    network = dict(made.network)
    if not as_is:
        weights, network = folding.for_everybody(weights, network)
    workdir.create(out.parent)
    torch_file.write(out, weights)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    card = model_card.fed_with(made.card, network, digest)
    model_card.write(out.parent, card, out.name)
    log.info(
        "%s: %d arrays of %s; feed it %s in [%g, %g], BatchNorm's epsilon is %g",
        out,
        len(weights),
        network["name"],
        network["color_order"],
        *network["value_range"],
        network["batch_norm_epsilon"],
    )
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(convert, parser(), argv)


if __name__ == "__main__":
    main()
