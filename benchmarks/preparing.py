"""`prepare` from .rec beside a bare loop that serialises and writes the same records.

    python benchmarks/preparing.py --out /tmp/preparing --images 500000

The bare loop reads the same records, serialises them with TFDS's own serializer and
writes them with array_record, in one process, without checks, lists, or hashes. Ours
runs in one process, too; then with two workers. Peak memory is the
largest process; it is measured at a tenth of the size, too.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def write_rec(folder: Path, images: int) -> Path:
    """Noise-free synthetic JPEGs of about 7 kB, each with its own bytes at the end."""
    import record_files
    import simplejpeg

    if (folder / "train.rec").exists():
        return folder
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(256):
        coarse = rng.integers(0, 255, (28, 28, 3), np.uint8)
        pixels = np.ascontiguousarray(np.kron(coarse, np.ones((4, 4, 1), np.uint8)))
        pool.append(simplejpeg.encode_jpeg(pixels, 85))
    records = (
        (k + 1, record_files.image_payload(k // 50, pool[k % 256] + k.to_bytes(8)))
        for k in range(images)
    )
    return record_files.write_records(folder, records)


def bare(rec: Path, out: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    from hyperface_jax.data import insightface, prepared

    faces = insightface.open_insightface(rec)
    features = prepared.features()
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    out.mkdir(parents=True)
    writer = None
    for k in range(len(faces)):
        if k % 16384 == 0:
            if writer is not None:
                writer.close()
            writer = ArrayRecordWriter(str(out / f"{k}"), "group_size:1")
        (record,) = faces.read([k])
        example = features.encode_example(
            {"image": record["image"], "label": record["label"], "id": record["id"]}
        )
        writer.write(serializer.serialize_example(example))
    writer.close()
    return len(faces)


def ours(rec: Path, out: Path, workers: int) -> int:
    from hyperface_jax.data import datasets, insightface, preparing

    faces = insightface.open_insightface(rec)
    options = preparing.Options(workers=workers)
    datasets.convert(faces, out, name="faces", source="synthetic", options=options)
    return len(faces)


def child(arguments: argparse.Namespace) -> None:
    rec, out = Path(arguments.rec), Path(arguments.target)
    begun = time.monotonic()
    if arguments.child == "bare":
        count = bare(rec, out)
    else:
        count = ours(rec, out, int(arguments.child))
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    seconds = time.monotonic() - begun
    print(json.dumps({"rate": count / seconds, "seconds": seconds, "peak_kb": peak}))


def measure(rec: Path, folder: Path, kind: str) -> dict:
    target = folder / "out" / kind
    shutil.rmtree(target.parent, ignore_errors=True)
    command = [sys.executable, __file__, "--child", kind, "--rec", str(rec)]
    found = subprocess.run(
        [*command, "--target", str(target)],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(target.parent)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="/tmp/preparing")
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--child", default="")
    parser.add_argument("--rec", default="")
    parser.add_argument("--target", default="")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    folder = Path(arguments.out)
    print("| images | what | images/s | of the bare loop | peak memory, MB |")
    print("|---:|---|---:|---:|---:|")
    for images in (arguments.images // 10, arguments.images):
        rec = write_rec(folder / f"rec{images}", images)
        base = measure(rec, folder, "bare")["rate"]
        rows = {"bare loop": base}
        for kind in ("0", "2"):
            found = measure(rec, folder, kind)
            name = "prepare, in one process" if kind == "0" else "prepare, 2 workers"
            rows[name] = found["rate"]
            print(
                f"| {images:,} | {name} | {found['rate']:,.0f} | "
                f"{found['rate'] / base:.2f} | {found['peak_kb'] / 1024:.0f} |"
            )
        print(f"| {images:,} | bare loop | {base:,.0f} | 1.00 | |", flush=True)


if __name__ == "__main__":
    main()
