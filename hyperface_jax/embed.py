"""Embeddings of images with a trained network.

    python -m hyperface_jax.embed runs/sfr --source faces/ --out faces.npz
    find . -name '*.jpg' | python -m hyperface_jax.embed models/r100 --source - \
        --out faces.parquet

The source is a folder of images at any depth, a tar of identities, an InsightFace or
prepared folder, a list of images, or `-`: paths on standard input. OUT ending .npz
(`embeddings` [N, D], `ids`, `unreadable`) or .parquet is one file of sums of image and
mirror image, not normalised; anything else is a folder that has the two apart. All of
them go into `evaluate`, `search` and `audit`. A killed command goes on where it was.
Images must be aligned crops of the network's size.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperface_jax import command_line, model
from hyperface_jax.data import decode, loose_images
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.records import BadRecordError
from hyperface_jax.evaluation import embedding_files, parquet
from hyperface_jax.evaluation.embedder import first_size

log = logging.getLogger("hyperface_jax.embed")

_OTHER_FILES = (".npy", ".csv", ".tsv", ".txt", ".json", ".h5", ".hdf5", ".pkl", ".pt")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.embed",
        description="Embeddings of images with a trained network.",
    )
    add = p.add_argument
    add("model", help="a model folder (of convert), or the workdir of a run")
    add("--source", required=True, metavar="PATH", help="images; - reads paths")
    add("--out", required=True, metavar="PATH", help=".npz, .parquet, or a folder")
    add("--checkpoint", default="last", choices=["last", "best"], help="of a workdir")
    add("--no_flip", action="store_true", help="without the mirror image")
    add("--resize", action="store_true", help="scale images of another size")
    add("--batch_size", type=int, default=256, help="images at a time")
    add("--threads", type=int, default=2, help="that decode")
    return p


def embed(arguments: argparse.Namespace, lines: Any = ()) -> Path:
    """Runs a parsed command line; returns what was written.

    Args:
      arguments: see `parser`.
      lines: paths, for `--source -`.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    out = Path(a.out)
    if a.batch_size < 1 or a.threads < 1:
        raise ValueError(
            f"--batch_size and --threads are {a.batch_size} and {a.threads}, expected "
            "1 or more"
        )
    single = out.suffix in embedding_files.SUFFIXES
    if out.suffix in _OTHER_FILES or (single and out.is_dir()):
        raise ValueError(
            f"--out is {a.out!r}{' (a folder)' * out.is_dir()}, expected a file ending "
            "in .npz or .parquet, or the name of a folder"
        )
    if out.suffix == ".parquet":
        parquet.pyarrow()  # says what to install before the work begins
    made = model.load(a.model, a.checkpoint)
    faces = loose_images.open_any(a.source, lines)
    if out.suffix == ".parquet":
        parquet.check_ids(out, getattr(faces.source, "ids", None) or ())
    if not a.resize:
        _check_first(faces, made.image_size)
    folder = out.with_name(out.name + ".parts") if single else out
    embedder = made.embedder(
        flip=not a.no_flip,
        batch_size=min(a.batch_size, len(faces.rows)),
        threads=a.threads,
        exact=not a.resize,
    )
    store = embedder.store(faces, faces.rows, folder)
    found = store.read()
    if len(found.unreadable) == len(found.views):
        store.forget()  # or the same command would say so for ever
        if single:
            shutil.rmtree(folder)
        raise ValueError(
            f"{a.source}: none of {len(found.views)} images can be read: "
            f"{next(iter(found.unreadable.values()))}"
        )
    if found.unreadable:
        log.info(
            "%d of %d images have no embedding (0): first %s",
            len(found.unreadable),
            len(found.views),
            next(iter(found.unreadable.values())),
        )
    if single:
        facts = {"model": made.fingerprint, "mirror_image_added": str(not a.no_flip)}
        embedding_files.write_embeddings(out, found, facts)
        shutil.rmtree(folder)
    rows, views, size = found.views.shape
    what = "" if views == 1 else " of the image and its mirror image"
    what = f", sums{what}" if single and what else what
    log.info("%s: %d embeddings of %d numbers%s; not normalised", out, rows, size, what)
    return out


def _check_first(faces: FaceSet, size: int) -> None:
    """One line at once instead of a million unreadable images."""
    (record,) = faces.read([0])
    if isinstance(record, BadRecordError):
        return  # a damaged image is no reason to refuse the others
    try:
        decode.check_size(record["image"], size)
    except decode.BadImageError as error:
        if first_size(faces) is not None:
            raise ValueError(f"{faces.name}, {record['id']}: {error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(lambda a: embed(a, sys.stdin), parser(), argv)


if __name__ == "__main__":
    main()
