"""What each published recipe needs on one H200 and on a v5e slice: `plan`, compiled.

    pip install -e '.[cuda]'  # or '.[tpu]': XLA's compilers, no device
    python benchmarks/recipes.py --topology h200:1 --out runs/recipes
    python benchmarks/recipes.py --topology v5e:4x4 --out runs/recipes

Runs `--mode plan --topology` on the commands of docs/reproducing.md, with a small
embedded set in place of the data and as many rows of classes as theirs. Leaves
<out>/<recipe>_<topology>.json with command, commit, versions and what `plan` printed,
and prints a table of all that are there. Nothing is run on such a device: times are
bounds by published rates, the larger of two: `bandwidth`, of what a GPU's kernels read
and write, and `operations`, of the network's multiplications by the matrix peak
(bfloat16, or what float32 is multiplied in by default: TensorFloat-32 on a GPU).
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

from hyperface_jax import workdir


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A command of docs/reproducing.md and the size of its data."""

    name: str
    config: str
    people: int
    images: int
    epochs: float = 0.0  # 0: the recipe counts in steps
    dtype: str = "float32"

    @property
    def rows(self) -> int:
        """Classes, padded to what 16 devices share evenly."""
        return -(-self.people // 512) * 512


VGGFACE2, MS1MV2, MS1MV3 = (8631, 3_086_894), (85_742, 5_822_653), (93_431, 5_179_510)
CASIA = (10_572, 490_623)
RECIPES = (
    Recipe("SphereFace-R v2, HFN", "sfr.py:data=vggface2", *VGGFACE2),
    Recipe(
        "SphereFace, MS1MV2",
        "baselines.py:loss=sphereface,recipe=opensphere,data=ms1m",
        *MS1MV2,
    ),
    Recipe(
        "ArcFace, InsightFace r50",
        "baselines.py:loss=arcface_wrap,recipe=insightface",
        *(*MS1MV3, 20.0, "bfloat16"),
    ),
    Recipe(
        "AdaFace",
        "baselines.py:loss=adaface,recipe=adaface",
        *(*MS1MV2, 26.0, "bfloat16"),
    ),
    Recipe("SphereFace-R v2, CASIA", "sfr.py:data=casia", *CASIA),
    Recipe(
        "CosFace, CASIA",
        "baselines.py:loss=cosface,recipe=adaface,data=casia",
        *(*CASIA, 26.0, "bfloat16"),
    ),
)
H200_PEAKS = {"bfloat16": 989.5e12, "float32": 494.7e12}  # NVIDIA's data sheet, dense
FOUND = {
    "gflop": r"([\d.]+) GFLOP an image in a step$",
    "network": r"^network +(\w+), ([\d.]+) M parameters",
    "training": r"^training +(\d+) steps of (\d+) images",
    "estimated_gib": r"^  together +([\d.]+) GiB",
    "compiled_gib": r"^compiled for [\s\S]*?^  together +([\d.]+) GiB",
    "bandwidth_ms": r"written: ([\d.]+) ms by the published bandwidth",
    "operations_ms": r"a step takes at least +([\d.]+) ms",
}


def plan(recipe: Recipe, topology: str) -> dict:
    """What `--mode plan` says of a recipe."""
    command = [
        *("-m", "hyperface_jax.main", "--mode=plan", f"--topology={topology}"),
        f"--config=configs/{recipe.config}",
        *("--config.data.name=synth_faces", "--config.data.config=tiny"),
        f"--config.head.class_multiple={recipe.rows}",
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{recipe.name}: {done.stdout[-500:]}{done.stderr[-500:]}")
    found = {}
    for name, pattern in FOUND.items():
        match = re.search(pattern, done.stdout, re.MULTILINE)
        found[name] = match.groups() if match else None
    return {
        "recipe": dataclasses.asdict(recipe),
        "topology": topology,
        "command": f"python {' '.join(command)}",
        "commit": workdir.commit(),
        "versions": workdir.versions(),
        "found": found,
        "text": done.stdout,
    }


def row(facts: dict) -> str:
    """Of the table."""
    recipe, found = Recipe(**facts["recipe"]), facts["found"]
    network, parameters = found["network"]
    steps, batch = map(int, found["training"])
    if recipe.epochs:
        steps = round(recipe.epochs * (recipe.images // batch))
    bounds = {}
    for bound in ("bandwidth", "operations"):
        if found[f"{bound}_ms"]:
            bounds[float(found[f"{bound}_ms"][0])] = bound
    if facts["topology"].startswith("h200"):
        flops = 1e9 * float(found["gflop"][0]) * batch
        bounds[1e3 * flops / H200_PEAKS[recipe.dtype]] = "operations"
    ms = max(bounds)
    cells = [
        recipe.name,
        f"{network}, {float(parameters):.1f} M",
        f"{steps} of {batch}",
        facts["topology"],
        found["estimated_gib"][0],
        found["compiled_gib"][0],
        f"{ms:.1f} ({bounds[ms]})",
        f"{steps * ms / 3.6e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        words = re.sub(r"\W+", "_", f"{recipe.name} {a.topology}".lower())
        path = a.out / f"{words}.json"
        if not path.exists():
            path.write_text(json.dumps(plan(recipe, a.topology), indent=1))
    print("| recipe | network | steps | devices | memory of one, GiB: estimated "
          "| compiled | ms a step, at least | hours, at least |")  # fmt: skip
    print("|---|---|---:|---|---:|---:|---:|---:|")
    facts = [json.loads(path.read_text()) for path in sorted(a.out.glob("*.json"))]
    order = [recipe.name for recipe in RECIPES]
    for one in sorted(facts, key=lambda one: order.index(one["recipe"]["name"])):
        print(row(one))


if __name__ == "__main__":
    main()
