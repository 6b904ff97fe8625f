"""The most similar gallery images of each probe.

    python -m hyperface_jax.search --gallery gallery.npz --probes probes.npz \
        --top 10 --out found.tsv

Gallery and probes are embeddings as `embed` writes them (a folder, .npz, .parquet) or
anybody's .npy. Exact, and a gallery of millions need not fit into memory. `--index
faiss` takes an approximate index instead. A rank is no identification: somebody is
always the nearest, also of a person who is not there.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from hyperface_jax import command_line, workdir
from hyperface_jax.evaluation import nearest, stored

log = logging.getLogger("hyperface_jax.search")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.search",
        description="The most similar gallery images of each probe.",
    )
    add = p.add_argument
    add("--gallery", required=True, metavar="PATH", help="embeddings to look in")
    add("--probes", required=True, metavar="PATH", help="embeddings to look for")
    add("--top", type=int, default=10, help="gallery images of each probe")
    add("--threshold", type=float, default=-1.0, help="cosine below which none counts")
    add(
        "--index",
        default="exact",
        choices=["exact", "faiss"],
        help="faiss: approximate",
    )
    add("--out", default="", metavar="TSV", help="probe, rank, gallery image, score")
    return p


def search(arguments: argparse.Namespace) -> list[tuple[str, int, str, float]]:
    """Runs a parsed command line.

    Returns:
      Rows (probe id, rank from 1, gallery id, cosine), in the order of the probes.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    if a.top < 1:
        raise ValueError(f"--top is {a.top}, expected at least 1")
    names, gallery = _open(a.gallery)
    probe_names, probes = _open(a.probes)
    if gallery.shape[1] != probes.shape[1]:
        raise ValueError(
            f"{a.gallery} has embeddings of {gallery.shape[1]} numbers, {a.probes} of "
            f"{probes.shape[1]}, expected one network's"
        )
    look = nearest.top_k if a.index == "exact" else nearest.with_faiss
    scores, rows = look(gallery, probes, a.top)
    found = [
        (probe_names[p], rank + 1, names[row], float(score))
        for p in range(len(probes))
        for rank, (row, score) in enumerate(zip(rows[p], scores[p], strict=True))
        if row >= 0 and score >= a.threshold
    ]
    lines = ["probe\trank\tgallery\tscore"]
    lines += [f"{p}\t{rank}\t{g}\t{score:.6f}" for p, rank, g, score in found]
    if a.out:
        workdir.write_text(epath.Path(a.out), "\n".join(lines) + "\n")
    else:
        log.info("%s", "\n".join(lines))
    log.info(
        "%d probes in %d gallery images%s; a rank is no identification",
        len(probes),
        len(gallery),
        "" if a.index == "exact" else ", by an approximate index",
    )
    return found


def _open(path: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Ids, and embeddings [N, D] (views summed)."""
    found = stored.open_embeddings(Path(path))
    views = found.views
    if not len(views):
        raise ValueError(f"{path}: no embeddings in it")
    # One view is looked at where it lies; a sum of two has to be made.
    embeddings = views[:, 0] if views.shape[1] == 1 else np.asarray(views).sum(axis=1)
    for start in range(0, len(embeddings), nearest.BLOCK):
        part = np.asarray(embeddings[start : start + nearest.BLOCK])
        if not np.isfinite(part).all():
            bad = start + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])
            raise ValueError(f"{path}: row {bad} is not finite")
    names = found.ids or tuple(f"#{row}" for row in range(len(views)))
    return names, embeddings


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(search, parser(), argv)


if __name__ == "__main__":
    main()
