"""The nearest rows by an index of FAISS, in memory; needs the extra `search`.

    faiss                every row is compared, in float32
    ivf:NLIST,NPROBE     NLIST cells, of which the NPROBE nearest are searched
    hnsw:LINKS,EFFORT    a graph with LINKS neighbours a row, EFFORT rows visited

The last two are approximate: rows may be missed. Scores are float64 cosines of the rows
that were found; rows that are 0 are not put into the index.

Letters: N gallery rows, P probes, D dimensions.
"""

import re
from typing import Any

import numpy as np

from hyperface_jax.evaluation import nearest
from hyperface_jax.evaluation.nearest import NAMES, Nearest, Rows

_BLOCK = 16384
_TRAINED = 64  # rows a cell from which cells are made, at most
_SEED = 0
_MOST_LINKS, _MOST_EFFORT = 1024, 2**31 - 1  # C integers, and memory
_KINDS = re.compile(r"faiss|(ivf|hnsw):([1-9]\d*),([1-9]\d*)")


def describe(kind: str) -> str:
    """What an index gives, for people.

    Raises:
      ValueError: there is no such index.
    """
    found = _KINDS.fullmatch(kind)
    if not found:
        raise ValueError(
            f"index is {kind!r}, expected exact, faiss, ivf:NLIST,NPROBE or "
            "hnsw:LINKS,EFFORT"
        )
    if found[1]:
        return f"{kind}, FAISS: approximate, neighbours may be missed"
    return "faiss, every row compared in float32: ties and near ties may be missed"


def search(
    gallery: Rows, probes: Rows, k: int, kind: str, *, names: tuple[str, str] = NAMES
) -> Nearest:
    """As `nearest.search`, with an index of FAISS.

    Args:
      gallery: [N, D] or [N, V, D]; the index holds a float32 copy.
      probes: [P, D] or [P, V, D].
      k: neighbours of a probe.
      kind: see above.
      names: of gallery and probes, for errors.

    Raises:
      ValueError: FAISS or such an index is absent, or the input is wrong.
    """
    describe(kind)
    nearest.check(gallery, probes, k, names)
    k = min(k, len(gallery))
    unit, blank_probes = nearest.unit_probes(probes, names[1])
    index, usable, blank = build(gallery, kind, names[0])
    scores = np.full((len(unit), k), -np.inf)
    rows = np.full((len(unit), k), -1, np.int64)
    if len(usable):
        _, places = index.search(unit.astype(np.float32), min(k, len(usable)))
        for probe in np.setdiff1d(np.arange(len(unit)), blank_probes):
            near = np.sort(usable[places[probe][places[probe] >= 0]])
            if len(near):
                scores[probe], rows[probe] = nearest.score_rows(
                    gallery, unit[probe], near, k
                )
    return Nearest(scores, rows, blank, blank_probes)


def build(gallery: Rows, kind: str, name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Index, rows in it, and rows that are 0."""
    faiss = _faiss()
    size = gallery.shape[-1]
    method, *numbers = re.split("[:,]", kind)
    if method == "ivf":
        cells, visited = map(int, numbers)
        if cells > len(gallery):
            raise ValueError(
                f"index {kind}: {cells} cells, expected at most {len(gallery)}, the "
                f"rows of {name}"
            )
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = visited
        index.cp.min_points_per_centroid = 1  # else a warning, and the same cells
        sample = np.random.default_rng(_SEED).permutation(len(gallery))
        sample = np.sort(sample[: _TRAINED * cells])
        unit, zero = nearest.unit_rows_at(gallery, sample, name)
        if np.count_nonzero(~zero) < cells:
            raise ValueError(
                f"index {kind}: {np.count_nonzero(~zero)} rows of {name} are not 0, "
                f"expected {cells} or more"
            )
        index.train(unit[~zero].astype(np.float32))
    elif method == "hnsw":
        links, effort = map(int, numbers)
        if not 2 <= links <= _MOST_LINKS or effort > _MOST_EFFORT:
            raise ValueError(
                f"index {kind}: {links} links and effort {effort}, expected 2 to "
                f"{_MOST_LINKS} and at most {_MOST_EFFORT}"
            )
        index = faiss.IndexHNSWFlat(size, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = effort
    else:
        index = faiss.IndexFlatIP(size)
    usable, blank = [], []
    for start in range(0, len(gallery), _BLOCK):
        number = np.arange(start, min(start + _BLOCK, len(gallery)))
        unit, zero = nearest.unit_rows_at(gallery, number, name)
        index.add(unit[~zero].astype(np.float32))
        usable.append(number[~zero])
        blank.append(number[zero])
    return index, np.concatenate(usable), np.concatenate(blank)


def _faiss() -> Any:
    """FAISS, or one line on how to get it."""
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "this index needs FAISS: pip install 'hyperface_jax[search]'"
        ) from None
    return faiss
