"""Images a second of a whole training step, beside PyTorch.

    pip install torch
    python benchmarks/training_throughput.py --backbone iresnet50 --batch 512
    python benchmarks/training_throughput.py --backbone sfnet20_deprecated --batch 512
    python benchmarks/training_throughput.py --backbone iresnet18 --width 8 --size 32 \
        --batch 16 --classes 1000 --dtype float32   # on a CPU, to see that it runs

SphereFace-R v2 with hard normalisation over --classes identities, SGD with momentum and
decay. Ours is the step of a run: flips, network in --dtype, head and statistics in
float32, metrics, the latch for losses that are not finite. PyTorch's is
`torch_peer.py` with channels_last, autocast, cudnn.benchmark, fused SGD, under
torch.compile; images are normalised and flipped there too. Both start from the same
weights; where their first losses do not agree there is no table. Images are on the
device already; no host synchronisation between the steps of a round.

Each side is a process of its own, one after the other, so that none keeps the other's
memory. Sides: ours, ours_augmented (all augmentation on), torch (compiled),
torch_eager. Each --xla=FLAGS adds a side with these XLA_FLAGS. On a GPU the ceilings (a
product of matrices, a copy) are measured in ours' process: `peak` is the share of the
product's rate that 3 forward passes' multiplications reach, the head not counted;
`roofline` is the least time by these operations and by the bytes of the compiled
program's kernels.

    python benchmarks/training_throughput.py --backbone iresnet50 --compile-for h200

compiles our step for a GPU that need not be here (`pip install -e '.[cuda]'`), and says
what memory it takes and what its kernels read and write.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import training_sides

HERE = Path(__file__).resolve()


def child(a: argparse.Namespace, side: str, flags: str = "") -> dict:
    """Runs one side in a process of its own; what went wrong is its result."""
    env = dict(os.environ)
    if flags:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}"
    command = [sys.executable, str(HERE), "--side", side, "--batch", str(a.batch)]
    for name in ("backbone", "dtype", "torch_mode"):
        command += [f"--{name.replace('_', '-')}", getattr(a, name)]
    for name in ("classes", "size", "width", "steps", "rounds", "warm_up"):
        command += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=a.limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not within {a.limit} s"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"failed": " ".join(last)[:300] or f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def line_of(name: str, found: dict, a: argparse.Namespace, peer: float | None) -> str:
    """A row of the table."""
    if "failed" in found:
        return f"| {name} | {found['failed']} | | | | | |"
    rate = a.batch / found["seconds"]
    ratio = f"{rate * peer / a.batch:.2f}" if peer else ""
    memory = found.get("peak_bytes") or found.get("planned_bytes", 0)
    shares = [
        f"{found[key]:.0%}" if key in found else "" for key in ("peak", "roofline")
    ]
    cells = [f"{1e3 * found['seconds']:.1f}", f"{rate:.0f}", ratio, *shares]
    cells.append(f"{memory / 2**30:.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="iresnet50", help="an IResNet or SFNet")
    parser.add_argument("--classes", type=int, default=93431)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    sides = ["ours", "ours_augmented", "torch", "torch_eager"]
    parser.add_argument("--sides", nargs="+", default=["ours", "torch"], choices=sides)
    parser.add_argument("--xla", action="append", default=[], help="XLA_FLAGS to try")
    parser.add_argument("--torch-mode", default="max-autotune")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--limit", type=int, default=400, help="seconds a side")
    parser.add_argument("--out", type=Path, help="a .json for all that was found")
    parser.add_argument("--compile-for", default="", help="a GPU, such as h200")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        found = (
            training_sides.torch_side(a)
            if a.side.startswith("torch")
            else training_sides.ours(a)
        )
        print(json.dumps(found))
        return
    if a.compile_for:
        print(f"{a.backbone}, batch {a.batch}, {a.classes} classes, {a.dtype}")
        print(training_sides.compiled_for(a))
        return
    results = {side: child(a, side) for side in a.sides}
    results |= {f"ours, {flags}": child(a, "ours", flags) for flags in a.xla}
    if a.out:
        network = {k: str(v) for k, v in vars(a).items()}
        a.out.write_text(json.dumps({"run": network, "results": results}, indent=1))
    known = [r for r in results.values() if "seconds" in r]
    losses = [r["first_loss"] for r in known if r is not results.get("ours_augmented")]
    far = 2e-2 if a.dtype == "bfloat16" else 1e-4
    if losses and not max(losses) - min(losses) <= far * max(losses):
        raise SystemExit(f"the first losses differ: {losses}")
    peer = results.get("torch", {}).get("seconds")
    print(
        f"{a.backbone}, width {a.width}, {a.size}x{a.size}, batch {a.batch}, "
        f"{a.classes} classes, {a.dtype}:\n\n| side | ms a step | images/s | times "
        "PyTorch | peak | roofline | GiB |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, found in results.items():
        print(line_of(name, found, a, peer))


if __name__ == "__main__":
    main()
