"""Writes docs/losses.md and draws docs/losses.png: every loss, out of the code.

python docs/draw_losses.py
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from hyperface_jax import adaptive, catalogue, family, margins
from hyperface_jax.catalogue import PLAIN_SOFTMAX, loss_names
from hyperface_jax.config import default_config
from hyperface_jax.margins import MarginContext
from hyperface_jax.reporting.plots import GENUINE, GREY, IMPOSTOR, INK

HERE = Path(__file__).resolve().parent
CLASSES = 85_742  # of MS1MV2, with which most s were published

# ψ, then η where it is not the cosine, then what else is in the loss.
FORMULAS = {
    "plain_softmax": "logits x·w_j, nothing normalised; no margin, no s, no filter",
    "normface": "cos θ",
    "cosface": "cos θ - m",
    "arcface": "cos min(θ + m, π)",
    "arcface_wrap": "cos(θ + m)",
    "arcface_linear": "cos(θ + m) for θ < π - m, else cos θ - m sin m",
    "arcface_easy": "cos(θ + m) for θ < π/2, else cos θ",
    "sphereface": "(-1)^k cos(mθ) - 2k, k = ⌊mθ/π⌋",
    "sphereface_r_v1": "cos min(mθ, π)",
    "sphereface_r_v2": "cos θ; η = cos(θ/m)",
    "ga_softmax": "1 - 2mθ/π; η = 1 - 2θ/π",
    "sphereface_2017": "(λ cos θ + ψ₀)/(1 + λ), ψ₀ as `sphereface`; λ: see below",
    "combined": "cos min(m1·θ + m, π) - m3",
    "sphereface_plus": "as `sphereface`; + energy·mean θ_ab⁻² over the batch's classes",
    "sphereface2_c": "g(cos θ) - m; η = g(cos θ) + m; g: see below",
    "sphereface2_a": "g(cos min(θ + m, π)); η = g(cos θ)",
    "sphereface2_m": "g(cos min(mθ, π)); η = g(cos θ)",
    "magface": "cos(θ + m(a)) for θ < π/2, else cos θ; a, m(a), penalty: see below",
    "adaface": "cos clip(θ - m·ẑ, 0, π) - (m + m·ẑ); ẑ: see below",
    "curricularface": "as `arcface_linear`; η = c·(t + c) where c > cos(θ_y + m)",
    "elasticface_arc": "cos(θ + m_i), m_i drawn from N(m, deviation²)",
    "elasticface_arc_plus": "as `elasticface_arc`, smaller m_i for nearer examples",
    "elasticface_cos": "cos θ - m_i, m_i drawn from N(m, deviation²)",
    "elasticface_cos_plus": "as `elasticface_cos`, smaller m_i for nearer examples",
    "subcenter_arcface": "cos min(θ + m, π), θ to the nearest of a class's vectors",
    "mv_arc": "as `arcface_easy`; η = t·c + t - 1 where c > cos(θ_y + m)",
    "mv_am": "cos θ - m where cos θ > m; η = t·c + t - 1 where c > cos θ_y - m",
    "circle": "[1 + m - c]₊·(c - 1 + m); η = [c + m]₊·(c - m); no gradient of [ ]₊",
    "uniface": "cos θ - m; binary: see below",
    "adacos": "cos θ, with s = ln(mean Σ_j≠y exp(s·c_j))/cos min(π/4, median θ_y)",
    "vpl_arcface": "cos min(θ + m, π), θ to (1 - share)·w_j + share·q_j: see below",
}

# Losses of a panel have the same ψ and η, but for the values drawn.
PANELS = (
    (PLAIN_SOFTMAX, "normface", "adacos"),
    ("cosface",),
    ("uniface",),
    ("combined",),
    ("arcface", "subcenter_arcface", "vpl_arcface"),
    ("arcface_wrap",),
    ("arcface_linear",),
    ("arcface_easy",),
    ("sphereface", "sphereface_plus"),
    ("sphereface_r_v1",),
    ("sphereface_r_v2",),
    ("sphereface_2017",),
    ("sphereface2_c",),
    ("sphereface2_a",),
    ("sphereface2_m",),
    ("ga_softmax",),
    ("magface",),
    ("adaface",),
    ("elasticface_arc", "elasticface_arc_plus"),
    ("elasticface_cos", "elasticface_cos_plus"),
    ("curricularface",),
    ("mv_arc",),
    ("mv_am",),
    ("circle",),
)
NO_MARGIN = ("normface", "adacos")
DOTTED = (0, (1, 1.2))
TARGET = 50  # degrees to the own class, where η depends on them
DEGREES = np.linspace(0, 180, 721)[1:-1]  # slopes may be infinite at the ends


def number(value: float) -> str:
    """As the other pages print it: .35, 1.5, 8000."""
    text = f"{value:g}"
    return text[1:] if text.startswith("0.") else text


def needs(member: family.Member) -> str:
    """What the loss has besides embeddings, labels and one vector a class."""
    m = member.margin.default
    found = []
    if member.binary:
        found.append("trained bias")
    memory = member.memory.init(10) if member.memory else {}
    if memory:
        found.append("memory: " + ", ".join(f"`{key}`" for key in memory))
    if member.variational:
        found.append("memory: an embedding a class")
    if member.given:
        one = jnp.ones(2)
        seen = adaptive.Seen(one[:, None], one, jnp.arange(2), one, one, one)
        fields = member.given(seen, memory, jnp.float32(m), jax.random.key(0))
        found.append("an example: " + ", ".join(f"`{key}`" for key in fields))
    if member.looks_at:
        found.append("before: " + ", ".join(f"`{key}`" for key in member.looks_at))
    if margins.looks_at_target(member.margin, MarginContext(m)):
        found.append("θ_y for η")
    if member.centres > 1:
        found.append(f"{member.centres} vectors a class")
    if member.energy:
        found.append("vectors of the batch's classes")
    if member.margin.penalty:
        found.append("lengths, with a penalty")
    return "; ".join(found)


def row(name: str) -> str:
    """A line of the table."""
    if name == PLAIN_SOFTMAX:
        return f"| `{name}` | {FORMULAS[name]} | | | | | | softmax without its bias |"
    member = family.member(name)
    scale = "memory" if member.own_scale else "none"
    constants = family.constants_of(name).items()
    cells = (
        f"`{name}`",
        FORMULAS[name],
        needs(member),
        number(member.margin.default),
        scale if member.scale is None else number(member.scale),
        f"`{member.detach}`",
        ", ".join(f"`{key}` {number(value)}" for key, value in constants),
        member.margin.source,
    )
    return "| " + " | ".join(cells) + " |"


def published_factors() -> str:
    """From the smallest to the largest, of the losses that have an s."""
    found = []
    for name in family.names():
        member = family.member(name)
        if member.scale and not member.own_scale:
            margin = member.margin
            least = margins.minimum_scale(margin, margin.default, CLASSES)
            found.append((member.scale / least, name))
    (low, first), (high, last) = min(found), max(found)
    return f"{low:.1f} (`{first}`) to {high:.1f} (`{last}`)"


def refused(norm: str = "hfn", interclass_filter: float = 0, rate: float = 1) -> str:
    """Losses that have no form for a setting."""
    found = []
    for name in catalogue.loss_names():
        try:
            member = catalogue.member_of(name)
            catalogue.check_settings(name, member, norm, interclass_filter, rate)
        except ValueError:
            found.append(f"`{name}`")
    return ", ".join(found)


HEADER = (
    "loss | ψ; η where it is not cos θ | needs | m | s | gradient | constants | source"
)
ALT = "ψ and η of every loss over the angle at its own m, below each its slope in cos θ"


def page() -> str:
    """Text of docs/losses.md."""
    factor = number(default_config().head.scale_factor)
    rows = "\n".join(row(name) for name in loss_names())
    return f"""# Losses

Cross-entropy over the logits ρ(|x|)·ψ(θ_y) of the own class and ρ(|x|)·η(θ_j) of each
other class j, θ the angle between embedding x and class vector. A loss is a ψ and an η;
ρ is `head.norm`. SphereFace2 and UniFace add up binary cross-entropies of all classes.

    python -m hyperface_jax.main --config configs/baselines.py:loss=adaface \\
        --workdir runs/adaface --config.head.margin=.4 --config.head.adaface.h=.333

- `head.margin` is m, -1 (as in configs/baselines.py) the table's; `head.NAME.KEY` is a
  constant of the loss NAME.
- `head.scale=paper` is the table's s; `auto`, the default, is {factor} times the least
  with which a perfect example reaches p = .99, ln(99·(C - 1))/(ψ(0) - η(π/2)). With
  {CLASSES:,} classes (MS1MV2) the published s are {published_factors()} times it.
- `head.detach=auto`, the default, is the table's gradient: `cosine` that of plain
  cosine, `none` through the margin, `angle` that of ψ and η without a margin (not with
  a trained bias). With `none` and the whole margin from the first step, a small set may
  drive embeddings to the side opposite to their class (`elasticface_arc`: the
  logged `target_angle` goes to 180). Then take `cosine`, or let the margin grow, which
  does for ElasticFace ([benchmarks/RESULTS.md](../benchmarks/RESULTS.md)).
- `head.norm=nfn` or `sfn`: all but {refused(norm="nfn")}.
- `head.interclass_filter`: all but {refused(interclass_filter=0.4)}.
- `head.sample_rate` below 1: all but {refused(rate=0.5)}.

## Table

c = cos θ; m is in radians where it is added to an angle. What a loss needs: a *trained
bias* is a weight; *memory* is in the train state and in checkpoints, moved on once a
step by the whole batch (with `train.accumulate` a part's loss looks at its own part
only); *an example*: a number for each, by its name in `MarginContext`; *before*:
computed before the loss, `target_cos` with the own class, `others` with all others.

| {HEADER} |
|---|---|---|---|---|---|---|---|
{rows}

- `sphereface_2017`: λ = max(5, 1000/(1 + .12·step)) with `head.annealing`, else 0. No s
  was published: ρ = |x|. configs/baselines.py sets `head.norm=nfn` and the annealing.
- `sphereface_plus`: `head.loss_weight` does not scale the energy.
- `sphereface2_*`: g(c) = 2((c + 1)/2)^t - 1, z = s·ψ + b or s·η + b; the loss is
  alpha·softplus(-z_y) + (1 - alpha)·Σ_j≠y softplus(z_j).
- `uniface`: z = s·ψ - b or s·η - b, clipped to ±s; the loss is
  softplus(-z_y) + negatives·Σ_j≠y softplus(z_j).
- `magface`: a = |x| clipped to [lower, upper], m(a) = l + (m - l)·(a - lower)/(upper -
  lower), l = min(lower_margin, m). strength·(a/upper² + 1/a) is added, scaled as the
  cross-entropy is. The gradient runs through a.
- `adaface`: ẑ = h·(a - norm_mean)/(norm_deviation + .001), clipped to ±1, a = |x|
  clipped to [.001, 100]. No gradient runs through ẑ.
- `curricularface`: t, `difficulty`, is the running mean of cos θ_y.
- `adacos`: s starts at √2·ln(C - 1); the s in the exponent is the one before the step.
  `head.scale` is not read.
- `vpl_arcface`: q_j is the last unit embedding of class j, mixed in after step `start`
  and for `recent` steps; the mixture is normalised.

## Picture

Of several values the palest curve is the first that is named; of ElasticFace these are
m and m ± 2 deviations (+ has a smaller one). Solid slopes are what a step uses with
`head.detach=auto`; dotted ones with `none`. Slopes above 4 are cut off.

![{ALT}](losses.png)

## What is not here, what differs

SimPLE (OpenSphere's main branch) has no class vectors. Its pairs need a second forward
pass through a moving average of the network, a bank of half a million embeddings with
their labels, and images shuffled over the devices: another training step, not a loss.

Where this is not what the peers' code does, or that not what its paper says:

- `elasticface_*_plus`: the smallest margin goes to the nearest example. The official
  code sorts both, but then picks by index instead of rank: a random permutation.
- `mv_arc`, `mv_am`: plain cos θ_y where it is ≤ 0 (`mv_arc`) or ≤ m (`mv_am`), as in
  FaceX-Zoo; the paper's formula has the margin at every angle, and did not train here.
- `adaface`: the angle reaches 0 and π, cosines are exact. The official code stops the
  angle 1e-3 before both ends and clips all cosines to ±(1 - 1e-3). Mean and deviation
  are of the whole batch, there of one GPU's part.
- `sphereface_plus`: pairs of all classes of the whole batch; OpenSphere takes those of
  each device's part.
- `uniface`, `sphereface2_*`: with sampling the initial b counts the classes that a step
  sees, `head.sample_rate` of all. UniFace's code does so, too (ln(10·C·r)); OpenSphere
  does not sample.
- `magface`: no margin beyond π/2 (easy margin), as the official code does; the paper
  has cos(θ + m(a)) at every angle.
"""


def values_drawn(name: str) -> tuple[str, dict[str, Sequence[float]]]:
    """A letter, and the values of a field of the context, one for each curve."""
    m, own = family.member(name).margin.default, family.constants_of(name)
    if name == "magface":
        low, high = own["lower"], own["upper"]
        return "|x|", {"magnitude": (low, (low + high) / 2, high)}
    if name == "adaface":
        return "ẑ", {"quality": (-1, 0, 1)}
    if name == "curricularface":
        return "t", {"difficulty": (0, 0.3, 0.6)}
    if name.startswith("elasticface"):
        return "m", {"margin": [m + k * own["deviation"] for k in (-2, 0, 2)]}
    if name == "sphereface_2017":
        return "λ", {"annealing": (5, 0)}
    return "m", {"margin": (m,)}


def curve(
    name: str, fields: dict[str, float], own: bool, detach: Any
) -> tuple[np.ndarray, np.ndarray]:
    """ψ (`own`) or η over `DEGREES`, and its slope in the cosine."""
    margin = family.member(name).margin
    context = MarginContext(margin.default)._replace(**fields)
    target = jnp.cos(jnp.deg2rad(jnp.full((1, 1), TARGET, jnp.float32)))

    def value(c):
        c = c.reshape(1, 1)
        return margins.angular_functions(
            c,
            c if own else target,
            jnp.full((1, 1), own),
            margin=margin,
            context=context,
            detach=detach,
        )[0, 0]

    cos = jnp.cos(jnp.deg2rad(jnp.asarray(DEGREES, jnp.float32)))
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(value)))(cos)
    return np.asarray(found), np.asarray(slope)


def shade(colour: str, place: int, count: int) -> tuple[float, ...]:
    """Of several curves the last has the full colour, the first is the palest."""
    strength = 1 - 0.62 * (count - 1 - place) / max(count - 1, 1)
    full = np.array(matplotlib.colors.to_rgb(colour))
    return tuple(1 - strength * (1 - full))


def draw_panel(above, below, names: tuple[str, ...]) -> None:
    """Functions above, slopes below: solid as published, dotted through the margin."""
    name = next(name for name in names if name != PLAIN_SOFTMAX)
    member = family.member(name)
    letter, drawn = values_drawn(name)
    ((field, values),) = drawn.items()
    cos = np.cos(np.deg2rad(DEGREES))
    above.plot(DEGREES, cos, color=GREY, ls=":", lw=1.2)
    below.axhline(1, color=GREY, ls=":", lw=1.2)
    for colour, own in ((IMPOSTOR, False), (GENUINE, True)):
        through = [curve(name, {field: v}, own, "none") for v in values]
        published = [curve(name, {field: v}, own, member.detach) for v in values]
        if all(np.allclose(value, through[0][0]) for value, _ in through):
            through, published = through[:1], published[:1]
            if not own and np.allclose(through[0][0], cos, atol=1e-5):
                continue
        for place, (value, slope) in enumerate(through):
            tint = shade(colour, place, len(through))
            above.plot(DEGREES, value, color=tint)
            below.plot(DEGREES, published[place][1], color=tint)
            if not np.allclose(published[place][1], slope, atol=1e-3):
                below.plot(DEGREES, slope, color=tint, ls=DOTTED)
    m = number(member.margin.default)
    words = ", ".join(number(value) for value in values)
    lines = [f"m = {m}"] if letter != "m" else []
    lines += [f"{letter} = {words}"] if name not in NO_MARGIN else []
    if margins.looks_at_target(member.margin, MarginContext(member.margin.default)):
        lines.append(f"η for θ_y = {TARGET}°")
    above.text(0.03, 0.05, "\n".join(lines), transform=above.transAxes)
    title = ", ".join(names)
    above.set_title(title, fontsize=9.5 if len(title) < 28 else 8.2)


DEEP = {  # lower end and ticks, where ψ falls further than elsewhere
    "sphereface_2017": (-7.4, (-7, -5, -3, -1, 1)),
    "circle": (-4.2, (-4, -3, -2, -1, 0, 1)),
}
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 5,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


def picture(columns: int = 4) -> bytes:
    """PNG of docs/losses.png, 1200 pixels wide."""
    lines = -(-len(PANELS) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 2.72 * lines + 0.9), dpi=100)
        grid = figure.add_gridspec(
            lines, columns, left=0.035, right=0.982, bottom=0.022,
            top=1 - 0.9 / figure.get_figheight(), hspace=0.26, wspace=0.14,
        )  # fmt: skip
        for place, names in enumerate(PANELS):
            cell = grid[place // columns, place % columns]
            inner = cell.subgridspec(2, 1, height_ratios=(1.75, 1), hspace=0.08)
            above = figure.add_subplot(inner[0])
            below = figure.add_subplot(inner[1], sharex=above)
            draw_panel(above, below, names)
            low, ticks = DEEP.get(names[0], (-2.1, (-2, -1, 0, 1)))
            above.set(xlim=(0, 180), xticks=range(0, 181, 45))
            above.set(ylim=(low, 1.7), yticks=ticks)
            below.set(ylim=(-0.7, 4.2), yticks=(0, 1, 2, 3, 4))
            above.tick_params(labelbottom=False, length=0)
            below.tick_params(length=0)
            below.set_xticklabels(f"{x}°" for x in range(0, 181, 45))
        kinds = (
            (GENUINE, "-", "ψ, own class"),
            (
                INK,
                "-",
                "below: slope in cos θ, the factor on the gradient, as published",
            ),
            (IMPOSTOR, "-", "η, other classes, where it is not cos θ"),
            (
                INK,
                DOTTED,
                "below: slope through the margin, where another was published",
            ),
            (GREY, ":", "cos θ, and its slope 1"),
        )
        handles = [Line2D([], [], color=c, ls=ls, label=text) for c, ls, text in kinds]
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.026, 1), ncols=3,
            frameon=False, fontsize=9.5, columnspacing=2, handlelength=1.7,
        )  # fmt: skip
        raw = io.BytesIO()
        figure.savefig(raw, format="png")
    small = io.BytesIO()  # lines have few colours
    Image.open(raw).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    (HERE / "losses.md").write_text(page())
    (HERE / "losses.png").write_bytes(picture())


if __name__ == "__main__":
    main()
