"""Sections of the report on error rates: curves, intervals, groups, papers' tables."""

from collections.abc import Sequence
from html import escape

from hyperface_jax.evaluation.results import ProtocolResult, describe
from hyperface_jax.reporting import html, plots, rate_curves, tables


def curves(results: Sequence[ProtocolResult]) -> str:
    """ROC, DET, EDC, CMC and the distributions of scores."""
    scored = [result for result in results if len(result.scores)]
    searched = [result for result in results if result.cmc is not None]
    body = ""
    if scored:
        caption = (
            "Each curve starts at the smallest FAR its impostor pairs can show. "
            "Bars are 95 % intervals."
        )
        body += html.image(rate_curves.roc_curves(scored), "ROC of all sets", caption)
        if det := rate_curves.det_curves(scored):
            body += html.image(det, "DET of all sets")
        each = "".join(
            html.image(plots.score_distributions(result), f"scores of {result.key}")
            for result in scored
        )
        body += f'<div class="two">{each}</div>'
    if discarded := [result for result in results if result.discard is not None]:
        caption = "Dotted: an ideal quality, which discards only what is rejected."
        edc = rate_curves.edc_curves(discarded)
        body += html.image(edc, "EDC of all sets", caption)
    if searched:
        body += html.image(rate_curves.cmc_curves(searched), "CMC of all sets")
    return html.section("Curves and scores", body) if body else ""


def is_threshold(metric: str) -> bool:
    """Cosines among the rates; they have a table of their own."""
    return metric in ("kfold_threshold", "threshold") or metric.startswith("threshold@")


def thresholds(results: Sequence[ProtocolResult]) -> str:
    """Cosine thresholds of the operating points, with what they let through."""
    rows = []
    for result in results:
        for name, cosine in result.metrics.items():
            if not is_threshold(name):
                continue
            far = name.removeprefix("threshold@far=")
            point = {
                "kfold_threshold": "best accuracy, mean of the folds",
                "threshold": "best accuracy on held-out people",
            }.get(name, f"FAR at most {far} on these pairs")
            tar = result.metrics.get(f"tar@far={far}")
            share = "–" if tar is None else f"{100 * tar:.2f}"
            rows.append([escape(result.key), point, f"{cosine:.4f}", share])
    if not rows:
        return ""
    note = (
        '<p class="note">Accept a pair whose cosine is at least the threshold; '
        "embeddings are sums of an image and its mirror image where the run says so. "
        "Chosen on these very pairs, so on other people the rates will differ: "
        "notebook 04 shows by how much.</p>"
    )
    head = ["test set", "operating point", "cosine threshold", "TAR (%)"]
    return html.section("Thresholds", html.table(head, rows) + note)


def intervals(results: Sequence[ProtocolResult]) -> str:
    """95 % confidence intervals, where there are any."""
    rows = [
        [
            escape(result.key),
            describe(name)[0],
            f"{100 * result.metrics.get(name, found.value):.2f}",
            f"{100 * found.low:.2f} – {100 * found.high:.2f}",
        ]
        for result in results
        for name, found in result.intervals.items()
    ]
    if not rows:
        return ""
    note = (
        '<p class="note">95 %, in percent. k-fold accuracy: Student\'s t over the '
        "folds. The others: bootstrap over the people in the test set (pairs of one "
        "person are not independent), for the thresholds and the network as they are. "
        "They say nothing about another training run.</p>"
    )
    table = html.table(["test set", "metric", "value", "interval"], rows)
    return html.section("Confidence intervals", table + note)


def groups(results: Sequence[ProtocolResult]) -> str:
    """False match and non-match rates by group at one threshold."""
    body = ""
    for result in results:
        if result.groups is None:
            continue
        found = result.groups
        rows = [
            [
                row.kind.upper(),
                escape(
                    row.group
                    if row.group == row.other
                    else f"{row.group} / {row.other}"
                ),
                f"{100 * row.rate:.3f}",
                f"{100 * row.low:.3f} – {100 * row.high:.3f}",
                f"{row.errors:,}",
                f"{row.pairs:,}",
            ]
            for row in found.rows
        ]
        head = ["rate", "group", "percent", "95 % (Wilson)", "errors", "pairs"]
        body += f"<h3>{escape(result.key)}</h3>" + html.table(head, rows)
        body += (
            f'<p class="note">One threshold for all, {found.threshold:.4f}: FMR '
            f"{100 * found.fmr:.3f} %, FNMR {100 * found.fnmr:.3f} % over all pairs. "
            "FMR within a group and across two; intervals take pairs as independent, "
            "which they are not quite.</p>"
        )
    return html.section("Error rates by group", body) if body else ""


def paper_tables(results: Sequence[ProtocolResult], model: str) -> str:
    """The row of a paper's table, to copy as Markdown or LaTeX."""
    found = tables.columns(results)
    if not found:
        return ""
    head = ["model", *(f"{name} {heading}" for name, heading, _ in found)]
    row = [model, *(value for _, _, value in found)]
    table = html.table(head, [[escape(value) for value in row]])
    sources = "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
        for name, text in (
            ("Markdown", tables.markdown(results, model)),
            ("LaTeX", tables.latex(results, model)),
        )
    )
    return html.section("As papers print it (percent)", table + sources)
