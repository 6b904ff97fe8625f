"""Every loss of the family once through the default laptop run.

    python benchmarks/family_run.py --out runs/family --part 1/2 &
    python benchmarks/family_run.py --out runs/family --part 2/2; wait
    python benchmarks/family_run.py --out runs/family --table

Trains configs/baselines.py:loss=NAME on rendered faces (one seed, about three minutes
of one core each) with the margin, constants and gradient of its paper and an automatic
scale, and writes a table from the results.json. It shows that each trains, not which is
best: nothing is tuned, and one seed tells differences of about a point apart. Runs that
are finished are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from hyperface_jax import family

ROOT = Path(__file__).resolve().parent.parent
# 2017's needs its annealing's 10 000 steps; VPL begins after 8 000 by default.
EXTRA = {"vpl_arcface": ["--config.head.vpl_arcface.start=100"]}
LEFT_OUT = ("sphereface_2017",)
NAMES = [n for n in reversed(family.names()) if n not in LEFT_OUT] + ["plain_softmax"]


def train(name: str, out: Path, epochs: float) -> None:
    if (out / name / "results.json").exists():
        return
    command = [sys.executable, "-m", "hyperface_jax.main"]
    command += ["--config", f"configs/baselines.py:loss={name}"]
    command += ["--workdir", str(out / name), "--config.eval.every_steps=0"]
    command += [f"--config.train.epochs={epochs}"]
    command += ["--config.eval.bootstrap=0", "--config.report.pictures=False"]
    done = subprocess.run(command + EXTRA.get(name, []), cwd=ROOT, check=False)
    if done.returncode:
        print(f"{name} ended with status {done.returncode}", flush=True)


def table(out: Path) -> str:
    lines = ["| loss | m | s | k-fold accuracy | TAR@FAR=1e-2 | training accuracy |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name in NAMES:
        folder = out / name
        if not (folder / "results.json").exists():
            continue
        metrics = json.loads((folder / "results.json").read_text())["metrics"]
        head = json.loads((folder / "config.json").read_text())["config"]["head"]
        last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
        row = json.loads(last)
        scale = f"{row.get('loss_scale', head['scale']):.1f}"
        lines.append(
            f"| {name} | {head['margin']:g} | {'' if head['norm'] == 'nfn' else scale} "
            f"| {metrics['test/verification/kfold_accuracy']:.4f} "
            f"| {metrics['test/verification/tar@far=1e-2']:.4f} "
            f"| {row['accuracy']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="I/N, from 1")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--table", action="store_true", help="print, train nothing")
    a = parser.parse_args()
    if not a.table:
        part, parts = map(int, a.part.split("/"))
        for name in NAMES[part - 1 :: parts]:
            train(name, a.out, a.epochs)
    print(table(a.out))


if __name__ == "__main__":
    main()
