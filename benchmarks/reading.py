"""Images per CPU-second of all processes, end to end, beside Pillow and PyTorch.

    python benchmarks/reading.py --out /tmp/reading
    python benchmarks/reading.py --torch   # with PyTorch and OpenCV installed

Draws faces of 112x112 (JPEG quality 95, our renderer), stores them as RecordIO and as
array_record, and reads both in random order in batches. All runs are repeated in turn,
because the machine is shared; the ratio of the medians is what counts.
"""

import argparse
import io
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

IMAGES, BATCH, SIZE = 6144, 128, 112


def cpu_seconds() -> float:
    """Of this process and of its finished children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in (own, children))


def draw(folder: Path) -> None:
    """RecordIO of rendered faces, and its conversion."""
    import record_files
    import simplejpeg
    from PIL import Image

    from hyperface_jax.data import datasets, preparing, sources, synth_faces
    from hyperface_jax.data.decode import decode_image

    root = folder / "tfds"
    synth = datasets.open_dataset("synth_faces", config="laptop", data_dir=str(root))
    records = []
    for k in range(IMAGES):
        record = synth["train"].read([k % len(synth["train"])])[0]
        pixels = Image.fromarray(decode_image(record["image"], 64))
        face = np.asarray(pixels.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        noise = np.random.default_rng(k).normal(0, 3, face.shape)
        face = np.clip(face + noise, 0, 255).astype(np.uint8)
        image = simplejpeg.encode_jpeg(np.ascontiguousarray(face), 95)
        records.append((k + 1, record_files.image_payload(k % 400, image, k + 1)))
    record_files.write_records(folder / "rec", records)
    faces = sources.open_path(str(folder / "rec"))
    datasets.convert(
        faces,
        folder / "prepared",
        name="faces",
        source="rendered",
        options=preparing.Options(images_per_shard=2048),
    )
    assert synth_faces.CONFIGS["laptop"].image_size == 64


def batches() -> list[list[int]]:
    order = np.random.default_rng(0).permutation(IMAGES)
    return order.reshape(-1, BATCH).tolist()


def ours(path: Path, threads: int):
    """The pipeline, from files to batches on the host."""
    from hyperface_jax.data import orders, pipeline, sources

    faces = sources.open_path(str(path))

    def run() -> None:
        reader = pipeline.BatchReader(faces, image_size=SIZE, threads=threads)
        indices = orders.batch_indices(faces.labels, batch_size=BATCH, seed=0)
        count = 0
        for batch in pipeline.train_batches(
            reader,
            indices,
            start_step=0,
            stop_step=IMAGES // BATCH,
        ):
            count += int(batch["weight"].sum())
        assert count == IMAGES

    return run


def pillow(path: Path):
    """A bare loop: tfds.data_source, Pillow, stack."""
    import tensorflow_datasets as tfds
    from PIL import Image

    builder = tfds.builder_from_directory(str(path))
    source = builder.as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )

    def run() -> None:
        for rows in batches():
            images, labels = [], []
            for record in source.__getitems__(rows):
                with Image.open(io.BytesIO(record["image"])) as image:
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(record["label"])
            np.stack(images), np.asarray(labels)

    return run


def torch_opencv(path: Path, workers: int):
    """PyTorch's DataLoader with OpenCV over the same .rec, as InsightFace's loader."""
    import cv2
    import torch

    from hyperface_jax.data import insightface

    cv2.setNumThreads(1)
    faces = insightface.open_insightface(path)

    class Records(torch.utils.data.Dataset):
        def __len__(self):
            return len(faces)

        def __getitem__(self, k):
            record = faces.read([k])[0]
            image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), 1)
            image = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            return image, record["label"]

    def run() -> None:
        loader = torch.utils.data.DataLoader(
            Records(), batch_size=BATCH, shuffle=True, num_workers=workers
        )
        for _images, _labels in loader:
            pass

    return run


def decode_only(kind: str, path: Path):
    """Encoded bytes in memory -> pixels, one thread."""
    import cv2
    from PIL import Image

    from hyperface_jax.data import sources
    from hyperface_jax.data.decode import decode_image

    faces = sources.open_path(str(path))
    data = [record["image"] for record in faces.read(range(0, IMAGES, 4))]

    def run() -> None:
        for image in data:
            if kind == "ours":
                decode_image(image, SIZE)
            elif kind == "opencv":
                array = cv2.imdecode(np.frombuffer(image, np.uint8), 1)
                cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
            else:
                with Image.open(io.BytesIO(image)) as opened:
                    np.asarray(opened.convert("RGB"))

    return run, len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="/tmp/reading")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    folder = Path(arguments.out)
    if not (folder / "prepared").exists():
        draw(folder)
    rec, prepared = folder / "rec", folder / "prepared"
    runs = {
        "pipeline, array_record": (ours(prepared, 2), IMAGES),
        "pipeline, .rec": (ours(rec, 2), IMAGES),
        "Pillow over tfds.data_source": (pillow(prepared), IMAGES),
        "decode alone": decode_only("ours", rec),
        "decode alone, Pillow": decode_only("pillow", rec),
        "decode alone, OpenCV": decode_only("opencv", rec),
    }
    if arguments.torch:
        for workers in (0, 2):
            name = f"DataLoader, OpenCV, .rec, {workers} workers"
            runs[name] = (torch_opencv(rec, workers), IMAGES)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, (run, count) in runs.items():
            cpu, wall = cpu_seconds(), time.monotonic()
            run()
            cpu, wall = cpu_seconds() - cpu, time.monotonic() - wall
            found[name].append((count / cpu, count / wall))
    base = statistics.median(r for r, _ in found["Pillow over tfds.data_source"])
    print("| what | images/CPU-s | of the Pillow loop | images/s |")
    print("|---|---:|---:|---:|")
    for name, rates in found.items():
        cpu = statistics.median(rate for rate, _ in rates)
        wall = statistics.median(rate for _, rate in rates)
        print(f"| {name} | {cpu:,.0f} | {cpu / base:.2f} | {wall:,.0f} |")


if __name__ == "__main__":
    main()
