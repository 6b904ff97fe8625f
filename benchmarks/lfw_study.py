"""LFW, fold by fold: the network, the classical baselines, and all together.

    for k in 1 2 3 4 5 6 7 8; do
      python -m hyperface_jax.main --config configs/lfw.py:fold=$k \
        --workdir runs/lfw/fold$k --config.data.path=lfw.tar \
        --config.data.pairs_path=pairs.txt
    done
    python benchmarks/lfw_classical.py --lfw lfw.tar --pairs pairs.txt --out runs/lfw
    python benchmarks/lfw_study.py --out runs/lfw

Every row is fitted without the tested fold: the thresholds, and the spreads by which
scores are divided before they are summed, come from pairs among the training people who
were held out (a tenth). The error is the standard error over folds. Folds without
results are left out and named. Leaves <out>/lfw.md and lfw.json: of each row and fold
accuracy, best accuracy and AUC, with commit and versions (benchmarks/lfw: those of
RESULTS.md).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lfw_classical import NAMES

from hyperface_jax import workdir
from hyperface_jax.evaluation import roc, verification
from hyperface_jax.evaluation.embedded import Options
from hyperface_jax.training import run_evaluation

FIELDS = ("dev", "dev_genuine", "test", "test_genuine")


def network_scores(folder: Path) -> dict[str, np.ndarray]:
    """Cosines of the held-out and of the tested pairs, computed once."""
    cache = folder / "pair_scores.npz"
    if not cache.exists():
        run, state, _, _ = run_evaluation.open_workdir(None, folder)
        (test,) = run.evaluation_sets
        found = run_evaluation.embedder_of(run, state).embed(test, Options())
        dev, pairs = test.dev_pairs, test.pairs
        np.savez(
            cache,
            dev=found.scores(dev),
            dev_genuine=dev.is_genuine,
            test=found.scores(pairs),
            test_genuine=pairs.is_genuine,
        )
    with np.load(cache) as arrays:
        return {name: arrays[name] for name in FIELDS}


def summed(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of several systems' scores, each in units of its held-out spread."""
    first = parts[0]
    for part in parts[1:]:
        np.testing.assert_array_equal(part["dev_genuine"], first["dev_genuine"])
        np.testing.assert_array_equal(part["test_genuine"], first["test_genuine"])
    return first | {
        k: np.mean([p[k] / p["dev"].std() for p in parts], axis=0)
        for k in ("dev", "test")
    }


def measures(s: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Accuracy with the held-out threshold, with the best one, and the AUC."""
    threshold = verification.choose_threshold(s["dev"], s["dev_genuine"])
    pairs = s["test"], s["test_genuine"]
    return (
        verification.accuracy_at_threshold(*pairs, threshold),
        verification.best_accuracy(*pairs),
        roc.auc(*pairs),
    )


def descriptor_scores(out: Path, fold: int) -> dict[str, dict[str, np.ndarray]]:
    """Those that `lfw_classical.py` has left."""
    classical = {}
    for name in NAMES:
        if (out / f"{name}_fold{fold}.npz").exists():
            with np.load(out / f"{name}_fold{fold}.npz") as arrays:
                classical[name] = {k: arrays[k] for k in FIELDS}
    return classical


def systems(out: Path, fold: int) -> dict[str, dict[str, np.ndarray]]:
    """Every system that has results for a fold."""
    classical = descriptor_scores(out, fold)
    found = dict(classical)
    if len(classical) == len(NAMES):
        found["all descriptors, summed"] = summed(list(classical.values()))
    if (out / f"fold{fold}" / "results.json").exists():
        network = network_scores(out / f"fold{fold}")
        found["network, cosine"] = network
        if "lbp" in classical:
            found["network and lbp, summed"] = summed([network, classical["lbp"]])
        if len(classical) == len(NAMES):
            parts = [network, *classical.values()]
            found["network and all descriptors, summed"] = summed(parts)
    return found


def table(rows: dict[str, dict[int, tuple[float, float, float]]]) -> str:
    """Markdown: a row a system, then the folds one by one."""
    lines = [
        "| system | folds | accuracy, held-out threshold | best threshold | AUC |",
        "|---|---|---:|---:|---:|",
    ]
    for name, folds in rows.items():
        values = np.array(list(folds.values()))
        mean = values.mean(0)
        error = (
            values[:, 0].std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
        )
        which = ", ".join(map(str, folds))
        cells = f"{mean[0]:.4f} ± {error:.4f} | {mean[1]:.4f} | {mean[2]:.4f}"
        lines.append(f"| {name} | {which} | {cells} |")
    lines += ["", "| fold | " + " | ".join(rows) + " |", "|---|" + "---:|" * len(rows)]
    for fold in sorted({k for folds in rows.values() for k in folds}):
        cells = [f"{f[fold][0]:.4f}" if fold in f else "" for f in rows.values()]
        lines.append(f"| {fold} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=range(1, 9))
    a = parser.parse_args()
    rows: dict[str, dict[int, tuple[float, float, float]]] = {}
    for fold in a.folds:
        for name, scores in systems(a.out, fold).items():
            rows.setdefault(name, {})[fold] = measures(scores)
    text = table(rows)
    (a.out / "lfw.md").write_text(text)
    facts = {"commit": workdir.commit(), "versions": workdir.versions(), "rows": rows}
    (a.out / "lfw.json").write_text(json.dumps(facts, indent=1))
    print(text)


if __name__ == "__main__":
    main()
