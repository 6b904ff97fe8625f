"""SphereFace-R against NormFace on rendered faces: same budget, several seeds.

    python benchmarks/compare_losses.py --out runs/compare

Trains configs/sfr.py and configs/baselines.py:loss=normface once a seed (the default
laptop run, about 5 minutes each on 2 cores) and writes a table from their
results.json. Differences are paired, with Student's t: over folds (which have different
people; says whether other people would give the same sign) and over seeds (whether
another training would). Each loss has its own automatic scale. Runs that are finished
are not repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

from hyperface_jax.evaluation import verification

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "SphereFace-R v2": "configs/sfr.py",
    "NormFace": "configs/baselines.py:loss=normface",
}


def train(config: str, seed: int, workdir: Path, extra: list[str]) -> None:
    if (workdir / "results.json").exists():
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "hyperface_jax.main", "--config", config]
    command += ["--workdir", str(workdir), f"--config.seed={seed}", *extra]
    subprocess.run(command, check=True, cwd=ROOT)
    (workdir / "seconds.txt").write_text(f"{time.monotonic() - started:.0f}\n")


def folds_of(workdir: Path, pairs_per_fold: int) -> np.ndarray:
    """Accuracy of each fold with the threshold of the others."""
    arrays = np.load(workdir / "scores.npz")
    scores = arrays["verification/scores"].astype(np.float64)
    genuine = arrays["verification/is_genuine"]
    fold = np.arange(len(scores)) // pairs_per_fold
    found = verification.kfold_accuracy(np.clip(scores, -1, 1), genuine, fold)
    return np.asarray(found.per_fold)


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    mean = float(differences.mean())
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def table(out: Path, seeds: list[int], pairs_per_fold: int) -> str:
    lines = ["| loss | seed | k-fold accuracy | TAR@FAR=1e-2 | rank-1 | seconds |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    folds = {}
    for name in RUNS:
        for seed in seeds:
            workdir = out / f"{slug(name)}_{seed}"
            metrics = json.loads((workdir / "results.json").read_text())["metrics"]
            folds[name, seed] = folds_of(workdir, pairs_per_fold)
            cells = [
                name,
                str(seed),
                f"{metrics['test/verification/kfold_accuracy']:.4f}",
                f"{metrics['test/verification/tar@far=1e-2']:.4f}",
                f"{metrics['test/identification/rank1']:.4f}",
                (workdir / "seconds.txt").read_text().strip(),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    first, second = RUNS
    differences = np.array([folds[first, s] - folds[second, s] for s in seeds])
    lines.append("")
    for unit, values in (
        (f"{differences.shape[1]} folds (mean over seeds)", differences.mean(0)),
        (f"{len(seeds)} seeds (mean over folds)", differences.mean(1)),
    ):
        mean, low, high = interval(values)
        verdict = "higher" if low > 0 else "lower" if high < 0 else "level"
        lines.append(
            f"- {first} minus {second}, k-fold accuracy, paired over {unit}: "
            f"{100 * mean:+.2f} points, 95 % interval [{100 * low:+.2f}, "
            f"{100 * high:+.2f}]: **{verdict}**."
        )
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs-per-fold", type=int, default=600)
    arguments, extra = parser.parse_known_args()
    for seed in arguments.seeds:
        for name, config in RUNS.items():
            train(config, seed, arguments.out / f"{slug(name)}_{seed}", extra)
    text = table(arguments.out, arguments.seeds, arguments.pairs_per_fold)
    (arguments.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
