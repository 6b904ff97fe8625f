"""Verification sets as InsightFace ships them: lfw.bin, agedb_30.bin, cfp_fp.bin ...

A pickle of (images, is_same): pair k is images 2k and 2k + 1, encoded as bytes (Python
2 or 3) or as uint8 arrays. The pairs are in ten blocks, LFW's folds (CFP-FP has 7 000
pairs, the other sets 6 000).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet, fingerprint_of
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import Record
from hyperface_jax.data.safe_pickle import array_bytes, load_pickle

FOLDS = 10


class BytesSource:
    """Images in memory. Each has its own label: nobody says who is in them.

    Args:
      images: encoded images [N].
    """

    def __init__(self, images: Sequence[bytes]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records; the id is the number of the image."""
        return [
            {"image": self._images[row], "label": int(row), "id": str(row)}
            for row in rows
        ]

    def take(self, rows: np.ndarray) -> "BytesSource":
        """The given rows as a source of their own."""
        return BytesSource([self._images[row] for row in rows])


def read_bin(path: epath.PathLike) -> tuple[list[bytes], np.ndarray]:
    """Encoded images [2n] and is_same bool [n].

    Raises:
      ValueError: not such a pickle, or one that would run code.
    """
    path = epath.Path(path)
    try:
        images, is_same = _two(load_pickle(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(images) != 2 * len(is_same) or not len(is_same):
        raise ValueError(
            f"{path}: {len(images)} images for {len(is_same)} pairs, expected two each"
        )
    found = [array_bytes(image) for image in images]
    if None in found:
        at = found.index(None)
        raise ValueError(
            f"{path}: image {at} is a {type(images[at]).__name__}, expected bytes or "
            "a uint8 array"
        )
    for at, value in enumerate(is_same):
        number = isinstance(value, bool | int | float | np.generic)
        if not number or value not in (0, 1):
            raise ValueError(
                f"{path}: answer {at} is {_shown(value)}, expected True or False"
            )
    return [image for image in found if image is not None], np.asarray(is_same, bool)


def _shown(value: Any) -> str:
    """A number that is short, else its kind: what a pickle holds may have no end."""
    short = isinstance(value, int) and abs(value) < 1 << 63
    return str(value) if short else f"a {type(value).__name__}"


def _two(loaded: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    if not isinstance(loaded, list | tuple) or len(loaded) != 2:
        raise ValueError(f"found a {type(loaded).__name__}, expected (images, is_same)")
    parts = [getattr(part, "value", part) for part in loaded]
    for part in parts:
        if not isinstance(part, list | tuple | np.ndarray):
            raise ValueError(f"found a {type(part).__name__}, expected a list")
    return list(parts[0]), list(parts[1])


def open_bin(path: epath.PathLike) -> EvaluationSet:
    """A .bin file as pairs to verify in ten contiguous folds.

    Raises:
      ValueError: see `read_bin`.
    """
    path = epath.Path(path)
    images, is_same = read_bin(path)
    count = len(is_same)
    rows = np.arange(2 * count)
    # As scikit-learn's KFold without shuffling, which all users of these files take.
    sizes = [len(part) for part in np.array_split(np.arange(count), FOLDS)]
    pairs = Pairs(
        rows[0::2], rows[1::2], is_same, np.repeat(np.arange(FOLDS), sizes).astype(int)
    )
    name = path.name.removesuffix(".bin")
    faces = FaceSet(
        name=name,
        source=BytesSource(images),
        rows=rows,
        labels=rows.astype(np.int32),
        source_labels=rows.astype(np.int32),
        identities=tuple(map(str, rows)),
        fingerprint=fingerprint_of("bin", is_same, *images),
        pairs=pairs,
    )
    return EvaluationSet.of_pairs(name, faces)
