"""Looks for mistakes in a labelled set by its embeddings; writes lists for prepare.

    python -m hyperface_jax.audit --source /data/faces --workdir runs/r50 --out audit
    python -m hyperface_jax.audit --source /data/faces --embeddings e.npy --out audit \
        --against lfw.bin --against_embeddings lfw.npy

writes, worst first, candidates for a person to look at:

    look_alikes.tsv   identities that look like another one (the smaller of each two)
    outliers.tsv      images far from their own identity and close to another
    noisy.tsv         with --sub_centres: images 75 degrees and more from the main one
                      of the centres that sub-center ArcFace gave their identity
    overlap_NAME.tsv  identities that occur in the test set NAME
    audit.md          counts and thresholds

Each .tsv is a list that `prepare --exclude` and `data.exclude` take as it is.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from hyperface_jax import command_line, model, workdir
from hyperface_jax.data import sources
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.name_lists import write_names
from hyperface_jax.evaluation import (
    auditing,
    embedding_files,
    stored,
    sub_centres,
    test_sets,
)
from hyperface_jax.evaluation.embedded import Embedded, Options, from_stored
from hyperface_jax.training import run_evaluation
from hyperface_jax.training.checkpoint import Checkpoints

log = logging.getLogger("hyperface_jax.audit")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.audit",
        description="Looks for mistakes in a labelled set by its embeddings.",
    )
    add = p.add_argument
    add("--source", required=True, metavar="PATH", help="the set, as for prepare")
    add("--embeddings", default="", metavar="PATH", help="of its images; see evaluate")
    add(
        "--workdir",
        default="",
        help="run or model whose network embeds what is missing",
    )
    add("--sub_centres", action="store_true", help="with those of --workdir's run")
    add("--out", required=True, help="folder for the lists")
    add("--against", action="append", default=[], metavar="ITEM", help="a test set")
    add("--against_embeddings", action="append", default=[], metavar="PATH")
    add("--threshold", type=float, default=None, help="cosine from which two are one")
    add(
        "--false_alarms",
        type=float,
        default=1.0,
        help="without --threshold: expected wrong candidates in each list",
    )
    add("--top", type=int, default=100_000, help="candidates in a list, at most")
    return p


def audit(arguments: argparse.Namespace) -> Path:
    """Runs a parsed command line; returns the folder of the lists.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    faces = sources.open_paths(a.source)
    whole = EvaluationSet(
        faces.name.split("/")[0], faces, None, open_set_rows=faces.rows
    )
    tests = test_sets.open_all(a.against)
    given = a.against_embeddings or [""] * len(tests)
    if len(given) != len(tests):
        raise ValueError(
            f"--against_embeddings is given {len(given)} times, expected "
            f"{len(tests)}, once for each --against"
        )
    run_centres = _sub_centres(a.workdir) if a.sub_centres else None
    out = Path(workdir.create(a.out))
    mine, *others = _embed([whole, *tests], [a.embeddings, *given], a.workdir, out)
    embeddings, labels = mine.of(faces.rows), faces.labels.astype(np.int64)
    if len(broken := np.flatnonzero(~np.isfinite(embeddings.sum(axis=1)))):
        raise ValueError(
            f"{faces.name}: {len(broken)} of {len(embeddings)} embeddings hold NaN or "
            f"infinity, the first is of row {faces.rows[broken[0]]}"
        )
    centres = auditing.class_centres(embeddings, labels, num_classes=faces.num_classes)
    threshold = a.threshold
    if threshold is None:
        try:
            threshold = auditing.suggest_threshold(
                centres.unit, false_alarms=float(a.false_alarms)
            )
        except ValueError as error:
            raise ValueError(f"{error} (--threshold COSINE)") from None
    lines = [
        f"# Audit of {faces.name}",
        "",
        f"- {faces.num_classes:,} identities, {len(faces):,} images, of which "
        f"{centres.left_out:,} have no embedding",
        f"- threshold: cosine {threshold:.4f}"
        + ("" if a.threshold is not None else " (estimated from the set itself)"),
    ]
    pairs = auditing.look_alike_classes(centres.unit, threshold=threshold, top=a.top)
    counts = np.bincount(labels, minlength=faces.num_classes)
    write_names(out / "look_alikes.tsv", _look_alikes(faces, pairs, counts))
    lines.append(f"- pairs of identities that look like one person: {pairs.found:,}")
    wrong = auditing.outliers(
        embeddings, labels, centres, threshold=threshold, top=a.top
    )
    write_names(out / "outliers.tsv", _outliers(faces, wrong))
    lines.append(
        f"- images closer to another identity than to their own: {wrong.found:,} of "
        f"{wrong.judged:,} that could be judged"
    )
    if run_centres:
        far = _far_from_sub_centres(faces, embeddings, *run_centres)
        write_names(out / "noisy.tsv", _noisy(faces, far))
        lines.append(
            f"- images far from the dominant sub-centre of their identity: "
            f"{len(far.rows):,} of {far.judged:,}"
        )
    for test, found in zip(tests, others, strict=True):
        overlap = _overlap(faces, centres, test, found, threshold, a.top)
        write_names(out / f"overlap_{test.name}.tsv", overlap)
        lines.append(f"- identities that occur in {test.name}: {len(overlap):,}")
    lines += ["", "Candidates to be looked at: relatives look alike, too.", ""]
    workdir.write_text(epath.Path(out) / "audit.md", "\n".join(lines))
    log.info("%s", "\n".join(lines[2:-2]))
    return out


def _embed(
    sets: Sequence[EvaluationSet], paths: Sequence[str], network: str, out: Path
) -> list[Embedded]:
    """Embeddings of all sets: those that are given, else with a network."""
    if network:
        embedder = model.load(network).embedder()
        return [
            embedder.embed_kept(
                test, Path(path or out / "embeddings" / test.name), Options()
            )
            for test, path in zip(sets, paths, strict=True)
        ]
    found, first = [], None
    for test, path in zip(sets, paths, strict=True):
        if not path:
            raise ValueError(f"{test.name}: no embeddings given, and no --workdir")
        given = embedding_files.open_embeddings(path)
        first = first or given
        stored.check_same_network(first.network, given.network, (paths[0], path))
        found.append(from_stored(test, given, Options()))
        sizes = [each.views.shape[-1] for each in (found[0], found[-1])]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{path}: embeddings of {sizes[1]} numbers, those of {sets[0].name} "
                f"have {sizes[0]}"
            )
    return found


def _look_alikes(
    faces: FaceSet, pairs: auditing.ClassPairs, counts: np.ndarray
) -> list[tuple[str, ...]]:
    """Of each pair the identity with fewer images, each once."""
    rows: dict[str, tuple[str, ...]] = {}
    for a, b, cosine in zip(*pairs[:3], strict=True):
        few, many = (a, b) if counts[a] <= counts[b] else (b, a)
        name = faces.identities[few]
        note = f"looks like {faces.identities[many]}, cosine {cosine:.3f}"
        rows.setdefault(name, ("identity", name, note))
    return list(rows.values())


def _outliers(faces: FaceSet, found: auditing.Outliers) -> list[tuple[str, ...]]:
    rows = found.rows.tolist()
    records = faces.read(rows) if rows else []
    return [
        (
            "image",
            record["id"],
            f"{faces.identities[faces.labels[row]]} {own:.3f}, "
            f"{faces.identities[other]} {cosine:.3f}",
        )
        for record, row, own, other, cosine in zip(
            records, rows, found.own, found.other_class, found.other, strict=True
        )
        if isinstance(record, dict)
    ]


def _sub_centres(folder: str) -> tuple[np.ndarray, Sequence[str]]:
    """Centres [C, K, D] of a run, and its C identities.

    Raises:
      ValueError: there is no run, or it has no sub-centres.
    """
    if not folder:
        raise ValueError("--sub_centres needs --workdir, a run of subcenter_arcface")
    run, _, path, _ = run_evaluation.open_workdir(None, folder)
    with Checkpoints(path, clean=False) as checkpoints:
        centres = np.asarray(checkpoints.restore_prototypes())
    names = run.train_set.identities
    return sub_centres.check(centres[: len(names)]), names


def _far_from_sub_centres(
    faces: FaceSet, embeddings, centres, names: Sequence[str]
) -> sub_centres.FarImages:
    """Of the run's identities, found by their names in the set."""
    place = {name: k for k, name in enumerate(names)}
    classes = np.array([place.get(name, -1) for name in faces.identities])
    return sub_centres.far_from_dominant(embeddings, classes[faces.labels], centres)


def _noisy(faces: FaceSet, far: sub_centres.FarImages) -> list[tuple[str, ...]]:
    records = faces.read(far.rows.tolist()) if len(far.rows) else []
    return [
        ("image", record["id"], f"{cosine:.3f} with the dominant sub-centre")
        for record, cosine in zip(records, far.cosines, strict=True)
        if isinstance(record, dict)
    ]


def _overlap(faces, centres, test, found: Embedded, threshold: float, top: int):
    """Training identities close to somebody in a test set."""
    seen = np.flatnonzero(found.position >= 0)
    people = test.faces.label_of_row()[seen]
    pairs = auditing.overlapping_identities(
        centres.unit, found.of(seen), people, threshold, top=top
    )
    rows: dict[str, tuple[str, ...]] = {}
    for a, b, cosine in zip(*pairs[:3], strict=True):
        name = faces.identities[a]
        note = f"looks like {test.faces.identities[b]} of {test.name}, {cosine:.3f}"
        rows.setdefault(name, ("identity", name, note))
    return list(rows.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(audit, parser(), argv)


if __name__ == "__main__":
    main()
