"""The protocols, each one function of embedded images, and how to run them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.data.records import BadRecordError, Record
from hyperface_jax.evaluation import identification, open_set, roc, verification
from hyperface_jax.evaluation.embed import embed_rows
from hyperface_jax.evaluation.results import HardPair, ProtocolResult, hardest_pairs

EmbedFn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass
class Embedded:
    """An evaluation set with the embeddings of the images that its protocols need.

    Attributes:
      data: the set.
      embeddings: float32 [n, D].
      position: [rows of the source] -> index into embeddings, or -1.
      unreadable: row -> reason.
    """

    data: EvaluationSet
    embeddings: np.ndarray
    position: np.ndarray
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings [len(rows), D]."""
        return self.embeddings[self.position[rows]]

    def scores(self, pairs: Pairs) -> np.ndarray:
        """Cosine of each pair."""
        return verification.pair_scores(
            self.embeddings, self.position[pairs.first], self.position[pairs.second]
        )


def verify_folds(e: Embedded) -> ProtocolResult | None:
    """1:1 verification; the threshold of a fold comes from the other folds."""
    pairs = e.data.pairs
    if pairs is None or len(np.unique(pairs.fold)) < 2:
        return None
    scores = e.scores(pairs)
    metrics = verification.verify(scores, pairs.is_genuine, pairs.fold)
    return _result("verification", metrics, scores, pairs)


def verify_held_out(e: Embedded) -> ProtocolResult | None:
    """1:1 verification; the threshold comes from pairs of people in neither set."""
    pairs, dev = e.data.pairs, e.data.dev_pairs
    if pairs is None or dev is None:
        return None
    threshold = verification.choose_threshold(e.scores(dev), dev.is_genuine)
    scores = e.scores(pairs)
    accuracy = verification.accuracy_at_threshold(scores, pairs.is_genuine, threshold)
    metrics = {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / len(pairs))),
        "threshold": threshold,
        "best_accuracy": verification.best_accuracy(scores, pairs.is_genuine),
        "eer": roc.equal_error_rate(scores, pairs.is_genuine),
        "auc": roc.auc(scores, pairs.is_genuine),
        "genuine_pairs": float(pairs.is_genuine.sum()),
        "impostor_pairs": float((~pairs.is_genuine).sum()),
        "development_pairs": float(len(dev)),
    }
    return _result("held_out_threshold", metrics, scores, pairs)


def open_set_protocol(e: Embedded) -> ProtocolResult | None:
    """The papers' criterion: largest intra-class against smallest inter-class angle."""
    rows = e.data.open_set_rows
    labels = e.data.faces.label_of_row()[rows]
    if (
        len(rows) < 2
        or len(np.unique(labels)) < 2
        or len(np.unique(labels)) == len(rows)
    ):
        return None
    found = open_set.open_set_criterion(e.of(rows), labels)
    return ProtocolResult(
        name="open_set",
        metrics={
            "max_intra_degrees": found.max_intra,
            "min_inter_degrees": found.min_inter,
            "intra_q99_degrees": found.intra_q99,
            "inter_q01_degrees": found.inter_q01,
            "overlap": found.overlap,
        },
        counts={
            "genuine_pairs": found.genuine_pairs,
            "impostor_pairs": found.impostor_pairs,
        },
        scores=np.zeros(0),
        is_genuine=np.zeros(0, bool),
        open_set=found,
    )


def identify(e: Embedded) -> ProtocolResult | None:
    """Closed-set 1:N: each probe is looked for in the gallery."""
    gallery, probes = e.data.gallery, e.data.probes
    if not len(gallery) or not len(probes):
        return None
    labels = e.data.faces.label_of_row()
    metrics = identification.rank_k(
        e.of(gallery), labels[gallery], e.of(probes), labels[probes]
    )
    rates = {k: v for k, v in metrics.items() if k.startswith("rank")}
    counts = {k: int(v) for k, v in metrics.items() if k not in rates}
    return ProtocolResult(
        name="identification",
        metrics=rates,
        counts=counts,
        scores=np.zeros(0),
        is_genuine=np.zeros(0, bool),
    )


PROTOCOLS: dict[str, Callable[[Embedded], ProtocolResult | None]] = {
    "verification": verify_folds,
    "held_out_threshold": verify_held_out,
    "open_set": open_set_protocol,
    "identification": identify,
    "combined": lambda _: None,  # of all sets together, see `combine`
}


def _result(
    name: str, metrics: dict[str, float], scores: np.ndarray, pairs: Pairs
) -> ProtocolResult:
    counts = {k: int(v) for k, v in metrics.items() if k.endswith("_pairs")}
    rates = {k: v for k, v in metrics.items() if k not in counts}
    return ProtocolResult(
        name=name,
        metrics=rates,
        counts=counts,
        scores=scores,
        is_genuine=pairs.is_genuine,
    )


def embed_evaluation_set(
    data: EvaluationSet,
    embed: EmbedFn,
    *,
    image_size: int,
    batch_size: int,
    threads: int,
    mesh: Mesh,
) -> Embedded:
    """Embeds each image that any protocol needs, once."""
    needed = [data.open_set_rows, data.gallery, data.probes]
    for pairs in (data.pairs, data.dev_pairs):
        if pairs is not None:
            needed += [pairs.first, pairs.second]
    rows = np.unique(np.concatenate(needed)).astype(int)
    embeddings, unreadable = embed_rows(
        embed,
        data.faces,
        rows,
        image_size=image_size,
        batch_size=batch_size,
        threads=threads,
        mesh=mesh,
    )
    position = np.full(len(data.faces.source), -1)
    position[rows] = np.arange(len(rows))
    return Embedded(data, embeddings, position, unreadable)


def run_protocols(
    sets: Sequence[Embedded],
    names: Sequence[str],
    *,
    hardest: int = 0,
    image_size: int = 112,
) -> list[ProtocolResult]:
    """Results of the named protocols; those that a set does not offer are left out.

    Args:
      sets: from `embed_evaluation_set`.
      names: of `PROTOCOLS`.
      hardest: genuine and impostor pairs to keep as pictures; 0 for none.
      image_size: of these pictures.
    """
    results = []
    for embedded in sets:
        for name in names:
            result = PROTOCOLS[name](embedded)
            if result is None:
                continue
            if embedded.unreadable:
                result.counts["unreadable_images"] = len(embedded.unreadable)
            if hardest and len(result.scores):
                result = with_pictures(result, embedded, hardest, image_size)
            results.append(dataclasses.replace(result, test_set=embedded.data.name))
    if "combined" in names:
        results += combine(results)
    return results


def combine(results: Sequence[ProtocolResult]) -> list[ProtocolResult]:
    """All pairs of all sets with k-fold pairs in one ROC, as OpenSphere validates.

    One threshold for all sets: harder than the mean of the sets' accuracies.
    """
    parts = [r for r in results if r.name == "verification"]
    if len(parts) < 2:
        return []
    scores = np.concatenate([r.scores for r in parts])
    is_genuine = np.concatenate([r.is_genuine for r in parts])
    metrics = verification.verify(scores, is_genuine)
    pairs = Pairs(*[np.zeros(0, int)] * 2, is_genuine, np.zeros(0, int))
    result = _result("combined", metrics, scores, pairs)
    note = "pairs of " + ", ".join(r.test_set for r in parts)
    return [dataclasses.replace(result, test_set="all", note=note)]


def with_pictures(
    result: ProtocolResult, embedded: Embedded, count: int, image_size: int
) -> ProtocolResult:
    """Adds the `count` least similar genuine and most similar impostor pairs."""
    pairs = embedded.data.pairs
    assert pairs is not None
    source = embedded.data.faces.source
    kept = []
    chosen = hardest_pairs(result.scores, result.is_genuine, count)
    for k in np.concatenate(chosen):
        records = source.__getitems__([int(pairs.first[k]), int(pairs.second[k])])
        first, second = (_picture(record, image_size) for record in records)
        kept.append(
            HardPair(
                kind="genuine" if result.is_genuine[k] else "impostor",
                score=float(result.scores[k]),
                first_id=first[0],
                second_id=second[0],
                first_image=first[1],
                second_image=second[1],
            )
        )
    return dataclasses.replace(result, hardest=tuple(kept))


def _picture(record: Record, size: int) -> tuple[str, np.ndarray]:
    """Id and image; black where it cannot be read."""
    black = np.zeros((size, size, 3), np.uint8)
    if isinstance(record, BadRecordError):
        return "unreadable", black
    try:
        return record["id"], decode_image(record["image"], size)
    except BadRecordError:
        return record["id"], black


def flat_metrics(results: Sequence[ProtocolResult]) -> dict[str, float]:
    """{"test/verification/kfold_accuracy": value}, for logs and the best checkpoint."""
    return {
        f"{result.key}/{key}": value
        for result in results
        for key, value in result.metrics.items()
    }
