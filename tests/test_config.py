"""Configs: arguments, validation, resolution, what a resumed run may change."""

import importlib.util
import itertools

import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from hyperface_jax import config as config_lib
from hyperface_jax import workdir
from hyperface_jax.backbones import BACKBONES


def load_file(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolved(config, classes=400, examples=6400):
    config_lib.validate(config)
    return config_lib.resolve(config, num_classes=classes, num_examples=examples)


SFR_ARGS = [
    f"data={d},variant={v},norm={n}"
    for d, v, n in itertools.product(
        ("laptop", "vggface2", "casia", "ms1m"),
        ("v0", "v1", "v2"),
        ("hfn", "nfn", "sfn"),
    )
]
BASELINE_ARGS = [
    f"loss={loss},recipe={recipe}"
    for loss, recipe in itertools.product(
        config_lib.loss_names(), ("laptop", "opensphere", "insightface", "adaface")
    )
]


@pytest.mark.filterwarnings("ignore:head.vpl_arcface.start is")
@pytest.mark.filterwarnings("ignore:head.scale is")
@pytest.mark.parametrize(
    ("file", "arg"),
    [("sfr", None), ("baselines", None), ("lfw", "fold=8")]
    + [("sfr", a) for a in SFR_ARGS]
    + [("baselines", a) for a in BASELINE_ARGS],
)
def test_every_config_is_valid_and_survives_its_workdir(file, arg, tmp_path):
    c = resolved(load_file(file).get_config(arg))
    assert c.train.steps > 0
    assert isinstance(c.head.scale, float)
    workdir.write_json(tmp_path / "config.json", {"config": c.to_dict()})
    again = config_lib.load(tmp_path / "config.json")
    assert config_lib.flatten(again) == config_lib.flatten(c)


@pytest.mark.filterwarnings("ignore:head.scale is")
@pytest.mark.parametrize("arg", [a for a in SFR_ARGS if "hfn" not in a])
def test_without_hard_normalisation_the_margin_starts_at_one(arg):
    c = resolved(load_file("sfr").get_config(arg))
    schedule = config_lib.margin_schedule(c)
    assert schedule(0) == 1
    assert schedule(c.train.steps) == pytest.approx(c.head.margin)


@pytest.mark.parametrize(
    ("loss", "start"), [("arcface", 0.0), ("sphereface", 1.0), ("cosface", 0.0)]
)
def test_a_margin_grows_from_none(loss, start):
    """Which is 0 where it is added, 1 where it multiplies."""
    c = config_lib.default_config()
    c.head.loss, c.head.margin = loss, -1.0
    c.head.margin_schedule, c.head.margin_steps = "linear", (100,)
    c.train.steps = 100
    c = resolved(c.lock())
    assert config_lib.margin_schedule(c)(0) == start
    assert config_lib.margin_schedule(c)(100) == pytest.approx(c.head.margin)


def test_an_unused_margin_start_contradicts_nothing():
    """Runs from before it followed the loss wrote 1."""
    c = config_lib.default_config()
    c.train.steps = 100
    c = resolved(c.lock())
    saved = c.to_dict()
    saved["head"]["margin_start"] = 0.0
    assert config_lib.check_resumable(saved, c) == []


def test_a_loss_that_never_starts_warns():
    c = load_file("baselines").get_config("loss=vpl_arcface")
    with pytest.warns(UserWarning, match=r"vpl_arcface.start is 8000, and the run has"):
        config_lib.resolve(c, num_classes=400, num_examples=6400)


def test_milestones_in_epochs():
    c = load_file("baselines").get_config("loss=arcface,recipe=adaface,data=casia")
    c = resolved(c, 10_572, 512 * 1000)
    assert c.train.steps == 26_000
    assert c.learning_rate.milestones == (12_000, 20_000, 24_000)
    again = config_lib.resolve(c, num_classes=10_572, num_examples=512 * 1000)
    assert again.to_dict() == c.to_dict()
    with pytest.raises(ValueError, match=r"data=casia .*, expected data=auto or ms1m"):
        load_file("baselines").get_config("recipe=opensphere,data=casia")
    with pytest.raises(ValueError, match=r"milestones is \(5,\) and milestone_epochs"):
        config_lib.validate(
            changed(
                learning_rate__milestones=(5,), learning_rate__milestone_epochs=(1,)
            )
        )


def test_the_published_recipe():
    c = load_file("sfr").get_config(
        "data=vggface2,backbone=sfnet20,variant=v2,norm=hfn"
    )
    c = resolved(c, 8631, 3_086_894)
    assert (c.head.scale, c.head.margin, c.head.loss_weight) == (60, 1.4, 50)
    assert c.head.margin_schedule == "constant"
    assert c.backbone.name == "sfnet20_deprecated"
    assert (c.train.batch_size, c.train.steps) == (512, 70_000)
    assert c.learning_rate.milestones == (40_000, 60_000)
    assert (c.learning_rate.peak, c.optimizer.momentum) == (0.1, 0.9)
    assert c.optimizer.backbone.weight_decay == 5e-4
    assert c.optimizer.prototypes.weight_decay == 5e-4


@pytest.mark.parametrize(
    ("loss", "milestones", "steps", "head"),
    [
        ("sphereface", (40_000, 60_000), 70_000, (30, 1.5)),
        ("cosface", (40_000, 60_000), 70_000, (30, 0.35)),
        ("arcface", (40_000, 60_000), 70_000, (30, 0.5)),
        ("sphereface2_a", (40_000, 60_000), 70_000, (40, 0.5)),
        ("sphereface2_m", (40_000, 60_000), 70_000, (40, 1.7)),
        ("sphereface2_c", (50_000, 78_000, 94_000), 100_000, (40, 0.4)),
    ],
)
@pytest.mark.filterwarnings("ignore:head.scale is")
def test_opensphere_has_a_schedule_for_each_loss(loss, milestones, steps, head):
    c = load_file("baselines").get_config(f"loss={loss},recipe=opensphere")
    c = resolved(c, 8631, 3_086_894)
    assert (c.head.scale, c.head.margin) == head
    assert (c.learning_rate.milestones, c.train.steps) == (milestones, steps)
    assert (c.train.batch_size, c.optimizer.backbone.decay_mask) == (512, "all")


@pytest.mark.filterwarnings("ignore:head.scale is")
def test_recipes_of_the_peers_on_ms1m():
    get = load_file("baselines").get_config
    c = resolved(get("loss=sphereface,recipe=opensphere,data=ms1m"), 85_742, 5_822_653)
    assert (c.backbone.name, c.head.scale, c.head.margin) == ("iresnet100", 32, 1.7)
    assert c.learning_rate.milestones == (150_000, 270_000, 320_000)
    assert (c.train.steps, c.backbone.batch_norm_group) == (360_000, 128)
    c = resolved(get("loss=arcface_wrap,recipe=insightface"), 93_431, 5_179_510)
    assert (c.train.batch_size, c.backbone.batch_norm_group) == (1024, 128)
    c = resolved(get("loss=adaface,recipe=adaface"), 85_742, 5_822_653)
    assert (c.train.batch_size, c.backbone.batch_norm_group) == (512, 256)
    assert c.backbone.dtype == "bfloat16"
    assert c.optimizer.backbone.decay_mask == "no_norm"


def test_stairs_of_the_unpublished_recipes():
    c = resolved(load_file("sfr").get_config("data=vggface2,variant=v1,norm=sfn"))
    schedule = config_lib.margin_schedule(c)
    seen = [round(float(schedule(s)), 6) for s in (0, 8_000, 16_000, 24_000, 32_000)]
    assert seen == [1.0, 1.1, 1.2, 1.3, 1.4]


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("dta=casia", "argument 'dta' is unknown, expected one of data, variant, norm"),
        ("data=webface", "data='webface' is unknown, expected one of laptop, vggface2"),
        ("norm", "norm='' is unknown, expected one of hfn"),
    ],
)
def test_unknown_arguments_list_the_legal_ones(arg, message):
    with pytest.raises(ValueError, match="config argument") as error:
        load_file("sfr").get_config(arg)
    assert message in str(error.value)


def changed(**updates):
    c = config_lib.default_config()
    c.train.steps = 10
    with c.ignore_type():
        c.update_from_flattened_dict(
            {k.replace("__", "."): v for k, v in updates.items()}
        )
    return c


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (
            {"head__loss": "arcfase"},
            "head.loss is 'arcfase', expected one of "
            f"{len(config_lib.loss_names())} words",
        ),
        ({"head__scale": "big"}, "head.scale is 'big', expected 'auto', 'paper' or"),
        ({"head__scale": "-3"}, "head.scale is '-3', expected 'auto', 'paper' or"),
        ({"data__image_size": 60}, "data.image_size is 60, expected a multiple of 16"),
        ({"train__epochs": 3.0}, "train.steps is 10 and train.epochs is 3.0, expected"),
        ({"train__accumulate": 3}, "train.batch_size is 512, expected a multiple of"),
        ({"train__batch_size": 0}, "train.batch_size is 0, expected a positive number"),
        ({"train__ema_decay": 1.5}, "train.ema_decay is 1.5, expected 0 <= value < 1"),
        (
            {"optimizer__momentum": 5.0},
            "optimizer.momentum is 5.0, expected 0",
        ),
        ({"data__dev_fraction": 1.0}, "data.dev_fraction is 1.0, expected 0 <= value"),
        ({"augment__flip": -1.0}, "augment.flip is -1.0, expected 0 to 1"),
        ({"augment__flip": 50.0}, "augment.flip is 50.0, expected 0 to 1"),
        ({"augment__rotate": 181.0}, "augment.rotate is 181.0, expected 0 to 180"),
        ({"head__margin": -3.0}, "head.margin is -3.0, expected 1 (no margin) or more"),
        ({"head__margin": 0.0}, "head.margin is 0.0, expected 1 (no margin) or more"),
        ({"head__margin": float("nan")}, "head.margin is nan, expected 1 (no margin)"),
        (
            {"head__margin_schedule": "linear", "head__margin_start": 0.5},
            "head.margin_start is 0.5, expected 1 (no margin) or more",
        ),
        (
            {"eval__checkpoint": "newest"},
            "eval.checkpoint is 'newest', expected",
        ),
        ({"eval__bootstrap": -3}, "eval.bootstrap is -3, expected 0 or more"),
        ({"eval__group_fmr": 0.0}, "eval.group_fmr is 0.0, expected a positive number"),
        ({"eval__group_fmr": 1.0}, "eval.group_fmr is 1.0, expected 0 <= value < 1"),
        ({"eval__protocols": ("ijbz",)}, "eval.protocols has 'ijbz', expected some of"),
        (
            {"backbone__name": "resnet"},
            f"backbone.name is 'resnet', expected one of {len(BACKBONES)} words",
        ),
    ],
)
def test_validation_names_the_key(updates, message):
    with pytest.raises(ValueError, match=r"is|has") as error:
        config_lib.validate(changed(**updates))
    assert message in str(error.value)


def test_auto_scale_follows_the_margin_and_the_classes():
    small = resolved(changed(head__margin=1.4), 400)
    large = resolved(changed(head__margin=2.0), 85742)
    assert small.head.scale == pytest.approx(
        2.3 * np.log(399 * 99) / (1 - np.cos(np.pi / 2.8)), abs=0.1
    )
    assert large.head.scale == pytest.approx(2.3 * 54.5, abs=0.3)
    assert resolved(changed(train__steps=0, train__epochs=2.0), 400).train.steps == 25
    assert resolved(changed(head__loss="arcface", head__margin=-1.0)).head.margin == 0.5


def test_a_scale_below_the_minimum_warns():
    with pytest.warns(UserWarning, match=r"head.scale is 20.0, below 34.4"):
        resolved(changed(head__scale="20", head__margin=1.7), 8631)


def test_resume_rules():
    saved = resolved(changed()).to_dict()
    for key, value in (
        ("data.threads", 9),
        ("eval.batch_size", 8),
        ("data.path", "/x"),
    ):
        c = ConfigDict(saved)
        c.update_from_flattened_dict({key: value})
        assert config_lib.check_resumable(saved, c) == []
    c = ConfigDict(saved)
    c.train.steps = 20
    assert config_lib.check_resumable(saved, c) == ["train.steps was 10 and is 20"]
    c.head.margin, c.seed = 1.5, 3
    with pytest.raises(
        ValueError, match=r"another config: head.margin was 1.4 and is 1.5; seed was 0"
    ):
        config_lib.check_resumable(saved, c)


def test_a_run_from_before_a_key_can_be_resumed():
    c = resolved(changed())
    saved = c.to_dict()
    del saved["head"]["precision"], saved["backbone"]["batch_norm_group"]
    assert config_lib.check_resumable(saved, c) == []
    other = resolved(changed(backbone__batch_norm_group=1))
    with pytest.raises(ValueError, match=r"batch_norm_group was 0 and is 1"):
        config_lib.check_resumable(saved, other)


def test_a_saved_config_loads_as_it_was(tmp_path):
    c = resolved(changed(head__margin_steps=(1, 2), head__margin_schedule="stairs"))
    workdir.write_json(tmp_path / "config.json", {"config": c.to_dict()})
    again = config_lib.load(tmp_path / "config.json")
    assert config_lib.flatten(again) == config_lib.flatten(c)
    assert config_lib.check_resumable(c.to_dict(), again) == []
    with pytest.raises(ValueError, match=r"nothing.json: not a readable config"):
        config_lib.load(tmp_path / "nothing.json")


def test_a_constant_of_another_loss_is_pointed_out(recwarn):
    config = config_lib.default_config()
    config.train.epochs = 1.0
    config_lib.validate(config)
    assert not recwarn
    config.head.magface.upper = 90.0
    with pytest.warns(UserWarning, match=r"head.magface.upper is 90.0, but head.loss"):
        config_lib.validate(config)
    config.head.loss = "magface"
    config.head.margin = -1.0
    config_lib.validate(config)
    assert not recwarn
