"""The other losses, and the peers' recipes.

    python -m hyperface_jax.main --config configs/baselines.py:loss=cosface \
        --workdir runs/cosface

trains on rendered faces with exactly the budget of configs/sfr.py, with the margin, the
constants and the gradient with which the loss was published (docs/losses.md) and a
scale that fits the number of people (--config.head.scale=paper: the published one).
With a recipe of another code base, name your data with --config.data.path.
"""

from hyperface_jax.config import default_config, laptop_recipe, loss_names, parse_arg

# Under config/ of OpenSphere, branch OpenSphere_v0; it has none for other losses.
OPENSPHERE = {
    "sphereface": "train/vggface2_sfnet20_sphereface.yml",
    "sphereface_plus": "train/vggface2_sfnet20_spherefaceplus.yml",
    "ga_softmax": "train/vggface2_sfnet20_gasoftmax.yml",
    "sphereface2_c": "train/vggface2_sfnet20_sphereface2.yml",
    "sphereface2_a": "papers/SphereFace2/appendix/vggface2_sfnet20_sphereface2A.yml",
    "sphereface2_m": "papers/SphereFace2/appendix/vggface2_sfnet20_sphereface2M.yml",
    "normface": "papers/SphereFace2/sec31/vggface2_sfnet20_cocoloss.yml",
    "cosface": "papers/SphereFace2/sec31/vggface2_sfnet20_cosface.yml",
    "arcface": "papers/SphereFace2/sec31/vggface2_sfnet20_arcface.yml",
}
DATA = {"opensphere": ("auto", "ms1m"), "insightface": ("auto", "casia"),
        "adaface": ("auto", "casia"), "laptop": ("auto",)}  # fmt: skip


def get_config(arg: str | None = None):
    """A baseline.

    Recipes (from the code bases' own configs and defaults): "opensphere": VGGFace2,
    SFNet-20, lr .1, steps 40/60/70 k (SphereFace2-C: 50/78/94/100 k), s 30, decay 5e-4
    on everything; with data=ms1m MS1MV2, IResNet-100, 150/270/320/360 k, SphereFace at
    s 32, m 1.7. "insightface": MS1MV3, IResNet-50, linear decay to 0 over 20 epochs,
    s 64, batch 1024, prototypes normalised in the graph, gradient clipped at 5 on the
    backbone. "adaface": MS1MV2, IR-100, 26 epochs, /10 at 12, 20, 24, no decay on
    BatchNorm. BatchNorm sees as many images as one of their GPUs. With data=casia the
    last two take as many epochs of CASIA-WebFace, which is ours, not published.

    Args:
      arg: "loss=...,recipe=laptop|opensphere|insightface|adaface,
        data=auto|casia|ms1m".
    """
    values = parse_arg(
        arg,
        loss=("normface", *(name for name in loss_names() if name != "normface")),
        recipe=("laptop", "opensphere", "insightface", "adaface"),
        data=("auto", "casia", "ms1m"),
    )
    if values["data"] not in DATA[values["recipe"]]:
        raise ValueError(
            f"data={values['data']} with recipe={values['recipe']}, expected "
            f"data={' or '.join(DATA[values['recipe']])} (auto is the recipe's own "
            "set; configs/sfr.py has SphereFace-R's)"
        )
    config = default_config()
    config.head.loss = values["loss"]
    config.head.margin = -1.0  # the loss's own default
    {"laptop": laptop_recipe, "opensphere": _opensphere, "insightface": _insightface,
     "adaface": _adaface}[values["recipe"]](config)  # fmt: skip
    if values["data"] == "casia":
        config.data.name, config.data.config = "casia_webface", "default"
        config.source = ""
    if values["data"] == "ms1m":
        _opensphere_ms1m(config)
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
    yml = OPENSPHERE.get(config.head.loss)
    config.source = f"OpenSphere, config/{yml}" if yml else ""
    config.backbone.name = "sfnet20_deprecated"
    config.head.scale = "30"
    config.train.steps = 70_000
    config.learning_rate.milestones = (40_000, 60_000)
    if config.head.loss == "sphereface2_c":  # its first release had 40/60/70 k, too
        config.train.steps = 100_000
        config.learning_rate.milestones = (50_000, 78_000, 94_000)


def _opensphere_ms1m(config):
    config.data.name, config.data.config = "ms1m", "v2"
    config.source = ""
    config.backbone.name = "iresnet100"
    config.backbone.batch_norm_group = 128  # of 4 GPUs
    config.train.steps = 360_000
    config.learning_rate.milestones = (150_000, 270_000, 320_000)
    config.eval.every_steps = 5000
    if config.head.loss == "sphereface":
        config.source = "OpenSphere, config/train/ms1m_iresnet100_sphereface.yml"
        config.head.scale, config.head.margin = "32", 1.7


def _insightface(config):
    _faces_112(config, ("ms1m", "v3"))
    config.source = "InsightFace, recognition/arcface_torch/configs/ms1mv3_r50.py"
    config.backbone.name = "iresnet50"
    config.backbone.dtype = "bfloat16"  # theirs: float16
    config.backbone.batch_norm_group = 128  # of 8 GPUs
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
    config.backbone.dtype = "bfloat16"  # theirs: float16
    config.backbone.batch_norm_group = 256  # of 2 GPUs
    config.head.scale = "64"
    config.head.prototype_norm = "differentiate"
    config.head.prototype_init = "unit"
    config.optimizer.backbone.decay_mask = "no_norm"
    config.augment.crop = 0.2
    config.augment.low_resolution = 0.2
    config.augment.photometric = 0.2
    config.train.epochs = 26.0
    config.learning_rate.milestone_epochs = (12.0, 20.0, 24.0)
