"""The runs of `side_by_side.py`: losses, what is tried for each, and what is chosen."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from hyperface_jax import config as config_lib

TUNED_ON, TESTED_ON = 8, (1, 2, 3, 4, 5, 6, 7)
FACTORS = (2.3, 1.2, 0.7)  # of the smallest scale that can separate the classes
AREA, LOW_FAR = "auc", "tar@far=1e-3"  # measures to choose a setting by


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of the table, and what is tried for it."""

    name: str
    loss: str
    norm: str = "hfn"
    margins: tuple[float, ...] = (0.0,)
    scaled: bool = True
    detach: str = "cosine"


V1, V2 = "sphereface_r_v1", "sphereface_r_v2"
LOSSES = (
    Loss("softmax", "plain_softmax", "nfn", scaled=False),
    Loss("NormFace", "normface"),
    Loss("CosFace", "cosface", margins=(0.2, 0.35, 0.1)),
    Loss("ArcFace", "arcface", margins=(0.3, 0.5, 0.15)),
    Loss("SphereFace", "sphereface", margins=(1.4, 1.7, 1.2)),
    Loss("SphereFace2", "sphereface2_c", margins=(0.2, 0.4, 0.1)),
    Loss("AdaFace", "adaface", margins=(0.2, 0.4, 0.1), detach="none"),
    Loss("MagFace", "magface", margins=(0.4, 0.8, 0.2), detach="none"),
    Loss("SphereFace-R v1, HFN", V1, "hfn", (1.4, 1.7, 1.2)),
    Loss("SphereFace-R v2, HFN", V2, "hfn", (1.4, 1.7, 1.2)),
    Loss("SphereFace-R v1, SFN", V1, "sfn", (1.4, 1.7, 1.2)),
    Loss("SphereFace-R v2, SFN", V2, "sfn", (1.4, 1.7, 1.2)),
    Loss("SphereFace-R v1, NFN", V1, "nfn", (1.4, 1.7, 1.2), scaled=False),
    Loss("SphereFace-R v2, NFN", V2, "nfn", (1.4, 1.7, 1.2), scaled=False),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a loss with its settings, without one fold."""

    loss: Loss
    margin: float
    factor: float
    fold: int
    detach: str = ""  # "": as the loss was published
    strength: float = 0.01
    seed: int = 0
    epochs: float = 12.0
    started: bool = False  # from the network of --start

    @property
    def key(self) -> str:
        name = self.loss.name.lower().replace(" ", "_").replace(",", "")
        key = f"{name}_m{self.margin:g}_x{self.factor:g}_fold{self.fold}"
        key += f"_{self.detach}" if self.detach else ""
        key += "" if self.strength == 0.01 else f"_t{self.strength:g}"
        key += "" if self.epochs == 12 else f"_{self.epochs:g}epochs"
        key += "_started" if self.started else ""
        return key + (f"_seed{self.seed}" if self.seed else "")


def config_of(run: Run, lfw: str, pairs: str):
    """A small network: a run is some minutes of one core."""
    c = config_lib.default_config()
    c.seed = run.seed
    c.data.name, c.data.path, c.data.pairs_path = "faces", lfw, pairs
    c.data.fold, c.data.min_images = run.fold, 2
    c.data.image_size = 48
    c.data.cache = "ram"
    c.data.threads = 1
    c.augment.shift, c.augment.scale, c.augment.rotate = 0.05, 0.08, 8.0
    c.augment.erase, c.augment.grey = 0.3, 0.2
    c.backbone.name, c.backbone.width = "sfnet10_bn", 16
    c.backbone.embedding_dim, c.backbone.dropout = 128, 0.2
    c.head.class_multiple = 64
    c.head.loss, c.head.norm = run.loss.loss, run.loss.norm
    c.head.margin, c.head.detach = run.margin, run.detach or run.loss.detach
    if run.loss.loss == "magface":  # its margins keep their proportion, .45 to .8
        c.head.magface.lower_margin = 0.45 / 0.8 * run.margin
    c.head.scale_factor, c.head.penalty_strength = run.factor, run.strength
    c.head.loss_weight = 30.0
    c.optimizer.backbone.weight_decay = 1e-3
    c.train.batch_size, c.train.epochs = 64, run.epochs
    c.train.ema_decay = 0.995
    c.learning_rate.schedule, c.learning_rate.peak = "cosine", 0.07
    c.learning_rate.warmup_steps = 100
    c.log.tensorboard = False
    if run.loss.norm != "hfn" and run.margin:
        c.head.margin_schedule = "linear"
        c.head.margin_start = 1.0
        c.head.margin_steps = (round(run.epochs * 5500 / 64 / 2),)
    if run.loss.norm == "nfn":
        # No s divides its loss: the weight of NormFace's lw/s, whose s is about 25.
        c.head.loss_weight = 30.0 / 25.0
    return c.lock()


def value_of(out: Path, run: Run, measure: str = AREA) -> float:
    """Of a finished run; a diverged one is below all others."""
    facts = json.loads((out / f"{run.key}.json").read_text())
    return facts["measures"].get(measure, 0)


def best_of(out: Path, loss: Loss, measure: str = AREA) -> Run | None:
    """The best of what `tune` tried, or None where it has not finished."""
    candidates = [
        r
        for r in list(margin_runs(loss)) + list(factor_runs(out, loss))
        if (out / f"{r.key}.json").exists()
    ]
    wanted = len(loss.margins) + (len(FACTORS) - 1) * loss.scaled
    if len(candidates) < wanted:
        return None
    return max(candidates, key=lambda r: value_of(out, r, measure))


def margin_runs(loss: Loss) -> Iterator[Run]:
    return (Run(loss, m, FACTORS[0], TUNED_ON) for m in loss.margins)


def factor_runs(out: Path, loss: Loss) -> Iterator[Run]:
    """The other scales, with the best margin."""
    runs = list(margin_runs(loss))
    if loss.scaled and all((out / f"{r.key}.json").exists() for r in runs):
        best = max(runs, key=lambda r: value_of(out, r))
        for factor in FACTORS[1:]:
            yield dataclasses.replace(best, factor=factor)


def ablations(out: Path) -> Iterator[Run]:
    """The whole gradient for HFN, other strengths for SFN."""
    for loss in LOSSES:
        best = best_of(out, loss)
        if best is None or not loss.loss.startswith("sphereface"):
            continue
        if loss.norm == "hfn":
            yield dataclasses.replace(best, detach="none")
        if loss.norm == "sfn":
            for strength in (0.001, 0.1):
                yield dataclasses.replace(best, strength=strength)


def tests(out: Path, folds: tuple[int, ...], measure: str) -> Iterator[Run]:
    """Fold by fold, so that finished folds hold all losses."""
    for fold in folds:
        for loss in LOSSES:
            best = best_of(out, loss, measure)
            if best is not None:
                yield dataclasses.replace(best, fold=fold)


def longer(out: Path, folds: tuple[int, ...], start: str) -> Iterator[Run]:
    """Twice the budget; from --start, too, where it is given."""
    best = best_of(out, next(x for x in LOSSES if x.loss == V2 and x.norm == "hfn"))
    if best is not None:
        for fold in (*folds, TUNED_ON):
            for started in (False, True)[: 2 if start else 1]:
                yield dataclasses.replace(best, fold=fold, epochs=24.0, started=started)
