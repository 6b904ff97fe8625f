"""report.html: one self-contained page on a training run and its evaluation.

Everything is inline (no script, no network), so that the file can be mailed, archived
beside the checkpoint, and printed.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from etils import epath

from hyperface_jax import workdir
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.reporting import html, overview, plots, rates

_OPEN_SET = (
    "One threshold separates all identities only if the largest angle within an "
    "identity is smaller than the smallest angle between two (the criterion of the "
    "SphereFace papers), a gap above 0°. Both hang on a single pair, hence the "
    "quantiles. Overlap is the area common to both histograms, 0 to 100 %."
)
_CAUTION = (
    "Embeddings are biometric data: they identify people and can be matched for "
    "years. Store, share and delete them, and the pictures on this page, accordingly.",
    "A threshold does not transfer between populations, cameras or image qualities, "
    "and error rates differ between groups of people. Choose it on data of the "
    "intended use and measure it there again; a rate here describes its test set only.",
)


def write_report(
    path: epath.PathLike,
    *,
    title: str,
    model: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    training: list[dict[str, Any]],
    results: list[ProtocolResult],
    margin: str | None,
    margin_value: float | None,
    summary: Mapping[str, str],
    pictures: bool = True,
) -> None:
    """Writes the page whole or not at all: a temporary file, then a rename.

    Args:
      path: report.html, local or remote.
      title: heading of the page.
      model: name of its row in tables.
      config: the resolved config, may be nested.
      versions: software and hardware by name.
      training: rows of metrics.jsonl; may be empty.
      results: what the protocols returned; may be empty.
      margin: a name of `family.names()` to draw; None draws none.
      margin_value: its m; None means its default.
      summary: facts for the head of the page, such as steps, time, identities.
      pictures: whether to show the hardest pairs. They are faces.
    """
    sections = [
        overview.head(title, summary, results),
        overview.tables(results),
        rates.curves(results),
        rates.thresholds(results),
        rates.intervals(results),
        rates.groups(results),
        rates.paper_tables(results, model),
        _open_sets(results),
        _pairs(results) if pictures else "",
        _training(training),
        _margin(margin, margin_value, config),
        _setup(config, versions),
    ]
    caution = "".join(f"<p>{escape(text)}</p>" for text in _CAUTION)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{html.CSS}</style></head><body><main>"
        f"{''.join(sections)}<aside><h2>Before you use these numbers</h2>{caution}"
        "</aside></main></body></html>\n"
    )
    with workdir.whole_file(epath.Path(path), "wb") as file:
        file.write(page.encode())


def _open_sets(results) -> str:
    found = [(r.key, r.open_set) for r in results if r.open_set is not None]
    if not found:
        return ""
    head = ["test set", "largest within", "99 % within", "1 % between"]
    head += ["smallest between", "gap", "overlap", "genuine pairs", "impostor pairs"]
    rows, drawings = [], ""
    for name, s in found:
        angles = (s.max_intra, s.intra_q99, s.inter_q01, s.min_inter, s.gap)
        numbers = [f"{angle:.1f}°".replace("-", "−") for angle in angles]
        numbers += [f"{100 * s.overlap:.2f} %", f"{s.genuine_pairs:,}"]
        rows.append([escape(name), *numbers, f"{s.impostor_pairs:,}"])
        drawings += html.image(plots.angle_histograms(s, name), f"angles of {name}")
    legend = f'<p class="note">{_OPEN_SET}</p>'
    return html.section("Open-set angles", html.table(head, rows) + legend + drawings)


def _pairs(results) -> str:
    body = ""
    for result in results:
        for kind, heading in (
            ("genuine", "one person, lowest scores"),
            ("impostor", "two people, highest scores"),
        ):
            figures = "".join(
                html.image(
                    plots.pair_picture(pair),
                    f"{kind} pair",
                    f"<b>{pair.score:.3f}</b><br>{escape(pair.first_id)}"
                    f"<br>{escape(pair.second_id)}",
                )
                for pair in result.hardest
                if pair.kind == kind
            )
            if figures:
                body += f"<h3>{escape(result.key)}: {heading}</h3>"
                body += f'<div class="pairs">{figures}</div>'
    if not body:
        return ""
    note = (
        '<p class="note">Images as the network saw them. Look for wrong labels before '
        "you look for a wrong network.</p>"
    )
    return html.section("Hardest pairs", note + body)


def _training(training) -> str:
    if not training:
        return ""
    return html.section(
        "Training", html.image(plots.training_curves(training), "training")
    )


def _margin(margin, value, config) -> str:
    if margin is None:
        return ""
    caption = (
        "The logit of the own class is ρ·ψ(θ), that of any other class ρ·η(θ). "
        "Training pulls ψ at the angle of the own class above η at the angles of the "
        "others; where Δ &gt; 0 it asks for more than the right answer, for a margin."
    )
    constants = config.get("head", {}).get(margin) or {}
    curves = plots.margin_curves(margin, value, constants)
    return html.section("Margin", html.image(curves, margin, caption))


def _setup(config, versions) -> str:
    rows = [[escape(name), escape(str(value))] for name, value in _flat(config)]
    table = html.table(["key", "value"], rows, "text")
    versions = [[escape(name), escape(str(value))] for name, value in versions.items()]
    body = html.table(["software and hardware", "version"], versions, "text")
    if rows:
        body += "<details><summary>Resolved config "
        body += f"({len(rows)} keys)</summary>{table}</details>"
    return html.section("Set-up", body)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
