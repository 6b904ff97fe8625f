"""IJB-C at full size with random features: our functions and the peers' loops.

    python benchmarks/ijbc.py [--small] [--skip-peers]

469 375 images with 512 numbers each (a memory map), 23 124 templates, 15 658 489 pairs
of which 19 557 genuine, 19 593 probes and 3 531 gallery templates, all from a seed, in
a temporary folder with a pair file in IJB's format. Ours and the peers' each run in a
process of their own, which prints seconds a stage and its peak memory.

"The peers' way" restates what InsightFace's scripts do, stage by stage: a Python loop
over templates and media, products of gathered pairs in batches, scikit-learn's
roc_curve, a full similarity matrix sorted whole and loops over probes. pandas, with
which they read the pair file, is not needed here: the reading is NumPy's loadtxt.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FULL = {
    "images": 469_375,
    "templates": 23_124,
    "pairs": 15_658_489,
    "genuine": 19_557,
    "gallery": 3_531,
    "probes": 19_593,
    "dims": 512,
}
SMALL = {
    "images": 20_000,
    "templates": 1_200,
    "pairs": 300_000,
    "genuine": 2_000,
    "gallery": 200,
    "probes": 1_000,
    "dims": 64,
}
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def generate(folder: Path, size: dict[str, int]) -> None:
    """Templates 0..gallery-1 are the galleries, the last ones are the probes."""
    need = 4 * size["images"] * size["dims"] + 30 * size["pairs"]
    if shutil.disk_usage(folder).free < 2 * need:
        raise SystemExit(f"{folder}: needs {2 * need / 1e9:.1f} GB free")
    rng = np.random.default_rng(0)
    gallery, templates = size["gallery"], size["templates"]
    subject = np.concatenate(
        [np.arange(gallery), rng.integers(0, gallery, templates - gallery)]
    )
    template = np.sort(
        np.append(
            np.arange(templates), rng.integers(0, templates, size["images"] - templates)
        )
    )
    media = rng.integers(0, 8, size["images"])
    centre = rng.standard_normal((gallery, size["dims"]), np.float32)
    shape = (size["images"], 1, size["dims"])
    features = np.memmap(folder / "features.f32", np.float32, mode="w+", shape=shape)
    for start in range(0, size["images"], 8192):
        here = subject[template[start : start + 8192]]
        noise = rng.standard_normal((len(here), size["dims"]), np.float32)
        features[start : start + 8192, 0] = centre[here] + 12 * noise
    features.flush()
    score = rng.uniform(0.5, 1, size["images"]).astype(np.float32)
    np.savez(
        folder / "images.npz",
        template=template,
        media=media,
        score=score,
        subject=subject,
    )
    write_pairs(folder / "ijbc_template_pair_label.txt", size, subject, rng)


def write_pairs(file: Path, size, subject, rng) -> None:
    order = np.argsort(subject, kind="stable")
    same = np.flatnonzero(np.diff(subject[order]) == 0)
    chosen = rng.choice(same, size["genuine"], replace=len(same) < size["genuine"])
    genuine = np.stack([order[chosen], order[chosen + 1]], axis=1)
    impostor = rng.integers(0, size["templates"], (size["pairs"] - size["genuine"], 2))
    clash = subject[impostor[:, 0]] == subject[impostor[:, 1]]
    while clash.any():
        impostor[clash, 1] = rng.integers(0, size["templates"], clash.sum())
        clash = subject[impostor[:, 0]] == subject[impostor[:, 1]]
    pairs = np.concatenate([genuine, impostor])
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    label = subject[pairs[:, 0]] == subject[pairs[:, 1]]
    with file.open("w") as stream:
        for start in range(0, len(pairs), 1 << 18):
            part = slice(start, start + (1 << 18))
            columns = (*pairs[part].T.tolist(), label[part].astype(int).tolist())
            rows = zip(*columns, strict=True)
            stream.writelines(f"{a} {b} {c}\n" for a, b, c in rows)


class Stages:
    """Seconds of each stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def load(folder: Path, size):
    images = np.load(folder / "images.npz")
    shape = (size["images"], 1, size["dims"])
    features = np.memmap(folder / "features.f32", np.float32, mode="r", shape=shape)
    np.add.reduce(features[::8], axis=None)  # into the page cache
    gallery = np.arange(size["gallery"])
    probes = np.arange(size["templates"] - size["probes"], size["templates"])
    columns = {name: images[name] for name in images.files}
    return features, columns, np.array_split(gallery, 2), probes


def ours(folder: Path, size) -> tuple[Stages, dict]:
    from etils import epath

    from hyperface_jax.evaluation import identification as ident
    from hyperface_jax.evaluation import ijb, similarity, templates, verification

    features, images, galleries, probes = load(folder, size)
    subject = images["subject"]
    stages = Stages()
    file = epath.Path(folder) / "ijbc_template_pair_label.txt"
    first, second, is_genuine = ijb.read_pairs(file, np.arange(size["templates"]))
    stages.done("pair file")
    vectors, _ = templates.pool_templates(
        features,
        images["template"],
        images["media"],
        images["score"],
        templates.Pooling(flip=False),
    )
    stages.done("templates")
    scores = similarity.pair_scores(vectors, first, second)
    stages.done("pair scores")
    metrics = verification.verify(scores, is_genuine, fars=FARS, nearest=True)
    stages.done("1:1 metrics")
    enrolled = [(vectors[rows], subject[rows]) for rows in galleries]
    nist = ident.tpir_at_fpir_nist(enrolled, vectors[probes], subject[probes])
    pairs = ident.tpir_at_fpir_pairs(enrolled, vectors[probes], subject[probes])
    stages.done("1:N")
    return stages, {
        "tar": [metrics.get(f"nearest_tar@far=1e-{k}", 0) for k in range(6, 0, -1)],
        "nist": [nist[k] for k in ("tpir@fpir=1e-2", "tpir@fpir=1e-1", "rank1")],
        "pairs": [pairs[k] for k in ("tpir@fpir=1e-2", "tpir@fpir=1e-1", "rank1")],
    }


def peers(folder: Path, size) -> tuple[Stages, dict]:
    from sklearn.metrics import roc_curve

    features, images, galleries, probes = load(folder, size)
    subject = images["subject"]
    stages = Stages()
    file = folder / "ijbc_template_pair_label.txt"
    table = np.loadtxt(file, dtype=np.int64)
    stages.done("pair file")
    vectors, ids = looped_templates(
        np.array(features[:, 0]) * images["score"][:, None],
        images["template"],
        images["media"],
    )
    stages.done("templates")
    scores = looped_scores(vectors, ids, table)
    stages.done("pair scores")
    far, tar, _ = roc_curve(table[:, 2], scores)
    far, tar = np.flipud(far), np.flipud(tar)
    nearest = []
    for wanted in FARS:
        _, index = min(zip(abs(far - wanted), range(len(far)), strict=True))
        nearest.append(float(tar[index]))
    stages.done("1:1 metrics")
    gallery = np.concatenate(galleries)
    nist = looped_nist(vectors, subject, galleries, probes)
    pairs = looped_pairs(vectors, subject, gallery, probes)
    stages.done("1:N")
    return stages, {"tar": nearest, "nist": nist, "pairs": pairs}


def looped_templates(images, template, media):
    ids = np.unique(template)
    result = np.zeros((len(ids), images.shape[1]))
    for row, name in enumerate(ids):
        (here,) = np.where(template == name)
        means = []
        for medium in np.unique(media[here]):
            chosen = here[media[here] == medium]
            means.append(np.mean(images[chosen], axis=0))
        result[row] = np.sum(means, axis=0)
    return result / np.linalg.norm(result, axis=1, keepdims=True), ids


def looped_scores(vectors, ids, table, batch: int = 100_000):
    row_of = np.zeros(ids.max() + 1, int)
    row_of[ids] = np.arange(len(ids))
    scores = np.zeros(len(table))
    for start in range(0, len(table), batch):
        part = table[start : start + batch]
        first, second = vectors[row_of[part[:, 0]]], vectors[row_of[part[:, 1]]]
        scores[start : start + batch] = np.sum(first * second, axis=-1)
    return scores


def looped_nist(vectors, subject, galleries, probes, fars=(0.01, 0.1)):
    tpir, hits = np.zeros(len(fars)), 0
    for rows in galleries:
        similarity = vectors[probes] @ vectors[rows].T
        names = subject[rows]
        mate, others, strangers, right = [], [], [], []
        for scores, name in zip(similarity, subject[probes], strict=True):
            if name in names:
                ordered = np.argsort(scores)[::-1]
                place = np.argwhere(names == name)[0, 0]
                right.append(place in ordered[:1])
                mate.append(scores[place])
                others.append(scores[names != name])
            else:
                strangers.append(scores)
        hits += sum(right)
        mate = np.array(mate)
        first = mate > np.array(others).max(axis=1)
        alarms = np.sort(np.array(strangers).max(axis=1))[::-1]
        for i, far in enumerate(fars):
            threshold = alarms[max(int(len(alarms) * far) - 1, 0)]
            tpir[i] += np.mean(first & (mate > threshold)) / len(galleries)
    return [*tpir.tolist(), float(hits / len(probes))]


def looped_pairs(vectors, subject, gallery, probes, fars=(0.01, 0.1)):
    similarity = vectors[probes] @ vectors[gallery].T
    ordered = np.argsort(-similarity)
    place = {name: i for i, name in enumerate(subject[gallery])}
    hits, mate = 0, []
    for row, name in enumerate(subject[probes]):
        hits += ordered[row, 0] == place[name]
        mate.append(similarity[row, place[name]])
        similarity[row, place[name]] = -2
    wanted = [math.ceil(len(probes) * far) for far in fars]
    others = np.sort(similarity[similarity > -2])[::-1]
    tpir = [float(np.mean(np.array(mate) > others[k - 1])) for k in wanted]
    return [*tpir, float(hits / len(probes))]


def run(side: str, folder: Path, small: bool) -> dict:
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    command += ["--small"] * small
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--side", choices=("ours", "peers"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    if arguments.side:
        side = ours if arguments.side == "ours" else peers
        stages, metrics = side(arguments.folder, size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"s": stages.seconds, "metrics": metrics, "gib": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        generate(Path(folder), size)
        print(f"generated in {time.perf_counter() - started:.0f} s")
        sides = ["ours"] + ["peers"] * (not arguments.skip_peers)
        found = {side: run(side, Path(folder), arguments.small) for side in sides}
    report(found)


def report(found: dict[str, dict]) -> None:
    sides = list(found)
    print(f"{'seconds':14}" + "".join(f"{side:>10}" for side in sides))
    for stage in found["ours"]["s"]:
        print(f"{stage:14}" + "".join(f"{found[s]['s'][stage]:10.2f}" for s in sides))
    total = {side: sum(found[side]["s"].values()) for side in sides}
    print(f"{'total':14}" + "".join(f"{total[side]:10.2f}" for side in sides))
    print(f"{'peak GiB':14}" + "".join(f"{found[s]['gib']:10.2f}" for s in sides))
    for side in sides:
        print(side, json.dumps(found[side]["metrics"]))
    if "peers" in found:
        print(f"ratio {total['ours'] / total['peers']:.3f}")


if __name__ == "__main__":
    main()
