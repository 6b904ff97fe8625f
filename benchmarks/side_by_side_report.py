"""Tables of `side_by_side.py`: settings, losses beside each other, ablations.

    python benchmarks/side_by_side_report.py --out side --pairs pairs.txt --lfw runs/lfw

Only folds that all losses have finished are compared, and only losses that have run.
Differences to the best baseline (by accuracy, or by TAR at FAR 1e-3 where settings were
chosen by that, on these very folds, which favours it) are
paired, with two intervals: Student's t over the folds, which also has the luck of each
training, and a bootstrap over people, which has not: a person drawn twice counts twice
in genuine pairs, and a pair of two people counts the product. The folds' training sets
overlap: t has Nadeau and Bengio's correction (Machine Learning 2003). "Higher" and
"lower" are Holm's words, for all losses of a column together. The bootstrap is
of those folds whose results say which pairs were decided wrongly. All this is in the
runs' .json (`--out benchmarks/side_by_side`: those of RESULTS.md); sums need their
.npz, too, and are left out without. `--lfw` names the folder of `lfw_classical.py`, for
the sum of everything.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import lfw_classical
import lfw_study
import numpy as np
from side_by_side_runs import (
    AREA,
    LOSSES,
    LOW_FAR,
    TESTED_ON,
    TUNED_ON,
    Run,
    ablations,
    best_of,
    longer,
    tests,
)
from side_by_side_statistics import (
    FoldPairs,
    over_folds,
    over_people,
    pairs_of_folds,
    with_error,
)

OURS = "SphereFace-R"
MEASURES = {
    "accuracy": "accuracy",
    "tar@far=1e-2": "TAR@FAR=1e-2",
    "tar@far=1e-3": "TAR@FAR=1e-3",
    "eer": "EER",
    "rank1": "rank-1 of 2 000+",
}


def facts_of(out: Path, run: Run) -> dict | None:
    path = out / f"{run.key}.json"
    return json.loads(path.read_text()) if path.exists() else None


def arrays_of(out: Path, run: Run) -> dict[str, np.ndarray]:
    with np.load(out / f"{run.key}.npz") as arrays:
        return dict(arrays)


def tuning_table(out: Path) -> list[str]:
    """Everything that was tried, and what was chosen."""
    lines = [
        f"Area under the ROC and TAR at FAR 1e-3 on fold {TUNED_ON}; the best in bold:",
        "",
        "| loss | m (scale factor, s): area, TAR |",
        "|---|---|",
    ]
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    for loss in LOSSES:
        best = {measure: best_of(out, loss, measure) for measure in (AREA, LOW_FAR)}
        cells = []
        for row in found:
            plain = row["detach"] in ("", "cosine") and row["strength"] == 0.01
            plain &= row["epochs"] == Run.epochs
            if row["name"] != loss.name or row["fold"] != TUNED_ON or not plain:
                continue
            cell = f"{row['margin']:g}"
            if loss.scaled:
                cell += f" (x{row['factor']:g}, {row['scale']:g})"
            tried = row["margin"], row["factor"]
            values = []
            for measure, run in best.items():
                value = f"{row['measures'].get(measure, 0):.4f}"
                chosen = run is not None and (run.margin, run.factor) == tried
                values.append(f"**{value}**" if chosen else value)
            cells.append(f"{cell}: {', '.join(values)}")
        if cells:
            lines.append(f"| {loss.name} | {'; '.join(cells)} |")
    return lines


def finished(
    out: Path, measure: str = AREA
) -> tuple[dict[str, dict[int, Run]], list[int]]:
    """{loss: {fold: run}} of the folds that every loss has finished, so chosen."""
    runs: dict[str, dict[int, Run]] = {}
    for run in tests(out, TESTED_ON, measure):
        facts = facts_of(out, run)
        if facts and "diverged" not in facts["measures"]:
            runs.setdefault(run.loss.name, {})[run.fold] = run
    folds = sorted(set.intersection(*(set(r) for r in runs.values()))) if runs else []
    return runs, folds


def best_baseline(out: Path, runs, folds: list[int], measure: str) -> str:
    """That with the highest measure on these folds."""

    def mean(name: str) -> float:
        found = [facts_of(out, runs[name][k]) for k in folds]
        return np.mean([facts["measures"][measure] for facts in found])

    return max((name for name in runs if not name.startswith(OURS)), key=mean)


def loss_table(
    out: Path, runs, folds: list[int], pairs: list[FoldPairs], draws: int, best: str
) -> list[str]:
    """The losses beside each other, and their differences to one of them."""
    rows = {name: [facts_of(out, of[k]) for k in folds] for name, of in runs.items()}
    mean = {
        name: {m: np.mean([r["measures"][m] for r in found]) for m in MEASURES}
        for name, found in rows.items()
    }
    told = [
        k for k in folds if all("wrong" in facts_of(out, of[k]) for of in runs.values())
    ]
    drawn = f", people (bootstrap, folds {', '.join(map(str, told))})" if told else ""
    lines = [
        f"Folds {', '.join(map(str, folds))} (means, ± standard error over folds; "
        f"accuracy minus that of {best} in points):",
        "",
        f"| loss | m | s | {' | '.join(MEASURES.values())} | minus {best}, folds (t) |"
        + f" minus {best}{drawn} |" * bool(told),
        "|---|---:|---:|" + "---:|" * (len(MEASURES) + 1 + bool(told)),
    ]
    differences = minus(rows, best, "accuracy")
    for name, found in rows.items():
        accuracies = [r["measures"]["accuracy"] for r in found]
        cells = [with_error(accuracies)]
        cells += [f"{mean[name][m]:.4f}" for m in list(MEASURES)[1:]]
        cells.append(differences.get(name, ""))
        if told:
            cells.append(over_people(found, rows[best], folds, told, pairs, draws))
        scale = "" if name.endswith("NFN") or name == "softmax" else found[0]["scale"]
        margin = f"{found[0]['margin']:g}" if found[0]["margin"] else ""
        lines.append(f"| {name} | {margin} | {scale} | {' | '.join(cells)} |")
    return lines


def minus(rows: dict[str, list[dict]], best: str, measure: str) -> dict[str, str]:
    """{loss: its measure minus that of the best}, over folds."""
    values = {
        name: np.array([facts["measures"][measure] for facts in found])
        for name, found in rows.items()
    }
    others = (name for name in rows if name != best)
    return over_folds({name: values[name] - values[best] for name in others})


def low_rate_table(out: Path, runs, folds: list[int], best: str) -> list[str]:
    """The other measures minus those of one loss, with intervals over folds."""
    measures = ("tar@far=1e-2", "tar@far=1e-3", "rank1")
    lines = [
        f"Minus {best}, in points (t over folds {', '.join(map(str, folds))}):",
        "",
        f"| loss | {' | '.join(MEASURES[m] for m in measures)} |",
        "|---|" + "---:|" * len(measures),
    ]
    rows = {name: [facts_of(out, of[k]) for k in folds] for name, of in runs.items()}
    columns = [minus(rows, best, measure) for measure in measures]
    for name in columns[0]:
        lines.append(f"| {name} | {' | '.join(column[name] for column in columns)} |")
    return lines


def sum_rows(
    out: Path, runs, folds: list[int], lfw: Path | None, name: str = "the losses' sum"
) -> list[str]:
    """Accuracy of the sum of all runs' cosines, and of it among the descriptors."""

    def has_scores(k: int) -> bool:
        return all((out / f"{of[k].key}.npz").exists() for of in runs.values())

    folds = [k for k in folds if has_scores(k)]
    if not folds:
        return []
    found: dict[str, list[float]] = {}
    for k in folds:
        parts = [arrays_of(out, of[k]) for of in runs.values()]
        networks = {
            "dev": np.mean([part["dev_scores"] for part in parts], axis=0),
            "dev_genuine": parts[0]["dev_is_genuine"],
            "test": np.mean([part["scores"] for part in parts], axis=0),
            "test_genuine": parts[0]["is_genuine"],
        }
        systems = {name: networks}
        descriptors = lfw_study.descriptor_scores(lfw, k) if lfw is not None else {}
        if len(descriptors) == len(lfw_classical.NAMES):
            of_all = list(descriptors.values())
            systems["all descriptors, summed"] = lfw_study.summed(of_all)
            both = lfw_study.summed([networks, *of_all])
            systems[f"{name} and all descriptors, summed"] = both
        for system, scores in systems.items():
            found.setdefault(system, []).append(lfw_study.measures(scores)[0])
    names = ", ".join(map(str, folds))
    lines = [f"| sum | accuracy, held-out threshold, folds {names} |", "|---|---:|"]
    for system, values in found.items():
        lines.append(f"| {system} | {with_error(values)} |")
    return lines


def longer_runs(out: Path) -> tuple[dict[str, dict[int, Run]], list[int]]:
    """{budget: {fold: run}} of SphereFace-R v2 under HFN, and the folds they share."""
    runs: dict[str, dict[int, Run]] = {}
    for run in longer(out, TESTED_ON, start="any"):
        start = ", after rendered faces" if run.started else ""
        short = dataclasses.replace(run, epochs=Run.epochs, started=False)
        for name, one in (
            (f"{run.loss.name}: {Run.epochs:g} epochs", short),
            (f"{run.loss.name}: {run.epochs:g} epochs{start}", run),
        ):
            if run.fold != TUNED_ON and facts_of(out, one):
                runs.setdefault(name, {})[run.fold] = one
    return runs, sorted(set.intersection(*(set(of) for of in runs.values())))


def ablation_table(out: Path) -> list[str]:
    """One run each on fold 8, beside the chosen setting: a hint, not a result."""
    lines = [
        f"Ablations on fold {TUNED_ON}, one run each:",
        "",
        "| loss | change | area | accuracy |",
        "|---|---|---:|---:|",
    ]
    shown: set[str] = set()
    for run in ablations(out):
        facts = facts_of(out, run)
        if facts is None:
            continue
        change = (
            "whole gradient"
            if run.detach == "none"
            else f"t = {run.strength:g}, not .01"
        )
        best = best_of(out, run.loss)
        base = facts_of(out, best) if best else None
        for what, row in (("as chosen", base), (change, facts)):
            again = row is base and run.loss.name in shown
            if row is not None and not again:
                m = row["measures"]
                cells = (
                    "diverged |"
                    if "diverged" in m
                    else f"{m['auc']:.4f} | {m['accuracy']:.4f}"
                )
                lines.append(f"| {run.loss.name} | {what} | {cells} |")
        shown.add(run.loss.name)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="pairs.txt")
    parser.add_argument("--lfw", type=Path, help="folder of lfw_classical.py")
    parser.add_argument("--draws", type=int, default=2000)
    a = parser.parse_args()
    parts, pairs = [tuning_table(a.out)], pairs_of_folds(a.pairs)
    runs, folds = finished(a.out)
    if folds:
        best = best_baseline(a.out, runs, folds, "accuracy")
        parts += [
            loss_table(a.out, runs, folds, pairs, a.draws, best),
            low_rate_table(a.out, runs, folds, best),
            sum_rows(a.out, runs, folds, a.lfw),
        ]
    runs, folds = finished(a.out, LOW_FAR)
    if folds and len(runs) == len(LOSSES):
        best = best_baseline(a.out, runs, folds, LOW_FAR)
        parts += [
            ["Each chosen by TAR at FAR 1e-3 on fold 8 instead."],
            loss_table(a.out, runs, folds, pairs, a.draws, best),
            low_rate_table(a.out, runs, folds, best),
        ]
    runs, folds = longer_runs(a.out)
    if folds and len(runs) > 1:
        base = list(runs)[1]  # the longer budget, from random weights
        parts.append(loss_table(a.out, runs, folds, pairs, a.draws, base))
        parts.append(low_rate_table(a.out, runs, folds, base))
        for name, of in runs.items():
            if of[folds[0]].started:
                parts.append(sum_rows(a.out, {name: of}, folds, a.lfw, name))
    parts.append(ablation_table(a.out))
    text = "\n".join("\n".join([*part, ""]) for part in parts)
    (a.out / "side_by_side.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
