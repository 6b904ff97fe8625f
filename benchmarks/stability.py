"""Where does training diverge? Every margin of the family, on and off its limits.

    python benchmarks/stability.py --data synth --out runs/stability
    python benchmarks/stability.py --data lfw --lfw lfw.tar --out runs/stability
    python benchmarks/stability_report.py runs/stability/synth_plain.jsonl

Trains {SphereFace 2017 with annealing, SphereFace (v0), SphereFace-R v1, v2} x
{gradient detached or not} x {NFN, HFN, SFN} x m x 3 seeds with one budget, and NormFace
beside them. SphereFace 2017 without annealing *is* v0, NFN, not detached, at a whole m.

- s is 2.3 times the smallest that can separate the classes, at most 128 (cells at the
  cap are marked). Every loss is multiplied by lw/s, NFN's too (with the s that HFN
  would have): no cell fails by the size of its steps alone. No warm-up of m.
- Embeddings are multiplied by a constant that makes their mean length s at the start:
  nothing changes for HFN, while NFN and SFN, whose gradient grows with the length,
  begin with steps of HFN's size.
- The annealing λ(step) runs through its published 28 000 steps in this budget.
- A run fails if a loss is not finite, or if at the end fewer training images lie
  nearest to their own prototype (plain cosine) than half of NormFace's, same seed.

A line of JSON a run in <out>/<data>_<network>.jsonl, with versions and commit; runs
that are there are not repeated. `stability_report.py` makes tables and pictures.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hyperface_jax import (
    augment,
    classifier,
    geometry,
    margins,
    optimizer,
    schedules,
    workdir,
)
from hyperface_jax import config as config_lib
from hyperface_jax.backbones import Backbone, create_backbone
from hyperface_jax.data import orders, pipeline
from hyperface_jax.evaluation.forward import make_embed_fn
from hyperface_jax.training import experiment, train_state, train_step

VARIANTS = ("sphereface", "sphereface_r_v1", "sphereface_r_v2")
MARGINS = (1.2, 1.5, 2.0, 3.0, 4.0)
SEEDS = (0, 1, 2)
LOSS_WEIGHT, SCALE_FACTOR, LARGEST_SCALE = 30.0, 2.3, 128.0
PUBLISHED_STEPS = 28_000  # of SphereFace 2017, during which λ falls to 5


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a compiled step is made for."""

    loss: str
    norm: str
    detach: str
    annealing: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run."""

    kind: Kind
    m: float
    seed: int

    @property
    def key(self) -> str:
        k = self.kind
        name = f"{k.loss}{'_annealed' if k.annealing else ''}"
        return f"{name} {k.norm} {k.detach} m={self.m:g} seed={self.seed}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """The same for every run of a network."""

    backbone: str
    learning_rate: float
    width: int = 16
    embedding_dim: int = 64
    image_size: int = 32
    batch_size: int = 64
    steps: int = 500


NETWORKS = {
    # The layout of the published recipe, without BatchNorm: the largest rate (of .005,
    # .02, .05, .1) at which NormFace trains.
    "plain": Budget("sfnet4_deprecated", 0.005),
    "bn": Budget("sfnet4_bn", 0.1),
}


def cells(seeds: tuple[int, ...]) -> Iterator[Cell]:
    """All runs, NormFace first: the others are measured by it."""
    # NormFace also without hard normalisation: what fails there fails without a margin.
    kinds = [
        (Kind("normface", norm, "cosine"), (0.0,)) for norm in ("hfn", "nfn", "sfn")
    ]
    kinds += [
        (Kind(loss, norm, detach), MARGINS)
        for norm in ("hfn", "nfn", "sfn")
        for loss in VARIANTS
        for detach in ("none", "cosine")
    ]
    kinds.append((Kind("sphereface_2017", "nfn", "none", True), (2.0, 3.0, 4.0)))
    # By kind: one compilation serves all its margins and seeds.
    return (Cell(kind, m, seed) for kind, ms in kinds for m in ms for seed in seeds)


def scale_of(cell: Cell, num_classes: int) -> tuple[float, bool]:
    """s, and whether it is at the cap."""
    least = margins.minimum_scale(
        margins.get_margin(cell.kind.loss), cell.m, num_classes
    )
    wanted = SCALE_FACTOR * least
    return min(wanted, LARGEST_SCALE), wanted > LARGEST_SCALE


@dataclasses.dataclass(frozen=True)
class _Stretched(classifier.Head):
    """A head that sees embeddings times `gain`."""

    gain: jax.Array | float = 1.0

    def __call__(self, embeddings, *others):
        return super().__call__(self.gain * embeddings, *others)


class Trainer:
    """Trains cells on images that are held in memory; compiles once a kind."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, budget: Budget):
        self.images, self.labels, self.budget = images, labels, budget
        self.num_classes = int(labels.max()) + 1
        self.commit = workdir.commit()
        self.backbone: Backbone = create_backbone(
            budget.backbone, width=budget.width, embedding_dim=budget.embedding_dim
        )
        self.embed = make_embed_fn(self.backbone, flip=False)
        self._rate = schedules.learning_rate(
            "cosine", peak=budget.learning_rate, total_steps=budget.steps
        )
        part = optimizer.PartSettings(weight_decay=5e-4)
        self._tx = optimizer.make_optimizer(
            "sgd", learning_rate=self._rate, backbone=part, prototypes=part
        )

    def run(self, cell: Cell) -> dict:
        """Trains a cell and tells what happened."""
        b = self.budget
        started = time.monotonic()
        scale, capped = scale_of(cell, self.num_classes)
        step, state = self._step(cell.kind), self._init(cell.seed)
        rows = orders.batch_indices(
            self.labels, batch_size=b.batch_size, seed=cell.seed
        )
        m, s = jnp.float32(cell.m), jnp.float32(scale)
        gain = s / self._mean_length(state)
        found = []
        for k in range(b.steps):
            batch = rows[k]
            images, labels = self.images[batch], self.labels[batch]
            state, metrics = step(state, images, labels, m, s, gain)
            found.append(metrics)
            if k % 50 == 49 and int(state.nonfinite_step) >= 0:
                break
        curves = {
            name: np.array([float(row[name]) for row in found]) for name in found[0]
        }
        return {
            "cell": cell.key,
            **dataclasses.asdict(cell.kind),
            "m": cell.m,
            "seed": cell.seed,
            "scale": round(scale, 2),
            "capped": capped,
            "classes": self.num_classes,
            "budget": dataclasses.asdict(b),
            "commit": self.commit,
            "versions": workdir.versions(),
            "accuracy": self._accuracy(state),
            "nonfinite_step": int(state.nonfinite_step),
            "seconds": round(time.monotonic() - started, 1),
            "curves": {
                name: [float(f"{x:.4g}") for x in _thin(values)]
                for name, values in curves.items()
            },
            "quantiles": {
                name: _quantiles(curves[name])
                for name in ("grad_norm_backbone", "grad_norm_prototypes")
            },
        }

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _init_fn(self) -> Callable:
        return jax.jit(
            functools.partial(
                train_state.init_train_state,
                backbone=self.backbone,
                image_size=self.budget.image_size,
                head=classifier.Head(
                    "normface", self.num_classes, schedules.constant(0.0)
                ),
                class_multiple=1,
                prototype_init="xavier_normal",
                unit_prototypes=True,
                tx=self._tx,
                ema=False,
            ),
            static_argnames="seed",
        )

    def _init(self, seed: int):
        return self._init_fn()(seed=seed)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _step(self, kind: Kind) -> Callable:
        augmented = augment.make_augment(augment.AugmentSettings(flip=0.5))
        annealing = schedules.sphereface_annealing() if kind.annealing else None
        stretch = PUBLISHED_STEPS / self.budget.steps

        def step(state, images, labels, m, s, gain):
            nfn = kind.norm == "nfn"
            head = _Stretched(
                kind.loss,
                gain=gain,
                num_classes=self.num_classes,
                norm=kind.norm,
                scale=s,
                margin=lambda _: m,
                annealing=annealing and (lambda k: annealing(k * stretch)),
                detach=kind.detach,
                loss_weight=LOSS_WEIGHT / s if nfn else LOSS_WEIGHT,
            )
            update = train_step.make_train_step(
                backbone=self.backbone,
                augment=augmented,
                head=head,
                tx=self._tx,
                learning_rate=self._rate,
                margin=lambda _: m,
            )
            weight = jnp.ones(labels.shape, jnp.float32)
            batch = {"image": images, "label": labels, "weight": weight}
            state, metrics = update(state, batch)
            names = ("loss", "accuracy", "target_angle", "magnitude_mean")
            names += ("grad_norm_backbone", "grad_norm_prototypes")
            return state, {name: metrics[name] for name in names}

        return jax.jit(step, donate_argnums=0)

    def _mean_length(self, state) -> jax.Array:
        """Of untrained embeddings, with the statistics of their own batch."""
        images = self.images[:: max(len(self.images) // 256, 1)][:256]
        embeddings, _ = self.backbone.apply(
            state.params["backbone"],
            state.batch_stats,
            augment.normalize(jnp.asarray(images)),
            train=True,
        )
        return jnp.mean(geometry.magnitude(embeddings))

    def _accuracy(self, state, most: int = 2048) -> float:
        """Share of training images whose own prototype is the nearest."""
        chosen = np.random.default_rng(0).permutation(len(self.labels))[:most]
        right = []
        for part in np.split(chosen, range(256, len(chosen), 256)):
            padded = np.resize(part, 256)
            views = self.embed(
                state.params["backbone"], state.batch_stats, self.images[padded]
            )
            cos = geometry.cosines(
                geometry.l2_normalize(views[:, 0]), state.params["prototypes"]
            )
            nearest = np.asarray(jnp.argmax(cos, axis=1))
            right.append((nearest == self.labels[padded])[: len(part)])
        return float(np.concatenate(right).mean())


def _thin(values: np.ndarray, points: int = 120) -> np.ndarray:
    """Means of equal stretches of a curve."""
    edges = np.linspace(0, len(values), min(points, len(values)) + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def _quantiles(values: np.ndarray) -> dict[str, list[float]]:
    """Median, 90 % and largest of each third of the run."""
    thirds = [np.quantile(part, (0.5, 0.9, 1.0)) for part in np.array_split(values, 3)]
    names = ("first", "second", "last")
    return {
        n: [float(f"{q:.4g}") for q in t] for n, t in zip(names, thirds, strict=True)
    }


def load(data: str, lfw: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [N, S, S, 3] and labels, in memory.

    Of synth_faces the first 100 training people, 16 images each; of LFW the people with
    10 pictures or more, at most 20 of each.
    """
    c = config_lib.default_config()
    if data == "lfw":
        c.data.name, c.data.path, c.data.dev_fraction = "faces", lfw, 0.0
        c.data.min_images, c.data.max_images = 10, 20
    faces, _ = experiment.open_data(c.lock())
    if data == "synth":
        faces = faces.select_people(np.arange(100), "100 people")
    reader = pipeline.BatchReader(faces, image_size=image_size, threads=2)
    batch = reader(range(len(faces)))
    kept = batch["weight"] > 0
    return batch["image"][kept], batch["label"][kept].astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=["synth", "lfw"], default="synth")
    parser.add_argument("--lfw", default="", help="folder or tar of LFW")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--network", choices=list(NETWORKS), default="plain")
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"{a.data}_{a.network}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = {json.loads(line)["cell"] for line in lines}
    budget = dataclasses.replace(NETWORKS[a.network], steps=a.steps)
    trainer = Trainer(*load(a.data, a.lfw, budget.image_size), budget)
    todo = [c for c in cells(tuple(a.seeds)) if a.only in c.key]
    todo = [c for c in todo if c.key not in known]
    for number, cell in enumerate(todo, start=1):
        row = trainer.run(cell)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{number}/{len(todo)} {cell.key}: accuracy {row['accuracy']:.3f}, "
            f"{row['seconds']} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
