"""What a protocol returns: numbers for results.json, and what the report draws."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from hyperface_jax.evaluation.open_set import OpenSet

COUNTS = ("genuine_pairs", "impostor_pairs", "probes", "gallery_size")
"""Names under which `verify` and `rank_k` return what their rates rest on."""

# Metric -> heading and definition, for readers of a table; the longer definitions are
# in the docstrings of `verification` and `identification`.
_METRICS = {
    "kfold_accuracy": (
        "k-fold accuracy",
        "accuracy on each fold at the threshold that is best on the other folds "
        "(InsightFace's definition); mean ± standard deviation of the folds",
    ),
    "kfold_std": ("k-fold std", "standard deviation of the folds' accuracy"),
    "kfold_standard_error": (
        "k-fold std error",
        "standard error of the mean of the folds' accuracy",
    ),
    "accuracy": (
        "accuracy",
        "accuracy at the threshold that is best on pairs of other people, who are in "
        "neither the training nor the test set; ± its binomial standard error",
    ),
    "standard_error": ("standard error", "√(a(1-a)/n) of the accuracy a on n pairs"),
    "overlap": (
        "overlap of angles",
        "area common to the histograms of angles within and between identities",
    ),
    "best_accuracy": (
        "best accuracy",
        "accuracy at the threshold that is best on these very pairs (OpenSphere's "
        "ACC): optimistic, not comparable with the k-fold accuracy",
    ),
    "eer": (
        "EER",
        "equal error rate: the share of accepted impostor pairs where it equals that "
        "of rejected genuine pairs, on the ROC joined by straight lines",
    ),
    "auc": (
        "AUC",
        "area under the ROC: how often a genuine pair scores above an impostor pair, "
        "ties counting half",
    ),
}
_TAR = (
    "largest share of genuine pairs accepted by a threshold that accepts at most this "
    "share of impostor pairs; absent where the impostor pairs are too few to show "
    "such a rate"
)
_RANK = (
    "share of probes whose mate is among the k best of the gallery, ties going against "
    "the mate; every probe has a mate (closed set)"
)


def describe(metric: str) -> tuple[str, str, str]:
    """Column heading, definition, and the name to define, e.g. `TAR @ FAR`.

    An unknown metric is its own heading and has an empty definition.
    """
    if metric in _METRICS:
        heading, definition = _METRICS[metric]
        return heading, definition, heading
    if metric.startswith("tar@far="):
        far = metric.removeprefix("tar@far=").replace("-", "\u2011")  # never broken
        return f"TAR @\u00a0{far}", _TAR, "TAR @ FAR"
    if metric.startswith("rank") and metric[4:].isdigit():
        return f"rank {metric[4:]}", _RANK, "rank k"
    return metric, "", metric


@dataclasses.dataclass(frozen=True, eq=False)
class HardPair:
    """A pair that the network gets most wrong, as a person should see it.

    Attributes:
      kind: what the pair is, not what the network took it for.
      score: its similarity.
      first_id: name of the first image, as in the data set.
      second_id: name of the second.
      first_image: RGB [H, W, 3].
      second_image: RGB [H, W, 3].
    """

    kind: Literal["genuine", "impostor"]
    score: float
    first_id: str
    second_id: str
    first_image: UInt8[np.ndarray, "H W 3"]
    second_image: UInt8[np.ndarray, "H2 W2 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Result of one protocol on one test set.

    Attributes:
      name: of the protocol, e.g. `verification`.
      metrics: fractions by name, see `verification` for definitions.
      counts: what they rest on, e.g. `genuine_pairs`.
      scores: similarity of each pair [n]; empty where the protocol has no pairs.
      is_genuine: [n].
      hardest: pairs to show.
      open_set: angles of all images, where they were computed.
      note: what a reader has to know, e.g. images that could not be read.
      test_set: whose images they are, e.g. `lfw`.
    """

    name: str
    metrics: dict[str, float]
    counts: dict[str, int]
    scores: Float[np.ndarray, " n"]
    is_genuine: Bool[np.ndarray, " n"]
    hardest: tuple[HardPair, ...] = ()
    open_set: OpenSet | None = None
    note: str = ""
    test_set: str = ""

    @property
    def key(self) -> str:
        """Prefix of its metrics, e.g. `lfw/verification`."""
        return f"{self.test_set}/{self.name}" if self.test_set else self.name

    def to_json(self) -> dict[str, Any]:
        """Numbers and strings only: no scores, no images, no NaN (JSON has none)."""
        result: dict[str, Any] = {
            "name": self.name,
            "test_set": self.test_set,
            "metrics": {name: _number(value) for name, value in self.metrics.items()},
            "counts": {name: int(value) for name, value in self.counts.items()},
        }
        if self.note:
            result["note"] = self.note
        if self.open_set is not None:
            fields = dataclasses.fields(self.open_set)
            values = {f.name: getattr(self.open_set, f.name) for f in fields}
            result["open_set"] = {
                name: _number(value)
                for name, value in values.items()
                if not isinstance(value, np.ndarray)
            }
        if self.hardest:
            result["hardest"] = [
                {
                    "kind": pair.kind,
                    "score": _number(pair.score),
                    "first_id": pair.first_id,
                    "second_id": pair.second_id,
                }
                for pair in self.hardest
            ]
        return result


def hardest_pairs(
    scores: Float[np.ndarray, " n"], is_genuine: Bool[np.ndarray, " n"], k: int
) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " i"]]:
    """Indices of the k lowest genuine and the k highest impostor scores, worst first.

    Fewer where there are fewer; ties in the order of the pairs.
    """
    genuine, impostor = np.flatnonzero(is_genuine), np.flatnonzero(~is_genuine)
    lowest = np.argsort(scores[genuine], kind="stable")[:k]
    highest = np.argsort(-scores[impostor], kind="stable")[:k]
    return genuine[lowest], impostor[highest]


def _number(value: float | int) -> float | int | str:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else str(float(value))
