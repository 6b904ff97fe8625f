"""The plan: counts against published ones, memory against the compiled step."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_config import load_file

from hyperface_jax import backbones, device_memory, optimizer, streaming
from hyperface_jax import config as config_lib
from hyperface_jax.backbones import costs
from hyperface_jax.planning import gpus, plan, programs, rehearsal
from hyperface_jax.training import configured_head, experiment


def run_of(tmp_path, **keys):
    if not (tmp_path / "images").exists():
        toy.write_folder(tmp_path / "images", people=6, images=4, size=64)
    c = config_lib.default_config()
    c.data.name, c.data.path = "faces", str(tmp_path / "images")
    c.data.image_size, c.backbone.width, c.backbone.embedding_dim = 64, 16, 32
    c.train.batch_size, c.train.steps, c.head.class_multiple = 16, 10, 64
    for key, value in keys.items():
        section, _, name = key.partition("__")
        c[section][name] = value
    config_lib.validate(c.lock())
    return experiment.create_experiment(c)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [  # millions and giga, SPEC section 3, InsightFace's README
        ("iresnet18", 24.03, 2.61),
        ("iresnet50", 43.59, 6.31),
        ("sfnet20", 24.501, 2.04),
    ],
)
def test_counts_are_the_published_ones(name, parameters, macs):
    counts = costs.count_backbone(backbones.create_backbone(name), 112, 2)
    assert counts.parameters / 1e6 == pytest.approx(parameters, abs=0.02)
    assert counts.flops / 2e9 == pytest.approx(macs, rel=0.02)


MANY = {"backbone__name": "sfnet4", "head__class_multiple": 2**16}
SUB_CENTRES = MANY | {"head__loss": "subcenter_arcface", "head__margin": 0.5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keys", "tolerance"),
    [
        # XLA of jax 0.11 needs a fifth less here.
        ({"backbone__name": "sfnet10_bn", "head__class_multiple": 4096}, 0.2),
        ({"backbone__name": "sfnet20_deprecated", "mesh__model": 2}, 0.15),
        (MANY, 0.15),
        (MANY | {"head__chunk": 2048}, 0.15),
        (SUB_CENTRES, 0.2),
        # For a CPU XLA merges what BatchNorm computes again with the first time.
        ({"backbone__name": "iresnet18", "train__ema_decay": 0.9}, 0.3),
    ],
    ids=["sfnet10_bn", "sfnet20", "dense head", "chunks", "sub-centres", "iresnet18"],
)
def test_memory_against_the_compiled_step(keys, tolerance, tmp_path):
    """State to the byte; all together near the compiler's own account."""
    run = run_of(tmp_path, train__batch_size=64, **keys)
    at_once = run.config.train.batch_size // run.mesh.size
    counts = costs.count_backbone(run.backbone, 64, at_once)
    parts = plan.memory(run, counts)
    found = rehearsal.compile_step(run).memory_analysis()
    kept = ("backbone", "prototypes", "optimizer", "moving average and statistics")
    of_batch = at_once * (64 * 64 * 3 + 8)
    of_state = sum(parts[name] for name in kept)
    assert found.argument_size_in_bytes == pytest.approx(of_state + of_batch, abs=64)
    whole = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert sum(parts.values()) == pytest.approx(whole, rel=tolerance)


@pytest.mark.filterwarnings("ignore")
def test_the_report_says_what_there_is(tmp_path):
    text = plan.report(run_of(tmp_path, backbone__name="sfnet4", mesh__model=2))
    for expected in (
        "4 x cpu, mesh 2x2 (data x model)",
        "6 people, 24 images; decoded here at",
        "10 steps of 16 images, 6.7 epochs",
        "classes all at once",
        "for each 1000 images/s",
        "recipe       ours, not published",
        "memory of a device",
        "the device has",
        "together",
    ):
        assert expected in text, text


def test_what_fits_and_what_does_not():
    assert plan.verdict(2.0, 1.0).startswith("it will not fit")
    assert plan.verdict(2.0, 2.1) == "it may not fit"
    assert plan.verdict(2.0, 4.0) == "it fits"


@pytest.mark.parametrize("found", [[], ["/dev/nvidia0"]])
def test_a_gpu_that_jax_overlooks_is_named(found, monkeypatch):
    monkeypatch.setattr(plan.glob, "glob", lambda pattern: found)
    text = plan.describe_devices(jax.devices())
    assert ("no CUDA plugin" in text) == bool(found)


def test_sampling_needs_the_gradient_of_its_share_only(tmp_path):
    keys = {"head__class_multiple": 4096, "backbone__name": "sfnet4"}
    whole, share = (
        plan.memory(
            run_of(tmp_path, head__sample_rate=rate, **keys),
            costs.BackboneCounts(0, 0.0, 0),
        )
        for rate in (1.0, 0.25)
    )
    assert whole["prototypes"] == share["prototypes"]
    # Four devices: 1024 rows each, of which 256 are drawn; 32 numbers of 4 bytes.
    assert whole["gradients"] - share["gradients"] == 768 * 32 * 4


@pytest.mark.filterwarnings("ignore")
def test_classes_on_model_alone_cost_an_all_reduce(tmp_path):
    keys = {"backbone__name": "sfnet4", "mesh__classes": "model", "mesh__model": 2}
    text = plan.report(run_of(tmp_path, head__class_multiple=2**16, **keys))
    assert "all-reduces their gradient, 4.0 MiB a device\n" in f"{text}\n"
    # Three vectors of each class, and once for each part of a batch.
    keys |= {"head__loss": "subcenter_arcface", "train__accumulate": 2}
    text = plan.report(run_of(tmp_path, head__class_multiple=2**16, **keys))
    assert "all-reduces their gradient, 12.0 MiB a device 2 times\n" in f"{text}\n"


@pytest.mark.filterwarnings("ignore")
def test_what_differs_from_a_published_recipe_is_named(tmp_path):
    run = run_of(tmp_path, backbone__name="sfnet4")
    assert "recipe       ours, not published\n" in plan.report(run)
    config = config_lib.section(run.config.to_dict())
    config.source = "OpenSphere, config/train/x.yml"
    run = dataclasses.replace(run, config=config.lock())
    text = plan.report(run, ["data.path", "head.scale", "learning_rate.peak"])
    assert "after OpenSphere, config/train/x.yml; another loss than theirs is" in text
    assert "is yours, and so are head.scale, learning_rate.peak\n" in text


@pytest.mark.filterwarnings("ignore")
def test_what_the_classes_cost_is_named(tmp_path):
    keys = {"backbone__name": "sfnet4", "backbone__embedding_dim": 512}
    keys["head__class_multiple"] = 2**16
    # 2^16 rows, 512 numbers, three products of two operations; in chunks four.
    text = plan.report(run_of(tmp_path, **keys))
    assert "classes all at once, 0.20 GFLOP an image in a step\n" in text
    text = plan.report(run_of(tmp_path, head__chunk=2048, **keys))
    assert "classes in chunks of 2048, 0.27 GFLOP an image in a step\n" in text
    text = plan.report(run_of(tmp_path, head__sample_rate=0.1, **keys))
    # 16 384 rows a device, 1 638 asked for.
    drawn = "classes all at once, 1664 drawn on each device (0.102 of all), 0.02 GFLOP"
    assert drawn in text


@pytest.mark.parametrize(
    ("kind", "gib"), [("NVIDIA H200", 141 * 0.75), ("TPU v5 lite", 16), ("new", 0)]
)
def test_memory_of_devices_that_are_not_here(kind, gib):
    platform = "tpu" if "TPU" in kind else "gpu"
    device = SimpleNamespace(
        platform=platform, device_kind=kind, memory_stats=lambda: None
    )
    assert device_memory.of(device) == pytest.approx(gib * 2**30, rel=1e-3)


def test_a_larger_device_keeps_a_larger_matrix():
    """1024 images and MS1MV3's classes: 2.2 GiB, in chunks here, whole on an H200."""
    h200 = SimpleNamespace(
        platform="gpu", device_kind="NVIDIA H200", memory_stats=lambda: None
    )
    mesh = SimpleNamespace(devices=np.array([[h200]]))
    assert configured_head.dense_bytes(mesh) == device_memory.of(h200) // 8
    chosen = [
        streaming.choose_chunk(1024, 94208, dense_bytes=limit)
        for limit in (streaming.DENSE_BYTES, configured_head.dense_bytes(mesh))
    ]
    assert chosen == [4096, 94208]


@pytest.mark.filterwarnings("ignore")
def test_a_chunk_larger_than_memory_is_refused(tmp_path, monkeypatch):
    run = run_of(tmp_path, head__class_multiple=2**16, head__chunk=2**14)
    plan.check_head(run)
    monkeypatch.setattr(device_memory, "of", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"head.chunk is 16384: logits of 16 examples"):
        plan.check_head(run)


def test_published_recipes_say_where():
    def source(name, argument):
        return load_file(name).get_config(argument).source

    assert "spherefacer" in source("sfr", "data=vggface2")
    assert source("sfr", "data=vggface2,variant=v1") == ""
    assert source("sfr", "data=ms1m") == ""
    assert "arcface_torch" in source("baselines", "recipe=insightface")
    assert source("baselines", "recipe=insightface,data=casia") == ""
    assert "sec31" in source("baselines", "loss=cosface,recipe=opensphere")
    assert source("baselines", "loss=magface,recipe=opensphere") == ""
    published = "loss=sphereface,recipe=opensphere,data=ms1m"
    assert "ms1m_iresnet100" in source("baselines", published)
    assert source("baselines", "loss=arcface,recipe=opensphere,data=ms1m") == ""


@pytest.mark.parametrize("name", ["v99:2x2", "h20:8", "h200:", "h200:8x", "h200:0"])
def test_devices_that_do_not_exist_are_one_line(name):
    with pytest.raises(ValueError, match=rf"--topology is '{name}'.*h200.*\[tpu\]"):
        rehearsal.devices_of(name)


def test_names_of_gpus():
    assert gpus.parse("h200") == (gpus.GPUS["h200"], 1, 1)
    assert gpus.parse("a100:8") == (gpus.GPUS["a100"], 1, 8)
    assert gpus.parse("b200:2x4") == (gpus.GPUS["b200"], 2, 4)
    assert gpus.parse("v5e:2x4") is None


def test_the_step_compiled_for_gpus_that_are_not_here(tmp_path):
    """What is elementwise is fused, in feature maps at least; classes on all GPUs."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="pip install -e '.[cuda]'")
    devices = rehearsal.devices_of("h200:4")
    keys = {"backbone__dtype": "bfloat16", "train__batch_size": 1024}
    config = run_of(tmp_path, backbone__name="iresnet18", **keys).config
    found = experiment.create_experiment(config, devices)
    text = rehearsal.report(found, "h200:4")
    assert "compiled for h200:4, 4 devices (not run)" in text
    assert "all-gather" in text
    kernels = programs.kernels(rehearsal.compile_step(found).as_text())
    kinds = {kernel.kind for kernel in kernels}
    assert {"convolution", "fusion"} <= kinds
    elementwise = {"add", "multiply", "convert", "select", "subtract", "maximum"}
    assert not kinds & elementwise
    moved = sum(kernel.nbytes for kernel in kernels)
    alone = sum(kernel.nbytes for kernel in kernels if kernel.kind == "single")
    assert alone < 0.02 * moved


def test_an_update_of_classes_on_a_gpu_is_seven_passes():
    """Gradient, momentum and vectors in, both out; the vectors in and out: no copy."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="pip install -e '.[cuda]'")
    (device,) = rehearsal.devices_of("h200")
    here = jax.sharding.SingleDeviceSharding(device)
    part = optimizer.PartSettings()
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=lambda step: 0.1, backbone=part, prototypes=part
    )

    def update(params, state, gradients, ok):
        arguments = (tx, gradients, state, params)
        return optimizer.update(*arguments, prototype_norm="project", ok=ok)

    vectors = jnp.zeros((50_000, 128))
    params = {"backbone": jnp.zeros(8), "prototypes": vectors}
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        (params, tx.init(params), params, jnp.bool_(True)),
    )
    program = jax.jit(update, donate_argnums=(0, 1)).lower(*shapes).compile()
    moved = sum(k.nbytes for k in programs.kernels(program.as_text()))
    assert 7 <= moved / vectors.nbytes < 7.2


GPU_TEXT = """
%fused_add (p: f32[64]) -> f32[64] {
  ROOT %add.1 = f32[64]{0} add(%p, %p)
}

ENTRY %main (a: bf16[8,4]) -> f32[] {
  %a = bf16[8,4]{1,0} parameter(0), metadata={op_name="image"}
  %c = f32[] constant(1)
  %cudnn-conv.1 = (bf16[8,2]{1,0}, u8[0]{0}) custom-call(%a, %a), custom_call_target="\
__cudnn$convForward", backend_config={"x":[]}
  %get-tuple-element.2 = bf16[8,2]{1,0} get-tuple-element(%cudnn-conv.1), index=0
  %custom-call.7 = (f32[8,8]{1,0}, s8[16]{0}) custom-call(%a, %get-tuple-element.2), \
custom_call_target="__cublas$lt$matmul"
  %loop_fusion = (f32[2]{0}, pred[8,2]{1,0}) fusion(%get-tuple-element.2, %c), calls=%f
  %wrapped_convert = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%wrapped_convert_of
  %while.1 = (s32[], f32[8,8]{1,0}) while(%tuple.1), condition=%c1, body=%b1
  ROOT %copy.1 = bf16[8,4]{0,1} copy(%a)
}
"""


@pytest.mark.parametrize(("gib", "fits"), [(78, True), (80, False)])
def test_what_a_gpu_cannot_hold_is_said(gib, fits):
    """Its compiler does not refuse it."""
    memory = SimpleNamespace(
        argument_size_in_bytes=2**30, temp_size_in_bytes=(gib - 1) * 2**30
    )
    program = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: GPU_TEXT)
    text = rehearsal.describe(program, "a100", devices=1, batch=64)
    assert ("it will not fit: NVIDIA A100-SXM4-80GB has 79 GiB" in text) != fits


def test_kernels_as_a_gpu_writes_them():
    assert programs.kernels(GPU_TEXT) == [
        programs.Kernel("convolution", 32 + 2 * 64),
        programs.Kernel("product", 256 + 16 + 64 + 32),
        programs.Kernel("fusion", 8 + 16 + 32 + 4),
        programs.Kernel("single", 128 + 64),
        programs.Kernel("copy", 128),
    ]


@pytest.mark.filterwarnings("ignore")
def test_rehearsal_reads_the_compiled_step(tmp_path):
    """On the devices that are here; the slice only gives a name and its peaks."""
    run = run_of(tmp_path, backbone__name="sfnet4")
    text = rehearsal.report(run, "v5e:2x2")
    assert "compiled for v5e:2x2, 4 devices (not run)" in text
    assert "all-gather" in text
    assert "a step takes at least" in text
    assert "read and written" in rehearsal.report(run, "h200:4")


def test_collectives_as_a_tpu_writes_them():
    """Layouts with brackets, tokens, operands beside results, one op three times."""
    fused = "= f32[4,1,256]{2,1,0:T(1,128)} all-gather(%p.1), channel_id=1, dims={0}"
    text = f"""
%beside_other_work.1 (p: f32[1,256]) -> f32[4,1,256] {{
  %all-gather.10 {fused}
%beside_other_work.2 (p: f32[1,256]) -> f32[4,1,256] {{
  %all-gather.12 {fused}
%loop.3 (p: bf16[8]) -> bf16[8] {{
  %all-reduce.4 = (bf16[8]{{0:T(8)S(1)}}, f32[]{{:T(128)}}) all-reduce(%p), channel_id=2
ENTRY %main.5 {{
  %w = (bf16[8]) while(%p), condition=%c, body=%loop.3
  %collective-permute-start = (f32[2,3]{{1,0}}, f32[2,3]{{1,0:S(1)}}, u32[]{{:S(2)}}, \
u32[]{{:S(2)}}) collective-permute-start(%p), channel_id=3
  %collective-permute-done = f32[2,3]{{1,0}} collective-permute-done(%x)
"""
    assert programs.collectives(text) == [
        programs.Collective("all-gather", ((4, 1, 256),), 4096, False),
        programs.Collective("all-reduce", ((8,), ()), 20, True),
        programs.Collective("collective-permute", ((2, 3),), 24, False),
    ]
