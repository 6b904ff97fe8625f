"""From a config to the objects of a run: data, mesh, network, loss, optimizer, step.

The only place that turns config keys into plain arguments. Training, evaluation and
notebooks all start with `create_experiment`.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hyperface_jax import (
    augment,
    class_vectors,
    hosts,
    optimizer,
    sampling,
    schedules,
    sharding,
)
from hyperface_jax import config as config_lib
from hyperface_jax.backbones import Backbone, create_backbone
from hyperface_jax.catalogue import PLAIN_SOFTMAX
from hyperface_jax.config import Config
from hyperface_jax.data import caching, orders, pipeline, splits
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.evaluation import test_sets
from hyperface_jax.evaluation.embedded import check_pooling
from hyperface_jax.evaluation.forward import EmbedFn, make_embed_fn
from hyperface_jax.evaluation.templates import parse_pooling
from hyperface_jax.training import train_state, train_step
from hyperface_jax.training.configured_head import create_head
from hyperface_jax.training.train_state import TrainState

log = logging.getLogger(__name__)

StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Experiment:
    """A run, ready to start.

    Attributes:
      config: resolved and locked.
      train_set: people to train on.
      evaluation_sets: other people; may be none.
      mesh: all devices.
      backbone: the network.
      step: jitted (state, batch) -> (state, metrics); donates the state.
      embed: jitted (params, batch_stats, uint8 images) -> embeddings.
      create_state: () -> a fresh, sharded state.
      margin: step -> m.
    """

    config: Config
    train_set: FaceSet
    evaluation_sets: tuple[EvaluationSet, ...]
    mesh: Mesh
    backbone: Backbone
    step: StepFn
    embed: EmbedFn
    create_state: Callable[[], TrainState]
    margin: schedules.Schedule

    def batches(
        self, reader: pipeline.BatchReader, start_step: int
    ) -> Iterator[pipeline.Batch]:
        """Batches of this process, from `start_step` to the end of the run."""
        c = self.config
        return pipeline.train_batches(
            reader,
            orders.batch_indices(
                self.train_set.labels,
                batch_size=c.train.batch_size,
                seed=c.seed,
                sampler=c.data.sampler,
                by_lanes=c.data.cache == "ram",
                **hosts.place(),
            ),
            start_step=start_step,
            stop_step=c.train.steps,
            prefetch=c.data.prefetch,
        )

    def reader(self) -> pipeline.BatchReader:
        """Decodes batches of the training set; with data.cache=ram from memory."""
        data, faces = self.config.data, self.train_set
        if data.cache == "ram":
            batch_size, seed = self.config.train.batch_size, self.config.seed
            lanes = orders.LaneBatches(
                len(faces), batch_size, seed=seed, **hosts.place()
            )
            mine = faces.rows[lanes.examples_of_host()]
            source = caching.RamSource(faces.source, np.sort(mine))
            faces = dataclasses.replace(faces, source=source)
        return pipeline.BatchReader(
            faces, image_size=data.image_size, threads=data.threads
        )


def open_data(config: Config) -> tuple[FaceSet, tuple[EvaluationSet, ...]]:
    """Opens what the config names and splits it by people."""
    d = config.data
    train, tests = splits.train_and_test(
        d.name,
        config=d.config,
        path=d.path,
        pairs_path=d.pairs_path,
        data_dir=d.data_dir,
        copy_to=(d.cache_dir or caching.default_cache_dir())
        if d.cache == "disk"
        else "",
        exclude=d.exclude,
        fold=d.fold,
        dev_fraction=d.dev_fraction,
        min_images=d.min_images,
        max_images=d.max_images,
        split_identities=d.split_identities,
        label_noise=d.label_noise,
        seed=config.seed,
    )
    more = test_sets.open_all(config.eval.sets, [test.name for test in tests])
    for test in more:  # not after days of training
        check_pooling(test, parse_pooling(config.eval.pooling), config.eval.flip)
    return train, (*tests, *more)


def create_experiment(
    config: Config, devices: Sequence[Any] | None = None
) -> Experiment:
    """Builds everything that a validated config names; allocates no parameters.

    Args:
      config: validated.
      devices: default: all that jax finds, on all hosts.
    """
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    mesh = sharding.make_mesh(config.mesh.model, devices)
    sharding.check_divisible("train.batch_size", config.train.batch_size, mesh)
    sharding.check_divisible(
        "train.batch_size / train.accumulate",
        config.train.batch_size // config.train.accumulate,
        mesh,
    )
    train_set, evaluation_sets = hosts.first_host_first(lambda: open_data(config))
    if train_set.num_classes < 2:
        raise ValueError(
            f"{train_set.name}: {train_set.num_classes} person to train on, expected "
            "at least 2 (people in tested pairs and data.dev_fraction are held out)"
        )
    if not evaluation_sets:
        log.warning(
            "%s has no test set: nothing will be evaluated. Give data.pairs_path "
            "(their people are then tested and not trained on) or eval.sets",
            train_set.name,
        )
    c = config_lib.resolve(
        config, num_classes=train_set.num_classes, num_examples=len(train_set)
    )
    backbone = create_backbone(c.backbone.name, **_without(c.backbone, "name"))
    margin = config_lib.margin_schedule(c)
    learning_rate = schedules.learning_rate(
        c.learning_rate.schedule,
        total_steps=c.train.steps,
        **_without(c.learning_rate, "schedule", "milestone_epochs"),
    )
    tx = optimizer.make_optimizer(
        learning_rate=learning_rate,
        backbone=optimizer.PartSettings(**c.optimizer.backbone),
        prototypes=optimizer.PartSettings(**c.optimizer.prototypes),
        frozen=backbone.frozen,
        **_without(c.optimizer, "backbone", "prototypes"),
    )
    head = create_head(c, train_set.num_classes, margin, mesh)
    step = train_step.make_train_step(
        backbone=backbone,
        augment=augment.make_augment(augment.AugmentSettings(**c.augment)),
        head=head,
        tx=tx,
        learning_rate=learning_rate,
        margin=margin,
        prototype_norm=_prototype_norm(c),
        sampler=_sampler(c, train_set.num_classes, mesh),
        accumulate=c.train.accumulate,
        ema_decay=c.train.ema_decay,
    )
    init = functools.partial(
        train_state.init_train_state,
        backbone=backbone,
        head=head,
        image_size=c.data.image_size,
        class_multiple=c.head.class_multiple,
        prototype_init=c.head.prototype_init,
        unit_prototypes=_prototype_norm(c) == "project",
        tx=tx,
        seed=c.seed,
        ema=c.train.ema_decay > 0,
    )
    create_state, jitted_step = sharding.jit_on_mesh(
        init, step, mesh, class_axes=sharding.class_axes(c.mesh.classes)
    )
    return Experiment(
        config=c,
        train_set=train_set,
        evaluation_sets=evaluation_sets,
        mesh=mesh,
        backbone=backbone,
        step=jitted_step,
        embed=make_embed_fn(backbone, flip=c.eval.flip, jitter=c.eval.jitter),
        create_state=create_state,
        margin=margin,
    )


def _sampler(c: Config, num_classes: int, mesh: Mesh) -> sampling.Sampler | None:
    if c.head.sample_rate == 1:
        return None
    return sampling.make_sampler(
        c.head.sample_rate,
        rows=class_vectors.padded_classes(num_classes, c.head.class_multiple),
        num_classes=num_classes,
        batch_size=c.train.batch_size,
        mesh=mesh,
        class_axes=sharding.class_axes(c.mesh.classes),
    )


def _prototype_norm(c: Config) -> str:
    """Plain softmax has weights of any length: nothing puts them on the sphere."""
    plain = c.head.loss == PLAIN_SOFTMAX
    return "differentiate" if plain else c.head.prototype_norm


def _without(section: Config, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}
