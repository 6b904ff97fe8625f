"""MegaFace's rank-k at full size against the bare matrix product of the same blocks.

    python benchmarks/distractors.py [--small]

3 530 probes of 80 people against a memory map of 1 000 000 distractors with 512
numbers each (2 GB in a temporary folder), none of them of unit length. Identities have
a common centre, so that mates score about --cosine; 0 makes a network that knows
nothing. Prints seconds of both, their ratio, and the anonymous memory.
"""

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from hyperface_jax.evaluation import identification
from hyperface_jax.evaluation.distractors import ranks_among_distractors

BLOCK = 32768


def anonymous_gib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**20
    return float("nan")


class PeakMemory:
    """Largest anonymous memory while in the `with` block, sampled."""

    def __enter__(self) -> "PeakMemory":
        self.gib, self._stop = anonymous_gib(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            self.gib = max(self.gib, anonymous_gib())

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def write_distractors(path: Path, count: int, dims: int) -> np.memmap:
    free = shutil.disk_usage(path.parent).free
    need = 4 * count * dims
    if free < 2 * need:
        raise SystemExit(f"{path.parent}: {free:.3g} bytes free, needs {2 * need:.3g}")
    rng = np.random.default_rng(1)
    mapped = np.memmap(path, np.float32, mode="w+", shape=(count, dims))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        mapped[start:stop] = 7 * rng.standard_normal((stop - start, dims), np.float32)
    mapped.flush()
    del mapped
    return np.memmap(path, np.float32, mode="r", shape=(count, dims))


def make_probes(probes: int, people: int, dims: int, cosine: float):
    rng = np.random.default_rng(0)
    identity = np.arange(probes) % people
    centre = rng.standard_normal((people, dims), np.float32)[identity]
    noise = rng.standard_normal((probes, dims), np.float32)
    return np.sqrt(cosine) * centre + np.sqrt(1 - cosine) * noise, identity


def bare_product(probe: np.ndarray, distractors: np.ndarray) -> float:
    """Seconds of the products alone, blocks read and result thrown away."""
    result = np.empty((len(probe), BLOCK), np.float32)
    started = time.perf_counter()
    for start in range(0, len(distractors), BLOCK):
        block = np.asarray(distractors[start : start + BLOCK])
        np.matmul(probe, block.T, out=result[:, : len(block)])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="50 000 distractors")
    parser.add_argument("--cosine", type=float, default=0.5)
    parser.add_argument("--max-rank", type=int, help="ranks beyond are one; all if not")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    count = 50_000 if arguments.small else 1_000_000
    probe, identity = make_probes(3530, 80, 512, np.float32(arguments.cosine))
    with tempfile.TemporaryDirectory() as folder:
        distractors = write_distractors(Path(folder) / "distractors.f32", count, 512)
        bare_product(probe, distractors[: 2 * BLOCK])  # warm up
        for _ in range(arguments.rounds):
            before = bare_product(probe, distractors)
            with PeakMemory() as memory:
                started = time.perf_counter()
                ranks = ranks_among_distractors(
                    probe,
                    identity,
                    distractors,
                    max_rank=arguments.max_rank,
                    block=BLOCK,
                )
                ours = time.perf_counter() - started
            after = bare_product(probe, distractors)
            bare = min(before, after)  # the first may wait for the disk
            print(
                f"{count} distractors, {len(ranks.rank)} pairs, rank-1 "
                f"{identification.cmc(ranks.rank, 1)[0]:.4f}: {ours:.1f} s; bare "
                f"product {before:.1f} and {after:.1f} s; ratio {ours / bare:.2f}; "
                f"anonymous memory {memory.gib:.2f} GiB"
            )


if __name__ == "__main__":
    main()
