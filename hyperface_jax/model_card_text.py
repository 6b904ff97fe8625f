"""A model card as Markdown."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = "not known"


def markdown(card: Mapping[str, Any]) -> str:
    """A card as text."""
    lines = [f"# Model card: {card['network']['name']}", ""]
    for title in ("network", "training"):
        facts = {k: v for k, v in card[title].items() if v != {}}
        lines += [f"## {title.capitalize()}", ""]
        lines += [f"- {_words(k)}: {_text(v)}" for k, v in facts.items()]
        lines.append("")
    lines += ["## Evaluation", ""]
    if card["evaluation"]:
        lines += ["| protocol | metric | value | 95 % interval |", "|---|---|---|---|"]
        for row in card["evaluation"]:
            interval = row.get("interval")
            shown = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
            cells = (row["protocol"], row["metric"], f"{row['value']:.4f}", shown)
            lines.append(f"| {' | '.join(cells)} |")
    else:
        lines.append("Not evaluated here.")
    lines += ["", "## Thresholds", ""]
    for row in card["thresholds"]:
        lines.append(
            f"- cosine {row['cosine']:.4f}: FAR at most {row['far']:g} on "
            f"{row['calibrated_on']} ({row['impostor_pairs']} impostor pairs)"
        )
    if not card["thresholds"]:
        lines.append("None was calibrated.")
    lines += ["", "## Use", "", card["intended_use"], "", card["limits"], ""]
    lines += [f"Licence of the weights: {card['weights_licence']}.", ""]
    versions = ", ".join(f"{k} {v}" for k, v in card.get("versions", {}).items())
    lines += [f"Commit {card.get('commit') or UNKNOWN}. {versions}".strip(), ""]
    return "\n".join(lines)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {v}" for k, v in value.items() if v != "")
    if isinstance(value, list | tuple):
        return " to ".join(f"{v:g}" for v in value)
    return str(value)
