"""Tables and pictures of what benchmarks/stability.py found.

    python benchmarks/stability_report.py runs/stability/synth_plain.jsonl

writes beside the file: <name>.md, <name>_success.png, <name>_curves.png.
"""

import argparse
from pathlib import Path

import numpy as np
from stability_pictures import draw_curves, draw_success
from stability_study import NORMS, Study

from hyperface_jax.evaluation.groups import wilson


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
