"""The other losses, and the peers' recipes.

    python -m hyperface_jax.main --config configs/baselines.py:loss=cosface \
        --workdir runs/cosface

trains on rendered faces with exactly the budget of configs/sfr.py, with the margin, the
constants and the gradient with which the loss was published (docs/losses.md) and a
scale that fits the number of people (--config.head.scale=paper: the published one).
With a recipe of another code base, name your data with --config.data.path.
"""

from hyperface_jax.config import default_config, laptop_recipe, loss_names, parse_arg


def get_config(arg: str | None = None):
    """A baseline.

    Recipes (from the code bases' own configs and defaults): "opensphere": VGGFace2,
    SFNet-20, lr .1, steps 40/60/70 k, s 30, decay 5e-4 on everything. "insightface":
    MS1MV3, IResNet-50, linear decay to 0 over 20 epochs, s 64, batch 1024, prototypes
    normalised in the graph, gradient clipped at 5 on the backbone. "adaface": MS1MV2,
    IR-100, 26 epochs, /10 at 12, 20, 24, no decay on BatchNorm. With data=casia
    the last two take as many epochs of CASIA-WebFace, which is ours, not published.

    Args:
      arg: "loss=...,recipe=laptop|opensphere|insightface|adaface,data=auto|casia".
    """
    values = parse_arg(
        arg,
        loss=("normface", *(name for name in loss_names() if name != "normface")),
        recipe=("laptop", "opensphere", "insightface", "adaface"),
        data=("auto", "casia"),
    )
    config = default_config()
    config.head.loss = values["loss"]
    config.head.margin = -1.0  # the loss's own default
    {"laptop": laptop_recipe, "opensphere": _opensphere, "insightface": _insightface,
     "adaface": _adaface}[values["recipe"]](config)  # fmt: skip
    if values["data"] == "casia":
        if values["recipe"] not in ("insightface", "adaface"):
            raise ValueError(
                f"data=casia with recipe={values['recipe']}, expected "
                "recipe=insightface or adaface (configs/sfr.py has SphereFace-R's)"
            )
        config.data.name, config.data.config = "casia_webface", "default"
        config.source = ""
    if values["loss"] == "ga_softmax":
        config.optimizer.backbone.clip_norm = 5.0  # its official config clips
        config.optimizer.prototypes.clip_norm = 5.0
    if values["loss"] == "plain_softmax":
        config.head.loss_weight = 1.0  # there is no s to divide it by
    if values["loss"] == "sphereface_2017":
        config.head.norm = "nfn"
        config.head.annealing = True
        config.head.loss_weight = 1.0
    if values["loss"].startswith("sphereface2") and values["recipe"] == "opensphere":
        config.head.scale = "paper"
        config.head.loss_weight, config.head.divide_by_scale = 10.0, True
    return config.lock()


def _faces_112(config, name):
    config.data.name, config.data.config = name
    config.data.image_size = 112
    config.data.threads = 16
    config.head.loss_weight = 1.0
    config.head.divide_by_scale = False
    config.log.checkpoint_every_steps = 2000
    config.eval.every_steps = 2000


def _opensphere(config):
    _faces_112(config, ("vggface2", "default"))
    config.source = "OpenSphere, config/train/vggface2_sfnet20_*.yml"
    config.backbone.name = "sfnet20_deprecated"
    config.head.scale = "30"
    config.train.steps = 70_000
    config.learning_rate.milestones = (40_000, 60_000)


def _insightface(config):
    _faces_112(config, ("ms1m", "v3"))
    config.source = "InsightFace, recognition/arcface_torch/configs/ms1mv3_r50.py"
    config.backbone.name = "iresnet50"
    config.backbone.dtype = "bfloat16"  # theirs: float16
    config.head.scale = "64"
    config.head.prototype_norm = "differentiate"
    config.head.prototype_init = "normal"
    config.optimizer.backbone.clip_norm = 5.0
    config.train.batch_size = 1024
    config.train.epochs = 20.0
    config.learning_rate.schedule = "polynomial"


def _adaface(config):
    _faces_112(config, ("ms1m", "v2"))
    config.source = "AdaFace, scripts/run_ir101_ms1mv2.sh"
    config.backbone.name = "ir100"
    config.backbone.dropout = 0.4
    config.head.scale = "64"
    config.head.prototype_norm = "differentiate"
    config.head.prototype_init = "unit"
    config.optimizer.backbone.decay_mask = "matrices"
    config.augment.crop = 0.2
    config.augment.low_resolution = 0.2
    config.augment.photometric = 0.2
    config.train.epochs = 26.0
    config.learning_rate.milestone_epochs = (12.0, 20.0, 24.0)
