"""Figures of a training run and of its evaluation, as SVG text or PNG bytes.

Matplotlib is imported inside the functions and used through `Figure` objects: pyplot's
global state stays as the user left it. Genuine pairs and targets are blue, impostor
pairs and other classes orange (apart for colour-blind readers and in grey print).
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperface_jax.evaluation.open_set import OpenSet
from hyperface_jax.evaluation.results import HardPair, ProtocolResult

GENUINE, IMPOSTOR, GREY, INK = "#1f5fa8", "#d2691e", "#8a8f98", "#22262b"
CYCLE = (GENUINE, IMPOSTOR, "#2e8b6f", "#8b5aa8", "#b03a48", "#5c6b7a")

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "hyperface_jax",  # the same figure is the same text
}

_TRAINING_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": ""}),
    ("training accuracy", {"accuracy": ""}),
    ("angle to own prototype (degrees)", {"target_angle": ""}),
    ("embedding magnitude, mean ± std", {"magnitude_mean": ""}),
    (
        "gradient norm",
        {"grad_norm_backbone": "backbone", "grad_norm_prototypes": "prototypes"},
    ),
    ("learning rate", {"learning_rate": ""}),
    ("margin m", {"margin": ""}),
    ("images per second", {"images_per_second": ""}),
)
_VALIDATION = ("kfold_accuracy", "accuracy", "eer", "rank1")


def svg(size: tuple[float, float], draw: Any) -> str:
    """SVG text of the figure on which `draw(figure)` has drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _series(
    rows: Sequence[dict[str, Any]], key: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and values of the rows that have the key; None where there are none."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if not found:
        return None
    steps, values = np.array(found, np.float64).T
    return steps, values


def training_curves(rows: Sequence[dict[str, Any]]) -> str:
    """One small panel for each quantity in the rows of metrics.jsonl, over the step.

    Args:
      rows: each has "step" and any of the training metrics; validation metrics are
        named "SET/PROTOCOL/METRIC", and the telling ones have a panel each.
    """
    validation: dict[str, dict[str, str]] = {}
    for key in sorted({key for row in rows for key in row if "/" in key}):
        name, _, metric = key.rpartition("/")
        if metric in _VALIDATION:
            validation.setdefault(f"validation {metric}", {})[key] = name
    panels = [
        (title, [(label, key, _series(rows, key)) for key, label in keys.items()])
        for title, keys in (*_TRAINING_PANELS, *validation.items())
    ]
    panels = [panel for panel in panels if any(line[2] for line in panel[1])]
    columns = min(3, max(1, len(panels)))
    lines = -(-len(panels) // columns)

    def draw(figure):
        for place, (title, series) in enumerate(panels, 1):
            axes = figure.add_subplot(lines, columns, place, title=title)
            _training_panel(axes, series, rows)
            if place > len(panels) - columns:
                axes.set_xlabel("step")

    return svg((9.6, 2.1 * max(1, lines) + 0.3), draw)


def _training_panel(axes, series, rows):
    for colour, (label, key, data) in zip(
        (CYCLE * len(series))[: len(series)], series, strict=True
    ):
        if data is None:
            continue
        few = {"marker": "o", "markersize": 3} if len(data[0]) < 25 else {}
        axes.plot(*data, color=colour, label=label, **few)
        deviation = _series(rows, "magnitude_std")
        if key == "magnitude_mean" and deviation is not None:
            both = np.isin(data[0], deviation[0])
            low, high = data[1][both] - deviation[1], data[1][both] + deviation[1]
            axes.fill_between(deviation[0], low, high, color=colour, alpha=0.18, lw=0)
    if len(series) > 1:
        axes.legend()
    axes.ticklabel_format(axis="y", useOffset=False)
    if series[0][1] in ("learning_rate", "images_per_second"):
        axes.set_ylim(bottom=0)


def score_distributions(result: ProtocolResult) -> str:
    """Histograms of genuine and impostor scores, each with total mass 1."""

    def draw(figure):
        axes = figure.add_subplot(xlabel="score (cosine)", ylabel="share of pairs (%)")
        low, high = result.scores.min(), result.scores.max()
        edges = np.linspace(low, high if high > low else low + 1, 81)
        for kind, colour, mask in (
            ("genuine", GENUINE, result.is_genuine),
            ("impostor", IMPOSTOR, ~result.is_genuine),
        ):
            counts, _ = np.histogram(result.scores[mask], edges)
            label = f"{kind} ({np.count_nonzero(mask):,})"
            _filled(axes, edges, 100 * counts / max(1, counts.sum()), colour, label)
        axes.set_ylim(bottom=0)
        axes.legend(title=result.key, alignment="left")

    return svg((5.0, 2.6), draw)


def angle_histograms(open_set: OpenSet, name: str = "") -> str:
    """Angles within and between identities, with quantiles and extremes as lines."""

    def draw(figure):
        axes = figure.add_subplot(xlabel="angle (degrees)", ylabel="share of pairs (%)")
        intra, inter = open_set.intra_histogram, open_set.inter_histogram
        for label, colour, counts, quantile, extreme, words in (
            ("same identity", GENUINE, intra, open_set.intra_q99, open_set.max_intra,
             ("99 %", "largest")),
            ("two identities", IMPOSTOR, inter, open_set.inter_q01, open_set.min_inter,
             ("1 %", "smallest")),
        ):  # fmt: skip
            label = f"{label} ({counts.sum():,})"
            _filled(axes, np.arange(181), 100 * counts / counts.sum(), colour, label)
            for angle, style, word in (
                (quantile, "--", f"{words[0]} quantile"),
                (extreme, ":", words[1]),
            ):
                label = f"{word}: {angle:.1f}°"
                axes.axvline(angle, color=colour, ls=style, lw=1.2, label=label)
        used = np.flatnonzero(intra + inter)
        axes.set_xlim(max(0, used[0] - 4), min(180, used[-1] + 5))
        axes.set_ylim(bottom=0)
        axes.legend(
            title=name, alignment="left", loc="center left", bbox_to_anchor=(1, 0.5)
        )

    return svg((8.4, 3.0), draw)


def _filled(axes, edges, values, colour, label):
    axes.stairs(values, edges, color=colour, fill=True, alpha=0.22)
    axes.stairs(values, edges, color=colour, lw=1.4, label=label)


def margin_curves(
    name: str,
    margin: float | None = None,
    constants: Mapping[str, float] | None = None,
) -> str:
    """ψ and η of a margin over the angle, beside them Δ = η - ψ.

    Args:
      name: of `hyperface_jax.family.names()`.
      margin: m; None means the default of that row.
      constants: the loss's own; None means the published ones.
    """
    import jax.numpy as jnp

    from hyperface_jax import family, margins

    chosen = family.member(name, **(constants or {})).margin
    m = chosen.default if margin is None else margin
    degrees = jnp.linspace(0, 180, 721)
    cos = jnp.cos(jnp.deg2rad(degrees))[:, None]  # [B, 1]
    context = margins.MarginContext(margin=m)
    psi = np.asarray(chosen.psi(cos, context))[:, 0]
    eta = np.asarray(chosen.eta(cos, cos, context))[:, 0]

    def draw(figure):
        left, right = figure.subplots(1, 2, sharex=True)
        left.plot(degrees, psi, color=GENUINE, label="ψ(θ), own class")
        left.plot(degrees, eta, color=IMPOSTOR, ls="--", label="η(θ), other classes")
        # On top: ψ or η is often the cosine itself.
        left.plot(degrees, cos[:, 0], color=GREY, lw=1, ls=":", label="cos θ")
        left.set(title=f"{name}, m = {m:g}", xlabel="θ (degrees)", xlim=(0, 180))
        left.legend()
        right.axhline(0, color=GREY, lw=0.8)
        right.plot(degrees, eta - psi, color=INK)
        right.fill_between(degrees, 0, eta - psi, color=GREY, alpha=0.15, lw=0)
        right.set(title="Δ(θ) = η(θ) - ψ(θ): a margin where > 0", xlabel="θ (degrees)")
        right.set_xticks(range(0, 181, 30))

    return svg((8.4, 2.9), draw)


def pair_picture(pair: HardPair, gap: int = 4) -> bytes:
    """PNG of both images side by side, as they were given to the network."""
    from PIL import Image

    images = [Image.fromarray(pair.first_image), Image.fromarray(pair.second_image)]
    width = sum(image.width for image in images) + gap
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    sheet.paste(images[0], (0, 0))
    sheet.paste(images[1], (images[0].width + gap, 0))
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
