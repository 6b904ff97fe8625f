"""The results as the tables that papers print, in Markdown and LaTeX.

Percent, one row: accuracy of the verification sets, then TAR at FAR of the template
protocols, then identification. A column is there where the metric is.
"""

from collections.abc import Sequence

from hyperface_jax.evaluation.results import ProtocolResult

# Protocol -> metrics of a paper's table, with the heading's second line.
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "verification": (("kfold_accuracy", "k-fold acc."),),
    "held_out_threshold": (("accuracy", "acc."),),
    "combined": (("tar@far=1e-3", "TAR@1e-3"),),
    "templates_verification": tuple(
        (f"tar@far=1e-{k}", f"TAR@1e-{k}") for k in (6, 5, 4, 3)
    ),
    "templates_identification": (
        ("nist_rank1", "rank 1 (nist)"),
        ("nist_tpir@fpir=1e-2", "TPIR@1e-2 (nist)"),
        ("nist_tpir@fpir=1e-1", "TPIR@1e-1 (nist)"),
    ),
    "identification": (("rank1", "rank 1"), ("rank5", "rank 5")),
    "distractors_megaface": (("rank1", "rank 1"),),
    "distractors_tinyface": (("rank1", "rank 1"), ("rank5", "rank 5")),
}


def columns(results: Sequence[ProtocolResult]) -> list[tuple[str, str, str]]:
    """(test set, heading, percent with two decimals) in the order of `COLUMNS`."""
    found = []
    for protocol, metrics in COLUMNS.items():
        for result in results:
            if result.name != protocol:
                continue
            for metric, heading in metrics:
                if metric in result.metrics:
                    value = f"{100 * result.metrics[metric]:.2f}"
                    if metric == "kfold_accuracy":
                        value += f" ± {100 * result.metrics['kfold_std']:.2f}"
                    found.append((result.test_set or result.name, heading, value))
    return found


def markdown(results: Sequence[ProtocolResult], model: str) -> str:
    """A table of one row, which `model` names."""
    found = columns(results)
    if not found:
        return "No protocol of a paper's table was run.\n"
    head = " | ".join(f"{name}<br>{heading}" for name, heading, _ in found)
    rule = " | ".join("---:" for _ in found)
    row = " | ".join(value for _, _, value in found)
    return f"| model | {head} |\n|---| {rule} |\n| {model} | {row} |\n"


def latex(results: Sequence[ProtocolResult], model: str) -> str:
    """A tabular with booktabs' rules; column heads span the columns of a set."""
    found = columns(results)
    if not found:
        return "% No protocol of a paper's table was run.\n"
    groups: list[list] = []
    for name, _, _ in found:
        if groups and groups[-1][0] == name:
            groups[-1][1] += 1
        else:
            groups.append([name, 1])
    heads = " & ".join(
        rf"\multicolumn{{{count}}}{{c}}{{{_escape(name)}}}" for name, count in groups
    )
    second = " & ".join(_escape(heading) for _, heading, _ in found)
    row = " & ".join(value.replace(" ± ", r" $\pm$ ") for _, _, value in found)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * len(found)}}}",
            r"\toprule",
            rf"& {heads} \\",
            rf"model & {second} \\",
            r"\midrule",
            rf"{_escape(model)} & {row} \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text
