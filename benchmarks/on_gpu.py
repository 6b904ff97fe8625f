"""Everything that waits for a GPU, in the order of its worth, within a short lease.

    python benchmarks/on_gpu.py --out runs/gpu --minutes 9
    python benchmarks/on_gpu.py --out runs/gpu --dry     # only prints the commands

Each row is a command of its own with a limit; what it prints goes to --out/NAME.txt,
and summary.json says how each ended, after every row: a lease that ends half-way keeps
what was measured. Rows that no longer fit into the minutes are left out, and it is
said; --rows names those of a second call. The row "twin" needs --lfw, a folder with
lfw.tar and pairs.txt.

Where nothing can be downloaded, bring wheels in a folder, made on another machine for
the GPU machine's Python (--wheels installs them, without their own dependencies):

    pip download -d wheels --no-deps --python-version 3.12 --only-binary :all: \
        array_record dm-tree docstring_parser googleapis-common-protos grain \
        immutabledict importlib_resources ml_collections portpicker simple_parsing \
        simplejpeg tensorboardX tensorflow-datasets tensorflow-metadata termcolor toml
    pip wheel -w wheels --no-deps promise
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    """A command and the seconds that it may take."""

    name: str
    limit: int
    command: str


THROUGHPUT = "benchmarks/training_throughput.py --limit 150 --backbone"
ROWS = (
    Row(
        "iresnet50",
        420,
        f"{THROUGHPUT} iresnet50 --batch 512 --sides ours torch_eager torch "
        "--limit 280 --out {out}/r50.json",
    ),
    Row(
        "head",
        120,
        "benchmarks/head.py --batch 1024 --classes 93431 10000000 --time 93431 "
        "--sample 10000000",
    ),
    Row(
        "iresnet100",
        300,
        f"{THROUGHPUT} iresnet100 --batch 512 --sides ours torch_eager "
        "--out {out}/r100.json",
    ),
    Row(
        "sfnet20",
        200,
        f"{THROUGHPUT} sfnet20_deprecated --batch 1024 --out {{out}}/sf20.json",
    ),
    Row("embedding", 200, "benchmarks/embedding_throughput.py"),
    Row(
        "precision",
        120,
        "benchmarks/head_precision.py --classes 93431 --batch 1024 --repeats 3",
    ),
    Row(
        "twin",
        420,
        "benchmarks/twin.py --network iresnet18 --width 64 --dim 512 --size 112 "
        "--batch 128 --steps 2000 --dtype bfloat16 --no-reference --accuracy "
        "--lfw {lfw}/lfw.tar --pairs {lfw}/pairs.txt --out {out}/twin",
    ),
    Row(
        "augmentation",
        100,
        f"{THROUGHPUT} iresnet50 --batch 512 --sides ours ours_augmented "
        "--out {out}/augmentation.json",
    ),
    Row(
        "flags",
        200,
        f"{THROUGHPUT} iresnet50 --batch 512 --sides ours --out {{out}}/flags.json "
        "--xla=--xla_gpu_enable_triton_gemm=false "
        "--xla=--xla_gpu_enable_command_buffer=",
    ),
    Row("sfnet64", 200, f"{THROUGHPUT} sfnet64_deprecated --out {{out}}/sf64.json"),
    Row("search", 60, "benchmarks/search.py"),
)


def run(row: Row, command: str, out: Path, seconds: float) -> dict:
    """Runs a row, no longer than `seconds`."""
    started = time.monotonic()
    with (out / f"{row.name}.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command.split()],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = process.wait(min(row.limit, seconds))
        except subprocess.TimeoutExpired:
            ended = "out of time"
            # With its own processes, or they would keep the GPU.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = round(time.monotonic() - started, 1)
    return {"row": row.name, "ended": ended, "seconds": taken, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--lfw", type=Path, help="folder of LFW, for the row twin")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--dry", action="store_true", help="only print the commands")
    a = parser.parse_args()
    if a.rows and "twin" in a.rows and not a.lfw:
        parser.error("--rows twin needs --lfw, a folder with lfw.tar and pairs.txt")
    ends = time.monotonic() + 60 * a.minutes
    out = a.out.resolve()
    rows = {
        row: row.command.format(out=out, lfw=a.lfw and a.lfw.resolve())
        for row in ROWS
        if (row.name in a.rows if a.rows else a.lfw or "{lfw}" not in row.command)
    }
    if a.dry:
        for row, command in rows.items():
            print(f"{row.limit:4} s  python {command}")
        return
    out.mkdir(parents=True, exist_ok=True)
    if a.wheels:
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
        subprocess.run([*pip, *map(str, a.wheels.glob("*.whl"))], check=True)
    found = []
    for row, command in rows.items():
        left = ends - time.monotonic()
        if left < 30:
            found.append({"row": row.name, "ended": "no time left"})
        else:
            found.append(run(row, command, out, left))
        print(json.dumps(found[-1]), flush=True)
        (out / "summary.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
