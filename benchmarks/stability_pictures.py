"""Pictures of the runs that benchmarks/stability.py left."""

from pathlib import Path

import numpy as np
from stability_study import NAMES, NORMS, Study, smooth

CURVES = {
    "accuracy": "training accuracy",
    "loss": "loss",
    "grad_norm_backbone": "|gradient of the backbone|",
    "grad_norm_prototypes": "|gradient of the prototypes|",
}
GREY = "#8a8f98"


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
    return np.interp(at, np.arange(len(curve)), smooth(np.array(curve)))
