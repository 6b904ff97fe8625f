"""Tables and pictures of what benchmarks/stability.py found.

    python benchmarks/stability_report.py runs/stability/synth_plain.jsonl

writes beside the file: <name>.md, <name>_success.png, <name>_curves.png.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from hyperface_jax.evaluation.groups import wilson

NAMES = {
    "normface": "NormFace",
    "sphereface": "SphereFace (v0)",
    "sphereface_r_v1": "SphereFace-R v1",
    "sphereface_r_v2": "SphereFace-R v2",
    "sphereface_2017": "SphereFace 2017 annealed",
}
NORMS = {"hfn": "HFN", "nfn": "NFN", "sfn": "SFN"}
CURVES = {
    "accuracy": "training accuracy",
    "loss": "loss",
    "grad_norm_backbone": "|gradient of the backbone|",
    "grad_norm_prototypes": "|gradient of the prototypes|",
}
GREY = "#8a8f98"


class Study:
    """All runs of one file; each is judged by NormFace with its seed."""

    def __init__(self, path: Path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.sort(key=lambda row: row["seed"])
        base = [r for r in rows if r["loss"] == "normface" and r["norm"] == "hfn"]
        self.baseline = {r["seed"]: r for r in base}
        self.rows = [r for r in rows if r not in base]
        self.budget = rows[0]["budget"]
        self.classes = rows[0]["classes"]
        self.cells = defaultdict(list)
        for row in self.rows:
            self.cells[self.line_of(row), row["norm"], row["m"]].append(row)
        self.margins = sorted({row["m"] for row in self.rows})
        tried = {row["norm"] for row in self.rows if row["loss"] != "normface"}
        self.norms = [norm for norm in NORMS if norm in tried]
        found = {line for line, _, _ in self.cells}
        order = list(NAMES.values())
        self.lines = sorted(
            found, key=lambda line: (order.index(line.rsplit(", ", 1)[0]), line)
        )

    @staticmethod
    def line_of(row: dict) -> str:
        how = "detached" if row["detach"] == "cosine" else "not detached"
        if row["loss"] == "normface":
            return NAMES["normface"]
        return f"{NAMES[row['loss']]}, {how}"

    def succeeds(self, row: dict) -> bool:
        half = self.baseline[row["seed"]]["accuracy"] / 2
        return row["nonfinite_step"] < 0 and row["accuracy"] >= half

    def relative(self, row: dict, curve: str, part: str, quantile: int) -> float:
        """A gradient norm as a multiple of NormFace's in the same third."""
        base = self.baseline[row["seed"]]["quantiles"][curve][part][quantile]
        return row["quantiles"][curve][part][quantile] / base

    def last_level_step(self, row: dict) -> int:
        """The last step at which a run had at least half of NormFace's accuracy."""
        own = np.array(row["curves"]["accuracy"])
        base = np.array(self.baseline[row["seed"]]["curves"]["accuracy"])
        own, base = (_smooth(curve) for curve in (own, base[: len(own)]))
        judged = np.flatnonzero(base > 0.05)  # before that chance decides
        level = judged[own[judged] >= base[judged] / 2]
        steps = self.budget["steps"]
        return int(steps * (level[-1] + 1) / len(own)) if len(level) else 0

    def why(self, row: dict) -> str:
        """What is to be seen of a failure; the first that applies."""
        if row["nonfinite_step"] >= 0:
            return f"not finite at step {row['nonfinite_step']}"
        lengths = row["curves"]["magnitude_mean"]
        if lengths[-1] < 0.01 * lengths[0]:
            return "lengths vanish"
        if lengths[-1] > 100 * lengths[0]:
            return "lengths explode"
        if self.relative(row, "grad_norm_backbone", "last", 0) < 0.02:
            return "backbone's gradient vanishes"
        if self.relative(row, "grad_norm_backbone", "first", 2) > 20:
            return "gradient bursts early"
        if row["curves"]["loss"][-1] < 0.5 * row["curves"]["loss"][0]:
            return "loss falls, faces are not told apart in time"
        return "loss hardly falls"


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def _name_of(m: float) -> str:
    return f"m = {m:g}" if m else "no margin"


def success_table(study: Study, norm: str) -> list[str]:
    """Runs that succeed of all, and their mean training accuracy."""
    head = [_name_of(m) for m in study.margins]
    lines = [f"| {NORMS[norm]} | {' | '.join(head)} | all |"]
    lines.append("|---|" + "---:|" * (len(head) + 1))
    for line in study.lines:
        cells, good, count = [], 0, 0
        for m in study.margins:
            runs = study.cells.get((line, norm, m), [])
            succeeded = sum(map(study.succeeds, runs))
            good, count = good + succeeded, count + len(runs)
            mean = np.mean([r["accuracy"] for r in runs]) if runs else 0
            mark = "†" if any(r["capped"] for r in runs) else ""
            cells.append(f"{succeeded}/{len(runs)} ({mean:.2f}){mark}" if runs else "")
        if count:
            low, high = wilson(good, count)
            cells.append(f"{good}/{count} [{low:.0%}, {high:.0%}]")
            lines.append(f"| {line} | {' | '.join(cells)} |")
    return lines


def gradient_table(study: Study) -> list[str]:
    """Norms of gradients as multiples of NormFace's: median, and largest early."""
    lines = [
        "| loss | norm | backbone, last third, median | backbone, first third, largest "
        "| prototypes, last third, median |",
        "|---|---|---:|---:|---:|",
    ]
    for norm in NORMS:
        for line in study.lines:
            rows = [r for r in study.rows if study.line_of(r) == line]
            rows = [r for r in rows if r["norm"] == norm and r["nonfinite_step"] < 0]
            if not rows:
                continue
            cells = []
            for curve, part, quantile in (
                ("grad_norm_backbone", "last", 0),
                ("grad_norm_backbone", "first", 2),
                ("grad_norm_prototypes", "last", 0),
            ):
                found = [study.relative(r, curve, part, quantile) for r in rows]
                cells.append(f"{min(found):.2g} to {max(found):.2g}")
            lines.append(f"| {line} | {NORMS[norm]} | {' | '.join(cells)} |")
    return lines


def failure_table(study: Study) -> list[str]:
    """What fails, how far it came, and what is to be seen of it."""
    lines = [
        "| failed | m: last step level with half of NormFace, seed by seed "
        "(✓: succeeds) | seen |",
        "|---|---|---|",
    ]
    for norm in NORMS:
        for line in study.lines:
            where, seen = [], []
            for m in study.margins:
                runs = study.cells.get((line, norm, m), [])
                failed = [r for r in runs if not study.succeeds(r)]
                seen += map(study.why, failed)
                if failed:
                    steps = [
                        "✓" if study.succeeds(r) else study.last_level_step(r)
                        for r in runs
                    ]
                    where.append(f"{m:g}: {', '.join(map(str, steps))}")
            if where:
                reasons = "; ".join(dict.fromkeys(seen))
                cells = f"{line}, {NORMS[norm]} | {'; '.join(where)} | {reasons}"
                lines.append(f"| {cells} |")
    return lines


def draw_success(study: Study, path: Path) -> None:
    """Accuracy as a multiple of NormFace's, a panel for each norm."""
    import matplotlib.pyplot as plt

    size = 4.4 + 2.6 * len(study.norms), 0.42 * len(study.lines) + 1.4
    figure, axes = plt.subplots(
        1, len(study.norms), figsize=size, sharey=True, layout="constrained"
    )
    picture = None
    for axis, norm in zip(np.atleast_1d(axes), study.norms, strict=True):
        table = np.full((len(study.lines), len(study.margins)), np.nan)
        for i, line in enumerate(study.lines):
            for j, m in enumerate(study.margins):
                runs = study.cells.get((line, norm, m), [])
                if runs:
                    table[i, j] = np.mean(
                        [
                            r["accuracy"] / study.baseline[r["seed"]]["accuracy"]
                            for r in runs
                        ]
                    )
                    good = sum(map(study.succeeds, runs))
                    dark = not 0.15 < table[i, j] < 0.8
                    axis.text(
                        *(j, i, f"{good}/{len(runs)}"),
                        ha="center",
                        va="center",
                        color="white" if dark else "black",
                    )
        picture = axis.imshow(table, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(study.margins)), [f"{m:g}" for m in study.margins])
        axis.set_yticks(range(len(study.lines)), study.lines)
        axis.set(title=NORMS[norm], xlabel="m")
    figure.colorbar(picture, ax=axes, label="training accuracy / NormFace's")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_curves(study: Study, path: Path, m: float) -> None:
    """`CURVES` over time, at one margin."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        *(len(CURVES), len(study.norms)),
        figsize=(3.4 + 3 * len(study.norms), 2.6 * len(CURVES)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, norm in enumerate(study.norms):
        for line in study.lines:
            runs = study.cells.get((line, norm, m), [])
            if not runs:
                continue
            family = list(NAMES.values()).index(line.rsplit(", ", 1)[0])
            colour = plt.get_cmap("tab10")(family)
            style = "-" if ", detached" in line else ":"
            for axis, name in zip(axes[:, column], CURVES, strict=True):
                curve = np.mean([_resampled(r["curves"][name]) for r in runs], axis=0)
                steps = np.linspace(0, study.budget["steps"], len(curve))
                axis.plot(steps, curve, style, color=colour, label=line, lw=1.4)
        for axis, name in zip(axes[:, column], CURVES, strict=True):
            base = [_resampled(r["curves"][name]) for r in study.baseline.values()]
            steps = np.linspace(0, study.budget["steps"], len(base[0]))
            axis.plot(steps, np.mean(base, axis=0), color=GREY, label="NormFace")
        axes[0, column].set_title(f"{NORMS[norm]}, m = {m:g}")
        axes[-1, column].set_xlabel("step")
    for row, (name, words) in zip(axes, CURVES.items(), strict=True):
        row[0].set_ylabel(words)
        row[0].set_yscale("linear" if name == "accuracy" else "log")
    handles = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        *(handles.values(), handles.keys()),
        loc="outside lower center",
        ncols=min(len(study.norms) + 1, 3),
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _resampled(curve: list[float], points: int = 60) -> np.ndarray:
    at = np.linspace(0, len(curve) - 1, points)
    return np.interp(at, np.arange(len(curve)), _smooth(np.array(curve)))


def report(study: Study) -> str:
    """Markdown."""
    base = ", ".join(f"{r['accuracy']:.2f}" for r in study.baseline.values())
    b = study.budget
    lines = [
        f"{b['backbone']}, width {b['width']}, {b['image_size']} pixels, "
        f"{study.classes} people, {b['steps']} steps of {b['batch_size']} images, "
        f"learning rate {b['learning_rate']}. NormFace's training accuracy: {base}. A "
        "cell: runs that succeed of all (mean training accuracy); † s is at its cap. "
        '"all" takes the cells of a row as one sample: of this choice of m.',
    ]
    for norm in NORMS:
        lines += ["", *success_table(study, norm)]
    lines += [
        "",
        "Norms of gradients, as multiples of NormFace's (range over m and seeds):",
    ]
    lines += ["", *gradient_table(study), "", *failure_table(study)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--margin", type=float, default=2.0, help="of the curves")
    a = parser.parse_args()
    study = Study(a.file)
    text = report(study)
    a.file.with_suffix(".md").write_text(text)
    stem = a.file.with_suffix("")
    draw_success(study, stem.with_name(f"{stem.name}_success.png"))
    draw_curves(study, stem.with_name(f"{stem.name}_curves.png"), a.margin)
    print(text)


if __name__ == "__main__":
    main()
