"""What a protocol returns: numbers for results.json, and what the report draws."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from hyperface_jax.evaluation.discard import Discard
from hyperface_jax.evaluation.groups import GroupTable
from hyperface_jax.evaluation.intervals import Interval
from hyperface_jax.evaluation.open_set import OpenSet

COUNTS = (
    "genuine_pairs",
    "impostor_pairs",
    "development_pairs",
    "probes",
    "gallery_size",
    "searches",
    "distractors",
)
"""Names under which metric functions return what their rates rest on."""

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
    "edc_area": (
        "EDC area",
        "mean FNMR while up to 20 % of the genuine pairs are discarded, shortest "
        "embeddings first, over the FNMR of all: 100 % where the length tells nothing "
        "of the image, less is better",
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
_NEAREST = (
    "TAR at the point of the ROC whose FAR is nearest to this one, which it may exceed "
    "(InsightFace's definition, for comparison with published numbers)"
)
_TPIR = (
    "share of probes whose mate is found above a threshold at which false alarms have "
    "this rate; nist and pairs count differently and are not comparable (see note)"
)
_DISCARD = (
    "false non-match rate of the genuine pairs that are left when this share of them, "
    "with the shortest embeddings, is discarded (the shorter of the two counts); the "
    "threshold is that of all pairs"
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
    if metric.startswith("nearest_tar@far="):
        far = metric.removeprefix("nearest_tar@far=").replace("-", "\u2011")
        return f"nearest TAR @\u00a0{far}", _NEAREST, "nearest TAR @ FAR"
    if metric.startswith("fnmr@discard="):
        percent = f"{100 * float(metric.removeprefix('fnmr@discard=')):g}\u202f%"
        return f"FNMR, {percent} discarded", _DISCARD, "FNMR, discarded"
    prefix, _, rest = metric.rpartition("_") if "_" in metric else ("", "", metric)
    kind = f"{prefix} " if prefix else ""
    if rest.startswith("rank") and rest[4:].isdigit():
        return f"{kind}rank {rest[4:]}", _RANK, "rank k"
    if rest.startswith("tpir@fpir="):
        rate = rest.removeprefix("tpir@fpir=").replace("-", "\u2011")
        return f"{kind}TPIR @\u00a0{rate}", _TPIR, "TPIR @ FPIR"
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
      intervals: metric -> 95 % confidence interval.
      cmc: share of searches with rank <= k [K], from k = 1; or None.
      groups: error rates by group at one threshold, or None.
      discard: FNMR over the share of pairs discarded, or None.
      failed: why there is nothing else; "" as a rule.
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
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    cmc: Float[np.ndarray, " K"] | None = None
    groups: GroupTable | None = None
    discard: Discard | None = None
    failed: str = ""

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
        for key in ("note", "failed"):
            if text := getattr(self, key):
                result[key] = text
        if self.intervals:
            result["intervals"] = {
                name: [_number(found.low), _number(found.high)]
                for name, found in self.intervals.items()
            }
        if self.cmc is not None:
            result["cmc"] = [_number(share) for share in self.cmc.tolist()]
        if self.groups is not None:
            table = self.groups
            result["groups"] = {
                "threshold": _number(table.threshold),
                "fmr": _number(table.fmr),
                "fnmr": _number(table.fnmr),
                "rows": [row._asdict() for row in table.rows],
            }
        if self.discard is not None:
            found = self.discard
            result["discard"] = {
                "threshold": _number(found.threshold),
                "fmr": _number(found.fmr),
                "share": found.share.tolist(),
                "fnmr": found.fnmr.tolist(),
            }
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


def result_of(name: str, values: Mapping[str, float], **fields: Any) -> ProtocolResult:
    """A result from a metric function's dict, in which rates and counts are mixed.

    Args:
      name: of the protocol.
      values: rates, and counts under a name of `COUNTS`.
      **fields: of `ProtocolResult`; no scores unless given.
    """
    fields.setdefault("scores", np.zeros(0))
    fields.setdefault("is_genuine", np.zeros(0, bool))
    return ProtocolResult(
        name=name,
        metrics={k: float(v) for k, v in values.items() if k not in COUNTS},
        counts={k: int(v) for k, v in values.items() if k in COUNTS},
        **fields,
    )


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
