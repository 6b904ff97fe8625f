"""Protocols on single images: verification, open-set angles, identification.

Each takes an `Embedded` and returns a result, or None where the set does not offer it.
"""

import numpy as np

from hyperface_jax.data.pairs import Pairs
from hyperface_jax.evaluation import (
    discard,
    distractors,
    groups,
    identification,
    intervals,
    open_set,
    roc,
    verification,
)
from hyperface_jax.evaluation.embedded import Embedded, needed_rows
from hyperface_jax.evaluation.results import ProtocolResult, result_of

CMC_RANKS = 100
DISCARDED = (0.0, 0.05, 0.1, 0.2)
_REJECTED = 30  # by fewer the area is .9 to 1.1 by chance, and more
_TINYFACE, _MEGAFACE = (1, 5, 20), (1, 5, 10)


def verify_folds(e: Embedded) -> ProtocolResult | None:
    """1:1 verification; the threshold of a fold comes from the other folds.

    Of a single fold all but the k-fold accuracy; nothing where held-out people give
    its threshold (`verify_held_out`).
    """
    pairs = e.data.pairs
    if pairs is None:
        return None
    folds, found = pairs.fold, {}
    if len(np.unique(folds)) < 2:
        if e.data.dev_pairs is not None:
            return None
        folds = None
    scores = e.scores(pairs)
    metrics = verification.verify(scores, pairs.is_genuine, folds)
    if folds is not None:
        each = verification.kfold_accuracy(scores, pairs.is_genuine, folds)
        found = {"kfold_accuracy": intervals.fold_interval(each.per_fold)}
    return result_of(
        "verification",
        metrics,
        scores=scores,
        is_genuine=pairs.is_genuine,
        intervals=found | _bootstrap(e, pairs, scores),
        groups=_by_group(e, pairs, scores),
    )


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
    return result_of(
        "held_out_threshold",
        metrics,
        scores=scores,
        is_genuine=pairs.is_genuine,
        intervals=_bootstrap(e, pairs, scores),
    )


def discard_by_length(e: Embedded) -> ProtocolResult | None:
    """FNMR as pairs with short embeddings are discarded; needs 100 pairs of each kind.

    Of images that could be read. Nothing where all embeddings have one length, as many
    tools store them; no area where so few pairs are rejected that it would be chance.
    """
    if (pairs := e.data.pairs) is None:
        return None
    lost = list(e.unreadable)
    pairs = pairs.take(~np.isin(pairs.first, lost) & ~np.isin(pairs.second, lost))
    genuine, impostors = pairs.is_genuine.sum(), (~pairs.is_genuine).sum()
    if min(genuine, impostors) < 100:
        return None
    rows, ends = np.unique([pairs.first, pairs.second], return_inverse=True)
    views = np.asarray(e.views[e.position[rows]], np.float64)
    each = np.linalg.norm(views, axis=2)
    if (each.std(axis=0) < 1e-4 * each.mean(axis=0)).all():
        return None
    quality = np.linalg.norm(views.sum(axis=1), axis=1)[ends].min(axis=0)
    fmr = 1e-3 if impostors >= 1000 else 1e-2
    found = discard.error_versus_discard(
        e.scores(pairs), pairs.is_genuine, quality, fmr=fmr
    )
    metrics = {f"fnmr@discard={p:g}": found.fnmr_at(p) for p in DISCARDED}
    if found.fnmr[0] * genuine >= _REJECTED:
        metrics["edc_area"] = found.area
    counts = {"genuine_pairs": float(genuine), "impostor_pairs": float(impostors)}
    note = (
        f"threshold at FMR {roc.far_label(fmr)}; the quality is the embedding's length"
    )
    return result_of("error_versus_discard", metrics | counts, discard=found, note=note)


def _bootstrap(e: Embedded, pairs: Pairs, scores: np.ndarray):
    """Intervals over subjects, where the set says who is in its images."""
    if not e.options.bootstrap:
        return {}
    subject = e.data.faces.label_of_row()
    first, second = subject[pairs.first], subject[pairs.second]
    if ((first == second) != pairs.is_genuine).any():
        return {}
    return intervals.bootstrap_verification(
        scores, pairs.is_genuine, first, second, draws=e.options.bootstrap
    )


def _by_group(e: Embedded, pairs: Pairs, scores: np.ndarray):
    """Error rates by group; groups are given by image id or by identity."""
    if not e.options.groups:
        return None
    faces = e.data.faces
    labels = faces.label_of_row()
    names = {}
    rows = np.union1d(pairs.first, pairs.second).tolist()
    for row, record in zip(rows, faces.source.__getitems__(rows), strict=True):
        id_ = record["id"] if isinstance(record, dict) else ""
        person = faces.identities[labels[row]] if labels[row] >= 0 else ""
        names[row] = id_ if id_ in e.options.groups else person
    return groups.rates_by_group(
        scores,
        pairs.is_genuine,
        [names[row] for row in pairs.first.tolist()],
        [names[row] for row in pairs.second.tolist()],
        e.options.groups,
        fmr=e.options.group_fmr,
    )


def open_set_protocol(e: Embedded) -> ProtocolResult | None:
    """The papers' criterion: largest intra-class against smallest inter-class angle."""
    rows = e.data.open_set_rows
    rows = rows[~np.isin(rows, list(e.unreadable))]  # without an angle
    identity = e.data.faces.label_of_row()[rows]
    people = len(np.unique(identity))
    if people < 2 or people == len(rows):
        return None
    found = open_set.open_set_criterion(e.of(rows), identity)
    metrics = {
        "max_intra_degrees": found.max_intra,
        "min_inter_degrees": found.min_inter,
        "intra_q99_degrees": found.intra_q99,
        "inter_q01_degrees": found.inter_q01,
        "overlap": found.overlap,
        "genuine_pairs": float(found.genuine_pairs),
        "impostor_pairs": float(found.impostor_pairs),
    }
    return result_of("open_set", metrics, open_set=found)


def identify(e: Embedded) -> ProtocolResult | None:
    """Closed-set 1:N: each probe is looked for in the gallery."""
    gallery, probes = e.data.gallery, e.data.probes
    if not len(gallery) or not len(probes):
        return None
    labels = e.data.faces.label_of_row()
    mine = (e.of(gallery), labels[gallery], e.of(probes), labels[probes])
    ranks = identification.mate_ranks(*mine)
    metrics = identification.shares_of_ranks(ranks, len(gallery))
    found = {}
    if e.options.bootstrap:
        ks = [int(k[4:]) for k in metrics if k.startswith("rank")]
        found = intervals.bootstrap_rank_k(
            ranks, labels[probes], ks, draws=e.options.bootstrap
        )
    curve = identification.cmc(ranks, min(CMC_RANKS, len(gallery)))
    return result_of("identification", metrics, intervals=found, cmc=curve)


def identify_among_distractors(e: Embedded) -> ProtocolResult | None:
    """1:N with distractors: TinyFace's rule where there is a gallery, else MegaFace's.

    MegaFace: every other image of a probe's identity is put alone among the
    distractors. TinyFace: the whole gallery with the distractors.
    """
    if e.options.distractors is None or e.data.templates is not None:
        return None
    crowd = e.options.distractors.embeddings
    if crowd.shape[1] != e.views.shape[2]:
        raise ValueError(
            f"distractors have {crowd.shape[1]} dimensions, the embeddings of "
            f"{e.data.name} {e.views.shape[2]}: expected those of one network"
        )
    labels = e.data.faces.label_of_row()
    gallery, probes = e.data.gallery, e.data.probes
    if len(gallery) and len(probes):
        rule, ks = "tinyface", _TINYFACE
        ranks = distractors.gallery_ranks_among_distractors(
            *(e.of(gallery), labels[gallery], e.of(probes), labels[probes]),
            crowd,
            max_rank=CMC_RANKS,
        )
        searches = {"probes": len(probes), "gallery_size": len(gallery)}
    else:
        rule, ks = "megaface", _MEGAFACE
        # Of a split the set holds everybody; embedded are those who are tested.
        rows = np.intersect1d(e.data.faces.rows, needed_rows(e.data))
        if len(np.unique(labels[rows])) == len(rows):
            return None
        found = distractors.ranks_among_distractors(
            e.of(rows), labels[rows], crowd, max_rank=CMC_RANKS
        )
        ranks = found.rank
        searches = {"probes": len(rows), "searches": len(ranks)}
    metrics = {f"rank{k}": float(np.mean(ranks <= k)) for k in ks}
    return result_of(
        f"distractors_{rule}",
        metrics | searches | {"distractors": len(crowd)},
        cmc=identification.cmc(ranks, CMC_RANKS),
    )
