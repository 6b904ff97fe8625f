"""The runs that benchmarks/stability.py left, judged."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

NAMES = {
    "normface": "NormFace",
    "sphereface": "SphereFace (v0)",
    "sphereface_r_v1": "SphereFace-R v1",
    "sphereface_r_v2": "SphereFace-R v2",
    "sphereface_2017": "SphereFace 2017 annealed",
}
NORMS = {"hfn": "HFN", "nfn": "NFN", "sfn": "SFN"}


class Study:
    """All runs of one file; each is judged by NormFace with its seed."""

    def __init__(self, path: Path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.sort(key=lambda row: row["seed"])
        base = [r for r in rows if r["loss"] == "normface" and r["norm"] == "hfn"]
        self.baseline = {r["seed"]: r for r in base}
        self.rows = [r for r in rows if r not in base]
        self.budget = rows[0]["budget"]
        self.classes = rows[0]["classes"]
        self.cells = defaultdict(list)
        for row in self.rows:
            self.cells[self.line_of(row), row["norm"], row["m"]].append(row)
        self.margins = sorted({row["m"] for row in self.rows})
        tried = {row["norm"] for row in self.rows if row["loss"] != "normface"}
        self.norms = [norm for norm in NORMS if norm in tried]
        found = {line for line, _, _ in self.cells}
        order = list(NAMES.values())
        self.lines = sorted(
            found, key=lambda line: (order.index(line.rsplit(", ", 1)[0]), line)
        )

    @staticmethod
    def line_of(row: dict) -> str:
        how = "detached" if row["detach"] == "cosine" else "not detached"
        if row["loss"] == "normface":
            return NAMES["normface"]
        return f"{NAMES[row['loss']]}, {how}"

    def succeeds(self, row: dict) -> bool:
        half = self.baseline[row["seed"]]["accuracy"] / 2
        return row["nonfinite_step"] < 0 and row["accuracy"] >= half

    def relative(self, row: dict, curve: str, part: str, quantile: int) -> float:
        """A gradient norm as a multiple of NormFace's in the same third."""
        base = self.baseline[row["seed"]]["quantiles"][curve][part][quantile]
        return row["quantiles"][curve][part][quantile] / base

    def last_level_step(self, row: dict) -> int:
        """The last step at which a run had at least half of NormFace's accuracy."""
        own = np.array(row["curves"]["accuracy"])
        base = np.array(self.baseline[row["seed"]]["curves"]["accuracy"])
        own, base = (smooth(curve) for curve in (own, base[: len(own)]))
        judged = np.flatnonzero(base > 0.05)  # before that chance decides
        level = judged[own[judged] >= base[judged] / 2]
        steps = self.budget["steps"]
        return int(steps * (level[-1] + 1) / len(own)) if len(level) else 0

    def why(self, row: dict) -> str:
        """What is to be seen of a failure; the first that applies."""
        if row["nonfinite_step"] >= 0:
            return f"not finite at step {row['nonfinite_step']}"
        lengths = row["curves"]["magnitude_mean"]
        if lengths[-1] < 0.01 * lengths[0]:
            return "lengths vanish"
        if lengths[-1] > 100 * lengths[0]:
            return "lengths explode"
        if self.relative(row, "grad_norm_backbone", "last", 0) < 0.02:
            return "backbone's gradient vanishes"
        if self.relative(row, "grad_norm_backbone", "first", 2) > 20:
            return "gradient bursts early"
        if row["curves"]["loss"][-1] < 0.5 * row["curves"]["loss"][0]:
            return "loss falls, faces are not told apart in time"
        return "loss hardly falls"


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Mean of `width` neighbours."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")
