"""Top-k search of a large gallery against the bare matrix product with its probes.

    python benchmarks/search.py [--rows 1000000] [--probes 100] [--top 10] [--faiss]

`nearest.top_k` on random float32 rows that are not of unit length: their lengths are
part of what is timed, and so is the float64 comparison of the best. The bare product is
`jit(lambda p, g: p @ g.T)` of the same arrays at float32's full precision, whole result
written, nothing looked at. Both are warm and take turns; medians are compared. A rise
of the gallery's scores (--rising) is the worst order: each block displaces the best.
"""

import argparse
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from hyperface_jax.evaluation import faiss_index, nearest


def aligned(rows: int, size: int) -> np.ndarray:
    """An array at a multiple of 64 bytes, as in the memory map of a .npy."""
    raw = np.empty(rows * size + 16, np.float32)
    skip = (-raw.ctypes.data // 4) % 16
    return raw[skip : skip + rows * size].reshape(rows, size)


def make(rows: int, probes: int, size: int, rising: bool):
    rng = np.random.default_rng(0)
    gallery = aligned(rows, size)
    probe = rng.standard_normal((probes, size), np.float32)
    for start in range(0, rows, 50_000):
        part = gallery[start : start + 50_000]
        part[:] = 7 * rng.standard_normal(part.shape, np.float32)
        if rising:
            part += probe.mean(axis=0) * 10 * (start / rows)
    return gallery, probe


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def show(name: str, times: list[float]) -> None:
    print(
        f"{name}: median {statistics.median(times):.3f} s, {min(times):.3f} to "
        f"{max(times):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=int, default=None)
    parser.add_argument("--half", action="store_true", help="a float16 gallery")
    parser.add_argument("--rising", action="store_true", help="the worst order")
    parser.add_argument("--faiss", action="store_true", help="IndexFlatIP, too")
    a = parser.parse_args()
    gallery, probe = make(a.rows, a.probes, a.size, a.rising)
    searched = gallery.astype(np.float16) if a.half else gallery
    product = jax.jit(
        lambda p, g: jax.numpy.matmul(p, g.T, precision=jax.lax.Precision.HIGHEST)
    )
    on_device = [jax.device_put(x, may_alias=True) for x in (probe, gallery)]

    def ours():
        return nearest.top_k(searched, probe, a.top, block=a.block)

    def bare():
        product(*on_device).block_until_ready()

    times: dict[str, list[float]] = {"search": [], "bare product": []}
    ours(), bare()
    for _ in range(a.rounds):
        times["search"].append(seconds(ours))
        times["bare product"].append(seconds(bare))
    device = jax.devices()[0].device_kind
    packages = ("jax", "jaxlib", "numpy", *(["faiss-cpu"] if a.faiss else []))
    print(f"{platform.machine()}, {processor()}, JAX on {device}")
    print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
    print(
        f"{a.rows} x {a.size} {searched.dtype}, {a.probes} probes, top {a.top}"
        + (", rising" if a.rising else "")
    )
    for name, taken in times.items():
        show(name, taken)
    medians = [statistics.median(taken) for taken in times.values()]
    print(f"ratio of the medians {medians[0] / medians[1]:.2f}")
    if a.faiss:
        faiss_times(gallery, probe, a.top, a.rounds, ours()[1])


def faiss_times(gallery, probe, k: int, rounds: int, expected) -> None:
    """IndexFlatIP with the unit rows already in it; building is timed apart."""
    unit, _ = nearest.unit_probes(probe, "probes")
    single = unit.astype(np.float32)
    started = time.perf_counter()
    index, _, _ = faiss_index.build(gallery, "faiss", "gallery")
    print(f"FAISS IndexFlatIP: built in {time.perf_counter() - started:.1f} s")
    show(
        "FAISS IndexFlatIP: search",
        [seconds(lambda: index.search(single, k)) for _ in range(rounds)],
    )
    _, rows = index.search(single, k)
    print(f"the same rows in the same places: {np.mean(rows == expected):.4f}")


if __name__ == "__main__":
    main()
