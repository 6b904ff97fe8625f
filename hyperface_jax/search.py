"""Finds the gallery rows most similar to each probe, by the cosine of embeddings.

    python -m hyperface_jax.search --gallery all.npy --probes new.parquet --top 10 \
        --out found.tsv

writes probe, rank, gallery and score: as .tsv or .parquet one line a neighbour, as .npz
arrays with one row a probe. A rank is no identification: the most similar person of a
gallery is somebody else wherever the person looked for is not in it.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax import command_line, workdir
from hyperface_jax.data.name_lists import write_names
from hyperface_jax.evaluation import (
    embedding_files,
    faiss_index,
    nearest,
    parquet,
    stored,
)
from hyperface_jax.evaluation.nearest import Nearest
from hyperface_jax.evaluation.stored import Stored

COLUMNS = ("probe", "rank", "gallery", "score")
NOTE = "A rank is no identification: somebody is first even where nobody is the same."
_LINES = 65536  # of a row group


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.search",
        description="Finds the gallery rows most similar to each probe.",
    )
    add = p.add_argument
    kinds = "embeddings: folder of ours, .npy, .npz, .parquet"
    add("--gallery", required=True, metavar="PATH", help=kinds)
    add("--probes", required=True, metavar="PATH", help="the same")
    add("--top", type=int, default=10, help="neighbours of a probe")
    add("--threshold", type=float, default=None, help="leaves out cosines below")
    add(
        "--index",
        default="exact",
        help="exact, or of FAISS: faiss, ivf:NLIST,NPROBE, hnsw:LINKS,EFFORT",
    )
    add("--out", required=True, metavar="FILE", help=".tsv, .npz or .parquet")
    return p


def search(arguments: argparse.Namespace) -> Nearest:
    """Runs a parsed command line; returns what it wrote.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    if a.top < 1:
        raise ValueError(f"--top is {a.top}, expected at least 1")
    if a.threshold is not None and not -1 <= a.threshold <= 1:
        raise ValueError(f"--threshold is {a.threshold}, expected a cosine")
    method = "exact" if a.index == "exact" else faiss_index.describe(a.index)
    out, write = _open_out(a.out)
    for name, path in (("--gallery", a.gallery), ("--probes", a.probes)):
        if out.resolve() == Path(path).resolve():
            raise ValueError(f"--out is {a.out}, the file of {name}: expected another")
    gallery = embedding_files.open_embeddings(a.gallery)
    probes = embedding_files.open_embeddings(a.probes)
    names = (a.gallery, a.probes)
    stored.check_same_network(gallery.network, probes.network, names)
    if a.index == "exact":
        found = nearest.search(gallery.views, probes.views, a.top, names=names)
    else:
        found = faiss_index.search(
            gallery.views, probes.views, a.top, a.index, names=names
        )
    if a.threshold is not None:
        low = found.scores < a.threshold
        found.scores[low], found.rows[low] = -np.inf, -1
    about = {
        "gallery": a.gallery,
        "probes": a.probes,
        "index": method,
        "score": "cosine",
        "threshold": a.threshold,
        "note": NOTE,
    }
    try:
        write(out, found, _ids(probes), _ids(gallery), about)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error})") from None
    print("\n".join(_summary(found, gallery, method, out)))
    return found


Ids = Callable[[int], str]
"""Id of a row."""


def _ids(source: Stored) -> Ids:
    """Ids, or the numbers of the rows where there are none."""
    return str if source.ids is None else source.ids.__getitem__


def _summary(found: Nearest, gallery: Stored, method: str, out: Path) -> list[str]:
    some = found.rows >= 0
    none = np.count_nonzero(~some.any(axis=1))
    lines = [
        f"{len(some):,} probes, {len(gallery.views):,} gallery rows, index: {method}",
        f"{np.count_nonzero(some):,} neighbours; {none:,} probes have none; written to "
        f"{out}",
    ]
    for name, blank in (
        ("gallery", found.blank_gallery),
        ("probes", found.blank_probes),
    ):
        if len(blank):
            few = ", ".join(map(str, blank[:5].tolist()))
            lines.append(
                f"{len(blank):,} rows of the {name} are 0 (unreadable images) and "
                f"match nothing: rows {few}" + (", ..." if len(blank) > 5 else "")
            )
    return [*lines, NOTE]


def _open_out(path: str) -> tuple[Path, Callable[..., None]]:
    """Where to write and how; checked before the search."""
    out = Path(path).expanduser()
    writers = {".tsv": _write_tsv, ".npz": _write_npz, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise ValueError(
            f"--out is {path}, expected a name ending {', '.join(writers)}"
        )
    if out.is_dir():
        raise ValueError(f"--out {path}: is a folder, expected a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f"{out.name}.tmp")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--out {path}: cannot be written to ({reason})") from None
    if out.suffix == ".parquet":
        parquet.pyarrow()
    return out, writers[out.suffix]


def _lines(
    found: Nearest, probe_id: Ids, gallery_id: Ids
) -> Iterator[tuple[str, int, str, float]]:
    for probe, (scores, rows) in enumerate(zip(found.scores, found.rows, strict=True)):
        pairs = zip(scores.tolist(), rows.tolist(), strict=True)
        for rank, (score, row) in enumerate(pairs, 1):
            if row >= 0:
                yield probe_id(probe), rank, gallery_id(row), score


def _write_tsv(out: Path, found, probe_id, gallery_id, about) -> None:
    lines = (
        (probe, str(rank), row, f"{score:.6f}")
        for probe, rank, row, score in _lines(found, probe_id, gallery_id)
    )
    write_names(out, itertools.chain([COLUMNS], lines))


def _write_npz(out: Path, found, probe_id, gallery_id, about) -> None:
    named = [[gallery_id(r) if r >= 0 else "" for r in row] for row in found.rows]
    ids = [probe_id(probe) for probe in range(len(named))]
    arrays: dict[str, Any] = {
        "probe": np.array(ids, np.str_),
        "gallery": np.array(named, np.str_),
        "row": found.rows,
        "score": found.scores,
        "about": np.array(json.dumps(about)),
    }
    with workdir.whole_file(epath.Path(out), "wb") as file:
        np.savez(file, **arrays)


def _write_parquet(out: Path, found, probe_id, gallery_id, about) -> None:
    pa = parquet.pyarrow()
    lines = _lines(found, probe_id, gallery_id)

    def groups() -> Iterator[dict[str, Any]]:
        while some := list(itertools.islice(lines, _LINES)):
            columns = zip(*some, strict=True)
            yield dict(zip(COLUMNS, map(list, columns), strict=True))

    kinds = (pa.string(), pa.int32(), pa.string(), pa.float64())
    types: dict[str, Any] = dict(zip(COLUMNS, kinds, strict=True))
    parquet.write_table(out, types, groups(), about)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(search, parser(), argv)


if __name__ == "__main__":
    main()
