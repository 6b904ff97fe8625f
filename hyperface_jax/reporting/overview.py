"""The top of the report: what each protocol measured, as cards and as tables."""

from html import escape

from hyperface_jax.evaluation.results import COUNTS, ProtocolResult, describe
from hyperface_jax.reporting import html, rates

_DEVIATIONS = {"kfold_accuracy": "kfold_std", "accuracy": "standard_error"}
_BESIDE = (*_DEVIATIONS.values(), "kfold_standard_error")  # shown with the accuracy
_HEADLINES = ("kfold_accuracy", "accuracy", "rank1", "overlap", "best_accuracy", "eer")


def head(title, summary, results) -> str:
    """Title, one card per test set with the metric it is known by, facts of the run."""
    cards = []
    for result in results:
        if result.discard is not None:
            continue  # says something of the lengths, and not of the network
        metrics, counts = _split(result)
        names = [name for name in _HEADLINES if name in metrics] or list(metrics)[:1]
        if names:
            value, _, deviation = _value(names[0], metrics, counts).partition(" ± ")
            unit = "\u202f%" if describe(names[0])[1] else ""
            beside = f" <small>± {deviation}</small>" if deviation else ""
            cards.append(
                f'<div class="card"><h3>{escape(result.key)}</h3>'
                f'<p class="big">{value}{unit}{beside}</p>'
                f"<p>{escape(describe(names[0])[0])}</p>"
                f'<p class="note">{_count_words(counts)}</p></div>'
            )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in summary.items()
    )
    return (
        f'<header><h1>{escape(title)}</h1><div class="cards">{"".join(cards)}</div>'
        f'<dl class="facts">{facts}</dl></header>'
    )


def tables(results) -> str:
    """One table for each kind of protocol: those that count and measure the same."""
    if not results:
        return html.section(
            "Results",
            "<p>No protocol was run: the data has no test set. Give "
            "<code>data.pairs_path</code> or <code>eval.sets</code>.</p>",
        )
    kinds: dict[tuple[bool, tuple[str, ...]], list] = {}
    for result in results:
        if result.failed:
            continue
        if result.open_set is not None and not len(result.scores):
            continue  # nothing but angles, which have a section of their own
        metrics, counts = _split(result)
        kind = (result.discard is not None, tuple(counts))
        kinds.setdefault(kind, []).append((result.key, metrics, counts))
    body, definitions = "", {}
    for (_, counted), rows in kinds.items():
        names = list(dict.fromkeys(name for _, metrics, _ in rows for name in metrics))
        names = [
            name
            for name in names
            if name not in _BESIDE and not rates.is_threshold(name)
        ]
        definitions |= {describe(name)[2]: describe(name)[1] for name in names}
        head = ["test set", *(describe(name)[0] for name in names)]
        head += [name.replace("_", " ") for name in counted]
        body += html.table(
            head,
            [
                [
                    escape(test_set),
                    *(_value(name, metrics, counts) for name in names),
                    *(f"{counts[name]:,}" for name in counted),
                ]
                for test_set, metrics, counts in rows
            ],
        )
    for result in results:
        failed = f"could not be measured: {result.failed}" if result.failed else ""
        if text := failed or result.note:
            note = f"<b>{escape(result.key)}</b>: {escape(text)}"
            body += f'<p class="note">{note}</p>'
    legend = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in definitions.items()
        if text
    )
    caption = (
        '<p class="note">Rates in percent, rounded to what the counts resolve.</p>'
    )
    return html.section("Results", f'{body}{caption}<dl class="legend">{legend}</dl>')


def _split(result: ProtocolResult) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics and counts apart, whichever of the two fields holds the counts."""
    metrics = {k: v for k, v in result.metrics.items() if k not in COUNTS}
    counts = {k: int(v) for k, v in result.metrics.items() if k in COUNTS}
    return metrics, result.counts | counts


def _value(name, metrics, counts) -> str:
    if name not in metrics:
        return "–"
    if not describe(name)[1]:  # not ours: no idea of its unit
        return f"{metrics[name]:.4g}"
    # One pair in 600 is .17 %: the second decimal would say nothing.
    digits = 2 if min(counts.values(), default=0) >= 1000 else 1
    text = f"{100 * metrics[name]:.{digits}f}"
    if _DEVIATIONS.get(name) in metrics:
        text += f" ± {100 * metrics[_DEVIATIONS[name]]:.{digits}f}"
    return text


def _count_words(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{n:,} {escape(name.replace('_', ' '))}" for name, n in counts.items()
    )
