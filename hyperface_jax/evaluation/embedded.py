"""A test set with its embeddings, and how its protocols are to be run."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import ids_of
from hyperface_jax.evaluation import similarity
from hyperface_jax.evaluation.stored import Stored, check_same_network
from hyperface_jax.evaluation.templates import INSIGHTFACE, Pooling


@dataclasses.dataclass(frozen=True)
class Options:
    """What is not in the data.

    Attributes:
      pooling: of template protocols.
      bootstrap: draws of subjects for confidence intervals; 0 for none.
      groups: image id or identity -> group, for error rates by group; may be empty.
      group_fmr: false match rate of the one threshold for all groups.
      distractors: people who are in no test set [X, V, D]; or None.
    """

    pooling: Pooling = INSIGHTFACE
    bootstrap: int = 0
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group_fmr: float = 1e-3
    distractors: Stored | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """An evaluation set with the embeddings of the images that its protocols need.

    Attributes:
      data: the set.
      views: float32 [n, V, D]: of each image, and of its mirror image where V = 2.
      position: [rows of the source] -> index into views, or -1.
      unreadable: row -> reason.
      options: see there.
      summed: see `Stored.summed`.
    """

    data: EvaluationSet
    views: np.ndarray
    position: np.ndarray
    unreadable: Mapping[int, str] = dataclasses.field(default_factory=dict)
    options: Options = Options()
    summed: bool = False

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """Sum of the views [n, D]."""
        return np.asarray(self.views).sum(axis=1)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings [len(rows), D]."""
        return self.embeddings[self._places(rows)]

    def scores(self, pairs: Pairs) -> np.ndarray:
        """Cosine of each pair."""
        return similarity.pair_scores(
            self.embeddings, self._places(pairs.first), self._places(pairs.second)
        )

    def _places(self, rows: np.ndarray) -> np.ndarray:
        places = self.position[rows]
        if len(places) and places.min() < 0:  # -1 would be the last image
            raise ValueError("images without embeddings: `needed_rows` lacks them")
        return places


def needed_rows(data: EvaluationSet) -> np.ndarray:
    """Rows of the source that any protocol of a set needs, rising."""
    needed = [data.open_set_rows, data.gallery, data.probes]
    for pairs in (data.pairs, data.dev_pairs):
        if pairs is not None:
            needed += [pairs.first, pairs.second]
    if data.templates is not None:
        needed.append(data.faces.rows)
    return np.unique(np.concatenate(needed)).astype(int)


def from_stored(data: EvaluationSet, stored: Stored, options: Options) -> Embedded:
    """A set with embeddings that were computed before, here or elsewhere.

    Without ids row i is image i of the set.

    Raises:
      ValueError: an image of the set has no embedding, or the distractors were made by
        another network.
    """
    rows = needed_rows(data)
    check_crowd(options, stored.network, data.name)
    if stored.ids is None:
        count = len(data.faces.source)
        if len(stored.views) != count:
            raise ValueError(
                f"{data.name}: {len(stored.views)} embeddings without ids, expected "
                f"one for each of {count} images"
            )
        position = np.arange(count)
        unreadable = _zero_rows(stored.views, position, rows)
        views, position = _needed_only(stored.views, position, rows)
        return Embedded(data, views, position, unreadable, options, stored.summed)
    place = {id_: k for k, id_ in enumerate(stored.ids)}
    position = np.full(len(data.faces.source), -1)
    for id_, row in ids_of(data.faces.source).items():
        position[row] = place.get(id_, -1)
    lost = rows[position[rows] < 0]
    if len(lost):
        names = {row: id_ for id_, row in ids_of(data.faces.source).items()}
        first = names.get(int(lost[0]), f"#{lost[0]}")
        known = f"they begin with {stored.ids[0]!r}" if stored.ids else "there is none"
        raise ValueError(
            f"{data.name}: {len(lost)} of {len(rows)} images have no embedding, the "
            f"first is {first!r}; {known}"
        )
    row_of = np.full(len(stored.views), -1)
    row_of[position[rows]] = rows
    unreadable = _zero_rows(stored.views, position, rows) | {
        int(row_of[k]): why for k, why in stored.unreadable.items() if row_of[k] >= 0
    }
    views, position = _needed_only(stored.views, position, rows)
    return Embedded(data, views, position, unreadable, options, stored.summed)


def _needed_only(
    views: np.ndarray, position: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Views and positions of what a set needs out of a much larger store."""
    if 2 * len(rows) > len(views):
        return views, position
    used, place = np.unique(position[rows], return_inverse=True)
    moved = np.full(len(position), -1)
    moved[rows] = place
    return np.asarray(views[used]), moved


def check_crowd(options: Options, network: str, name: str) -> None:
    """Raises a ValueError where another network made the distractors of a set."""
    if options.distractors is not None:
        names = (f"the embeddings of {name}", "distractors")
        check_same_network(network, options.distractors.network, names)


def check_pooling(data: EvaluationSet, pooling: Pooling, flip: bool) -> None:
    """Raises a ValueError where templates need mirror images that are not embedded."""
    if data.templates is not None and pooling.flip and not flip:
        raise ValueError(
            f"pooling {pooling} adds the mirror images of {data.name}, which are not "
            "embedded (eval.flip is False): expected ...F0, or eval.flip=True"
        )


def _zero_rows(
    views: np.ndarray, position: np.ndarray, rows: np.ndarray, block: int = 8192
) -> dict[int, str]:
    """Rows whose embedding is 0: what tools write for an image they could not read."""
    found = {}
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        zero = ~views[position[part]].any(axis=(1, 2))
        found |= {int(row): "the embedding is 0" for row in part[zero]}
    return found
