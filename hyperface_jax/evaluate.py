"""Runs the protocols that a config or a command line names.

    python -m hyperface_jax.evaluate --workdir runs/sfr --set /data/lfw.bin
    python -m hyperface_jax.evaluate --set /data/IJBC --embeddings ijbc.npy --out ijbc

The first embeds with the network of a run, or with a model of `convert`; --embeddings
keeps what it computed and goes on where it was. The second needs no network, and no
accelerator: embeddings may come from anywhere.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from hyperface_jax import command_line, model, model_card, workdir
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.evaluation import embedding_files, protocols, test_sets
from hyperface_jax.evaluation.embedded import Options, from_stored, needed_rows
from hyperface_jax.evaluation.embedder import Embedder
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.reporting import outputs
from hyperface_jax.training import run_evaluation

log = logging.getLogger("hyperface_jax.evaluate")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.evaluate",
        description="Runs verification and identification protocols.",
    )
    add = p.add_argument
    add("--workdir", default="", help="run or model whose network embeds the images")
    add(
        "--set",
        action="append",
        default=[],
        metavar="ITEM",
        dest="sets",
        help="lfw.bin, 'PATH;PAIRS', IJB folder, faces; NAME=... names it",
    )
    add(
        "--embeddings",
        action="append",
        default=[],
        metavar="PATH",
        help="of the sets in order: folder of ours, .npy, .npz, .parquet",
    )
    add("--out", default="", help="folder for the report; default: WORKDIR/evaluation")
    add("--protocols", default=",".join(protocols.PROTOCOLS), metavar="NAMES")
    add("--pooling", default="N1D1F1", help="of templates, e.g. N1D0F1")
    add("--bootstrap", type=int, default=1000, help="draws for intervals; 0: none")
    add("--groups", default="", metavar="FILE", help="lines id,group; of image pairs")
    add("--group_fmr", type=float, default=1e-3, help="sets the one threshold of all")
    add("--distractors", default="", metavar="FILE", help="embeddings of strangers")
    add("--hardest", type=int, default=0, help="pairs of images to show")
    add("--checkpoint", default="", choices=["", "last", "best"], help="of a run")
    add("--batch_size", type=int, default=256, help="of a model; a run has its own")
    add("--threads", type=int, default=2, help="that decode, likewise")
    add("--part", default="", metavar="I/N", help="only embed part I of N, from 1")
    return p


def evaluate_files(arguments: argparse.Namespace) -> list[ProtocolResult]:
    """Runs a parsed command line.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    names = [name for name in a.protocols.split(",") if name]
    for name in names:
        if name not in protocols.PROTOCOLS:
            raise ValueError(
                f"--protocols has {name!r}, expected some of "
                f"{', '.join(protocols.PROTOCOLS)}"
            )
    tests = test_sets.open_all(a.sets)
    if a.hardest < 0:
        raise ValueError(f"--hardest is {a.hardest}, expected pairs, or 0 for none")
    if a.embeddings and len(a.embeddings) != len(tests):
        raise ValueError(
            f"--embeddings is given {len(a.embeddings)} times, expected once for each "
            f"of {len(tests)} sets"
        )
    options = run_evaluation.make_options(
        pooling=a.pooling,
        bootstrap=a.bootstrap,
        groups=a.groups,
        group_fmr=a.group_fmr,
        distractors=a.distractors,
    )
    if a.workdir:
        return _with_network(a, tests, options, names)
    needed = {"--set": tests, "--embeddings": a.embeddings, "--out": a.out}
    if missing := [name for name, value in needed.items() if not value]:
        raise ValueError(
            f"{' and '.join(missing)} missing: without --workdir, --set, --embeddings "
            "and --out are needed"
        )
    embedded = [
        from_stored(test, embedding_files.open_embeddings(path), options)
        for test, path in zip(tests, a.embeddings, strict=True)
    ]
    results = protocols.run_protocols(embedded, names, hardest=a.hardest)
    outputs.write_outputs(
        workdir.create(a.out),
        results,
        title="Evaluation of " + ", ".join(test.name for test in tests),
        model=", ".join(Path(path).stem for path in a.embeddings),
        summary={
            test.name: path for test, path in zip(tests, a.embeddings, strict=True)
        },
        pictures=a.hardest > 0,
    )
    protocols.raise_failed(results)
    return results


def _with_network(
    a: argparse.Namespace,
    tests: list[EvaluationSet],
    options: Options,
    names: list[str],
) -> list[ProtocolResult]:
    """With the network of a run, or a converted model."""
    opened = _open_model(a) if _is_model(a.workdir) else _open_run(a)
    tests = tests or opened.tests
    if not tests:
        raise ValueError(f"--set missing: {a.workdir} is a model without data")
    best = "_best" if a.checkpoint == "best" else ""
    out = workdir.create(a.out or opened.folder / f"evaluation{best}")
    paths = a.embeddings or [str(out / "embeddings" / test.name) for test in tests]
    embedder = opened.embedder
    if a.part:
        part, parts = _part(a.part)
        for test, path in zip(tests, paths, strict=True):
            rows = needed_rows(test)
            embedder.store(test.faces, rows, Path(path), part=part, parts=parts)
        log.info("part %s is embedded", a.part)
        return []
    embedded = [
        embedder.embed_kept(test, Path(path), options)
        for test, path in zip(tests, paths, strict=True)
    ]
    results = protocols.run_protocols(
        embedded, names, hardest=a.hardest, image_size=embedder.image_size
    )
    opened.report(out, results)
    protocols.raise_failed(results)
    return results


class _Opened(NamedTuple):
    """What --workdir names.

    Attributes:
      folder: where the evaluation goes by default.
      embedder: its network.
      tests: its own test sets.
      report: (folder, results) -> writes them.
    """

    folder: epath.Path
    embedder: Embedder
    tests: list[EvaluationSet]
    report: Callable[[epath.Path, list[ProtocolResult]], None]


def _is_model(folder: str) -> bool:
    return (workdir.absolute(folder) / model.DESCRIPTION).exists()


def _open_run(a: argparse.Namespace) -> _Opened:
    run, state, folder, best_step = run_evaluation.open_workdir(
        None, a.workdir, checkpoint=a.checkpoint
    )

    def report(out: epath.Path, results: list[ProtocolResult]) -> None:
        run_evaluation.report_run(run, state, out, results, best_step=best_step)

    embedder = run_evaluation.embedder_of(run, state)
    return _Opened(folder, embedder, list(run.evaluation_sets), report)


def _open_model(a: argparse.Namespace) -> _Opened:
    """What is measured goes into the model's card, too."""
    if a.checkpoint:
        raise ValueError(
            f"--checkpoint is {a.checkpoint!r} with {a.workdir}, expected none: it is "
            "a model, which has one"
        )
    made = model.load(a.workdir)
    folder = workdir.absolute(a.workdir)
    embedder = made.embedder(batch_size=a.batch_size, threads=a.threads)

    def report(out: epath.Path, results: list[ProtocolResult]) -> None:
        outputs.write_outputs(
            out,
            results,
            title=f"Evaluation of {a.workdir}",
            model=made.network["name"],
            summary={"Backbone": made.network["name"], "Weights": made.fingerprint},
            pictures=a.hardest > 0,
            embedding=embedder.facts,
        )
        measured = workdir.read_json(out / workdir.RESULTS)
        card = model_card.with_results(made.card, measured)
        try:
            model_card.write(folder, card)
        except ValueError as error:  # somebody else's model: the report is ours
            log.warning("%s; its card does not say what was measured", error)

    return _Opened(folder, embedder, [], report)


def _part(text: str) -> tuple[int, int]:
    if not text:
        return 0, 1
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--part is {text!r}, expected I/N such as 2/8")
    return int(part) - 1, int(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(evaluate_files, parser(), argv)


if __name__ == "__main__":
    main()
