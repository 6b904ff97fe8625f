"""Runs the protocols that a config or a command line names.

    python -m hyperface_jax.evaluate --workdir runs/sfr --set /data/lfw.bin
    python -m hyperface_jax.evaluate --set /data/IJBC --embeddings ijbc.npy --out ijbc

The first embeds with the network of a run; --embeddings keeps what it computed and goes
on where it was. The second needs no network, and no accelerator: embeddings may come
from anywhere.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from hyperface_jax import (
    command_line,
    embed,
    model,
    model_card,
    outputs,
    run_evaluation,
    workdir,
)
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.evaluation import protocols, stored, test_sets
from hyperface_jax.evaluation.embedded import (
    Embedded,
    Options,
    from_stored,
    needed_rows,
)
from hyperface_jax.evaluation.results import ProtocolResult

log = logging.getLogger("hyperface_jax.evaluate")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.evaluate",
        description="Runs verification and identification protocols.",
    )
    add = p.add_argument
    add("--workdir", default="", help="of a run whose network embeds the images")
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
        help="of the sets in order: folder of ours, .npy, .npz",
    )
    add("--out", default="", help="folder for the report; default: WORKDIR/evaluation")
    add("--protocols", default=",".join(protocols.PROTOCOLS), metavar="NAMES")
    add("--pooling", default="N1D1F1", help="of templates, e.g. N1D0F1")
    add("--bootstrap", type=int, default=1000, help="draws for intervals; 0: none")
    add("--groups", default="", metavar="FILE", help="lines id,group")
    add("--group_fmr", type=float, default=1e-3, help="sets the one threshold of all")
    add("--distractors", default="", metavar="FILE", help="embeddings of strangers")
    add("--hardest", type=int, default=0, help="pairs to show as pictures")
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
    if a.workdir and (Path(a.workdir) / model.DESCRIPTION).exists():
        return _with_model(a, tests, options, names)
    if a.workdir:
        return _with_network(a, tests, options, names)
    needed = {"--set": tests, "--embeddings": a.embeddings, "--out": a.out}
    if missing := [name for name, value in needed.items() if not value]:
        raise ValueError(
            f"{' and '.join(missing)} missing: without --workdir, --set, --embeddings "
            "and --out are needed"
        )
    embedded = [
        from_stored(test, stored.open_embeddings(path), options)
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
    return results


def _with_network(
    a: argparse.Namespace,
    tests: list[EvaluationSet],
    options: Options,
    names: list[str],
) -> list[ProtocolResult]:
    run, state, folder, best_step = run_evaluation.open_workdir(None, a.workdir)
    out = workdir.create(a.out or folder / "evaluation")
    tests = tests or list(run.evaluation_sets)
    paths = a.embeddings or [str(out / "embeddings" / test.name) for test in tests]
    part, parts = _part(a.part)
    embedded: list[Embedded] = []
    for test, path in zip(tests, paths, strict=True):
        store = run_evaluation.store_embeddings(
            run, state, test, Path(path), part=part, parts=parts
        )
        if not a.part:
            embedded.append(from_stored(test, store.read(), options))
    if a.part:
        log.info("part %s is embedded", a.part)
        return []
    results = protocols.run_protocols(
        embedded, names, hardest=a.hardest, image_size=run.config.data.image_size
    )
    run_evaluation.report_run(run, state, out, results, best_step=best_step)
    return results


def _with_model(
    a: argparse.Namespace,
    tests: list[EvaluationSet],
    options: Options,
    names: list[str],
) -> list[ProtocolResult]:
    """With a converted model; what is measured goes into its card, too."""
    if not tests:
        raise ValueError(f"--set missing: {a.workdir} is a model without data")
    made = model.load(a.workdir)
    out = workdir.create(a.out or Path(a.workdir) / "evaluation")
    paths = a.embeddings or [str(out / "embeddings" / test.name) for test in tests]
    embedded = [
        from_stored(
            test,
            embed.stored_views(
                made, test.faces, needed_rows(test), Path(path), exact=False
            ).read(),
            options,
        )
        for test, path in zip(tests, paths, strict=True)
    ]
    results = protocols.run_protocols(
        embedded, names, hardest=a.hardest, image_size=made.image_size
    )
    outputs.write_outputs(
        out,
        results,
        title=f"Evaluation of {a.workdir}",
        model=made.network["name"],
        summary={"Backbone": made.network["name"], "Weights": made.fingerprint},
        pictures=a.hardest > 0,
    )
    measured = workdir.read_json(out / workdir.RESULTS)
    card = model_card.with_results(made.card, measured, mirrored=True)
    model_card.write(workdir.absolute(a.workdir), card)
    return results


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
