"""Every key with its default and its meaning, and the string argument of a file."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from hyperface_jax import family
from hyperface_jax.evaluation import protocols

Config = Any
"""A ConfigDict: its keys are dynamic, which no type checker can follow."""


def section(values: dict[str, Any] | None = None) -> Config:
    """A ConfigDict with the given values."""
    return ConfigDict(values or {})


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as {"head.margin": value}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


PROTOCOLS = tuple(protocols.PROTOCOLS)


def expected(value: object, legal: Iterable[str]) -> str:
    """What an error says of an unknown word: all legal ones, or of many the nearest."""
    words = list(legal)
    near = difflib.get_close_matches(str(value), words, n=4, cutoff=0.5)
    if len(words) <= 16 or not near:
        return f"expected one of {', '.join(words)}"
    return f"expected one of {len(words)} words, nearest are {', '.join(near)}"


def default_config() -> Config:
    """SphereFace-R v2 with hard feature normalisation on synth_faces; unlocked."""
    c: Config = section()
    c.seed = 0  # of initialisation, order of the data, augmentation and dropout
    c.source = ""  # where these hyperparameters are published; "": ours
    c.init_from = ""  # model folder (of convert) or workdir to start from; "": random
    c.compilation_cache = ""  # folder that keeps compiled programs; "": none

    c.data = section()
    c.data.name = "synth_faces"  # see datasets.DATASETS
    c.data.config = ""  # synth_faces: laptop, tiny, large; else prepare's --config
    c.data.path = ""  # your own faces, see sources.open_path; several: commas between
    c.data.pairs_path = ""  # verification pairs of them in LFW's format
    c.data.fold = 0  # test on the people of this fold's pairs, from 1; 0: on all pairs'
    c.data.dev_fraction = 0.1  # training people held out to choose a threshold
    c.data.data_dir = ""  # prepared datasets; "": $TFDS_DATA_DIR, ~/tensorflow_datasets
    c.data.image_size = 64  # side in pixels, divisible by 16
    c.data.cache = "none"  # none | disk | ram: a host reads its part into memory once
    c.data.cache_dir = ""  # of disk; "": $HYPERFACE_CACHE_DIR, ~/.cache/hyperface_jax
    c.data.exclude = ""  # lists of people and images to leave out, see prepare
    c.data.min_images = 0  # people with fewer are not trained on
    c.data.max_images = 0  # at most so many of a person; 0: all
    c.data.split_identities = 0.0  # share of the people who get two labels
    c.data.label_noise = 0.0  # share of the images whose label is drawn anew
    c.data.sampler = "uniform"  # uniform | sqrt | identity: how often a person is drawn
    c.data.threads = 2  # that decode
    c.data.prefetch = 3  # batches decoded ahead

    c.augment = section()  # see augment.AugmentSettings
    c.augment.flip = 0.5  # probability
    c.augment.shift = 0.0  # largest, share of the side
    c.augment.scale = 0.0  # largest, relative
    c.augment.rotate = 0.0  # largest, degrees
    c.augment.erase = 0.0  # probability
    c.augment.crop = 0.0  # probability
    c.augment.low_resolution = 0.0  # probability
    c.augment.photometric = 0.0  # probability
    c.augment.grey = 0.0  # probability

    c.backbone = section()
    c.backbone.name = "sfnet20"  # see backbones.BACKBONES
    c.backbone.width = 64  # channels of the first stage; 64 is published
    c.backbone.embedding_dim = 512  # D
    c.backbone.dtype = "float32"  # of computation: float32 | bfloat16
    c.backbone.dropout = 0.0  # before the embedding
    c.backbone.drop_path = 0.0  # stochastic depth, of the last block
    c.backbone.mask_ratio = 0.0  # of a ViT's tokens, left out in training
    c.backbone.batch_norm_group = 0  # images that share statistics; 0: the batch
    c.backbone.remat = False  # compute blocks again for the gradient: less memory
    c.backbone.batch_norm_epsilon = 1e-5  # 2e-5: MagFace's weights
    c.backbone.color_order = "RGB"  # that imported weights take; images stay RGB
    c.backbone.value_range = (-1.0, 1.0)  # likewise; images stay in [-1, 1]

    c.head = section()
    c.head.loss = "sphereface_r_v2"  # see catalogue.loss_names
    c.head.norm = "hfn"  # hfn | nfn | sfn
    c.head.scale = "auto"  # s; auto: scale_factor times the least; paper: published
    c.head.scale_factor = 2.3  # of "auto"; the authors' own s are 2.2-2.5 times it
    c.head.margin = 1.4  # m at the end of its schedule; -1: the loss's default
    c.head.margin_schedule = "constant"  # constant | stairs | linear
    c.head.margin_start = -1.0  # m before the first stair, or at step 0; -1: no margin
    c.head.margin_steps = (
        0,
    )  # stairs: where m rises; linear: (last step of the ramp,)
    c.head.penalty = "l1"  # of SFN: l1 (official) | l2
    c.head.penalty_strength = 0.01  # t of SFN
    c.head.detach = "auto"  # cosine (CGD) | none | angle; auto: as published
    c.head.clamp = "exact"  # exact | official (cosines clipped to 1 - 1e-5)
    c.head.prototype_norm = "project"  # project (official) | differentiate
    c.head.prototype_init = "xavier_normal"  # xavier_normal | normal | unit
    c.head.loss_weight = 50.0  # lw
    c.head.divide_by_scale = True  # lw/s where there is an s
    c.head.annealing = False  # sphereface_2017: mix with plain cosine by λ(step)
    c.head.sample_rate = 1.0  # share of the classes in a step (Partial FC); 1: all
    c.head.interclass_filter = 0.0  # others above this cosine do not count; 0: off
    c.head.chunk = 0  # classes at a time; 0: all where their logits fit, else few
    c.head.precision = section()  # auto | float32 | bfloat16_3x | bfloat16
    c.head.precision.cosine = "auto"  # auto: bfloat16_3x on a TPU, else float32
    c.head.precision.embedding_gradient = "auto"
    c.head.precision.prototype_gradient = "auto"
    c.head.class_multiple = 4096  # rows of the prototypes are padded to a multiple
    for name in family.names():  # a loss's own constants, docs/losses.md
        if own := family.constants_of(name):
            c.head[name] = section(own)

    c.optimizer = section()
    c.optimizer.name = "sgd"  # sgd (PyTorch's rule) | adamw
    c.optimizer.momentum = 0.9  # adamw: b1
    c.optimizer.nesterov = False
    c.optimizer.b2 = 0.999  # adamw
    c.optimizer.clip_norm = 0.0  # of all gradients together; 0: off
    for part in ("backbone", "prototypes"):
        c.optimizer[part] = section()
        c.optimizer[part].learning_rate_factor = 1.0
        c.optimizer[part].weight_decay = 5e-4
        c.optimizer[part].decay_mask = "all"  # all (official) | no_norm | matrices
        c.optimizer[part].clip_norm = 0.0  # of this part; 0: off
        c.optimizer[part].momentum_dtype = "float32"  # sgd: float32 | bfloat16

    c.learning_rate = section()
    c.learning_rate.schedule = "multistep"  # multistep | cosine | polynomial | constant
    c.learning_rate.peak = 0.1
    c.learning_rate.warmup_steps = 0
    c.learning_rate.milestones = ()  # multistep: steps
    c.learning_rate.milestone_epochs = ()  # the same in epochs; give one of the two
    c.learning_rate.decay = 0.1  # multistep: factor at each milestone
    c.learning_rate.power = 1.0  # polynomial
    c.learning_rate.final = 0.0  # cosine, polynomial: last value

    c.train = section()
    c.train.batch_size = 512  # global
    c.train.steps = 0  # length of the run; give this or epochs
    c.train.epochs = 0.0
    c.train.accumulate = 1  # parts of a batch computed one after the other
    c.train.ema_decay = 0.0  # of the weights, a step; 0: off

    c.log = section()
    c.log.every_steps = 50
    c.log.tensorboard = True
    c.log.checkpoint_every_steps = 1000
    c.log.keep_last = 2  # checkpoints
    c.log.best_metric = ""  # keep the best, too, by a key of results.json: "metrics"

    c.eval = section()
    c.eval.every_steps = 0  # while training; 0: only at the end
    c.eval.protocols = PROTOCOLS  # those that the data does not offer are left out
    c.eval.sets = ()  # more test sets, see evaluation.test_sets.open_test
    c.eval.pooling = "N1D1F1"  # of templates: norm kept, detector score, mirror image
    c.eval.bootstrap = 1000  # draws of subjects for intervals at the end; 0: none
    c.eval.groups = ""  # lines "id,group": error rates by group at one threshold
    c.eval.group_fmr = 1e-3  # false match rate of all that sets that threshold
    c.eval.distractors = ""  # embeddings of strangers: a file of `embed`, .npy
    c.eval.batch_size = 256
    c.eval.flip = True  # add the embedding of the mirror image
    c.eval.jitter = 0.0  # add those of shifts by this share of the side, and of zooms
    c.eval.use_ema = True  # where there is one
    c.eval.checkpoint = "last"  # last | best, for --mode eval and evaluate

    c.report = section()
    c.report.pictures = True  # show the hardest pairs
    c.report.hardest = 8  # of each kind

    c.mesh = section()
    c.mesh.model = 1  # size of the "model" axis; "data" is the rest of the devices
    c.mesh.classes = "all"  # all | model: devices over which classes are split
    return c


def laptop_recipe(config: Config) -> None:
    """Two cores, a few minutes, rendered faces. Shared by all that compare losses."""
    config.data.name = "synth_faces"
    config.data.image_size = 64
    config.augment.shift = 0.04
    config.backbone.name = "sfnet10_bn"
    config.backbone.width = 16
    config.backbone.embedding_dim = 128
    config.head.class_multiple = 64
    config.head.loss_weight = 30.0
    config.train.batch_size = 128
    config.train.epochs = 12.0
    config.learning_rate.schedule = "cosine"
    config.learning_rate.warmup_steps = 30
    config.log.every_steps = 25
    config.log.checkpoint_every_steps = 200
    config.eval.every_steps = 200
    config.log.best_metric = "test/verification/kfold_accuracy"


def parse_arg(arg: str | None, **choices: tuple[str, ...]) -> dict[str, str]:
    """Parses a config file's string argument "key=value,key=value".

    Args:
      arg: what follows the colon on the command line, or None.
      **choices: for each key its legal values, the default first.

    Returns:
      A value for every key.

    Raises:
      ValueError: an unknown key or value, with the legal ones.
    """
    values = {key: legal[0] for key, legal in choices.items()}
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in choices:
            raise ValueError(
                f"config argument {key!r} is unknown, expected one of "
                f"{', '.join(choices)}"
            )
        if value not in choices[key]:
            raise ValueError(
                f"config argument {key}={value!r} is unknown, "
                + expected(value, choices[key])
            )
        values[key] = value
    return values
