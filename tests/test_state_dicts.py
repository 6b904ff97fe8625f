"""Every wrapper of every peer, and which network is inside."""

import json
import re

import jax
import numpy as np
import pytest

from hyperface_jax.backbones import create_backbone
from hyperface_jax.backbones.torch_names import to_flax, to_torch
from hyperface_jax.interop import torch_file
from hyperface_jax.interop.state_dicts import (
    LAYOUTS,
    find_state_dict,
    guess_backbone,
    image_size,
)
from hyperface_jax.interop.torch_objects import Opaque

D, C = 16, 5
PROTOTYPES = np.arange(C * D, dtype=np.float32).reshape(C, D)


def zeros(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def iresnet(*blocks):
    shapes = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            shapes[f"layer{stage}.{block}.conv1.weight"] = (1,)
    return zeros(shapes | {"fc.weight": (D, 25088), "features.weight": (D,)})


IRESNET = iresnet(2, 2, 2, 2)
SFNET = zeros(
    {f"layer{stage}.0.conv1.weight": (64, 3, 3, 3) for stage in range(1, 5)}
    | {"layer2.1.conv1.weight": (1,), "layer2.1.conv2.weight": (1,)}
    | {f"layer3.{block}.conv1.weight": (1,) for block in (1, 2)}
    | {"fc.weight": (D, 25088), "fc.bias": (D,)}
)
WIDTHS = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3


def ir(widths):
    shapes = {"input_layer.0.weight": (64, 3, 3, 3)}
    for k, width in enumerate(widths):
        shapes[f"body.{k}.res_layer.4.weight"] = (width, width, 3, 3)
    return zeros(shapes | {"output_layer.3.weight": (D, 25088)})


IR50 = ir(WIDTHS)


def under(prefix, names):
    return {prefix + name: value for name, value in names.items()}


WRAPPED = {
    "InsightFace model.pt": (IRESNET, "insightface", None),
    "InsightFace checkpoint_gpu_0.pt": (
        {
            "epoch": 3,
            "state_dict_backbone": IRESNET,
            "state_dict_softmax_fc": {"weight": PROTOTYPES},
            "state_optimizer": {"state": {}},
        },
        "insightface",
        PROTOTYPES,
    ),
    "OpenSphere v0 backbone_1.pth": (under("module.", SFNET), "opensphere", None),
    "OpenSphere v0, an IResNet": (under("module.", IRESNET), "opensphere", None),
    "OpenSphere without prefix": (SFNET, "opensphere", None),
    "OpenSphere sf2 checkpoint_1.pth": (
        {
            "backbone": under("module.", SFNET),
            "head": {"module.w": PROTOTYPES.T, "module.b": np.zeros(1)},
        },
        "opensphere",
        PROTOTYPES,
    ),
    "OpenSphere main model_1.pth": (
        {"backbone": SFNET, "head": {"w": PROTOTYPES}},
        "opensphere",
        PROTOTYPES,
    ),
    "OpenSphere main, a head that is transposed": (
        {"backbone": SFNET, "head": {"w": PROTOTYPES.T, "b": np.zeros((1, C))}},
        "opensphere",
        PROTOTYPES,
    ),
    "OpenSphere main ckpt_1.pth": (
        {"step": 1, "model": {"backbone": IRESNET, "head": {"w": PROTOTYPES}}},
        "opensphere",
        PROTOTYPES,
    ),
    "OpenSphere main, SimPLE": (
        {"model": {"backbone": IRESNET, "head": {"bias": np.zeros(1)}}},
        "opensphere",
        None,
    ),
    "AdaFace .ckpt": (
        {
            "state_dict": under("model.", IR50)
            | {"head.kernel": PROTOTYPES.T, "head.t": np.zeros(1)},
            "hyper_parameters": Opaque("argparse", "Namespace"),
        },
        "adaface",
        PROTOTYPES,
    ),
    "CVLface model.pt": (under("net.", IR50), "cvlface", None),
    "CVLface, InsightFace's network": (under("net.", IRESNET), "cvlface", None),
    "CurricularFace": (IR50, "cvlface", None),
    "MagFace, trainer.py": (
        {
            "arch": "iresnet18",
            "state_dict": under("module.features.", IRESNET)
            | {"module.fc.weight": PROTOTYPES.T},
        },
        "magface",
        PROTOTYPES,
    ),
    "MagFace, trainer_dist.py": (
        {
            "state_dict": under("features.module.", IRESNET)
            | {"parallel_fc.weight": PROTOTYPES}
        },
        "magface",
        PROTOTYPES,
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_state_dict_is_found_in_its_wrapper(case):
    loaded, layout, prototypes = WRAPPED[case]
    found = find_state_dict(loaded)
    assert found.weights.keys() in (IRESNET.keys(), SFNET.keys(), IR50.keys())
    assert found.layout == layout
    assert (found.color_order, found.value_range) == LAYOUTS[layout]
    assert found.embedding_dim == D
    if prototypes is None:
        assert found.prototypes is None
    else:
        np.testing.assert_array_equal(found.prototypes, prototypes)
    assert found.candidates in (
        ("iresnet18",),
        ("ir50",),
        ("sfnet10", "sfnet10_deprecated"),
    )


def test_facts_about_the_images():
    assert LAYOUTS["adaface"] == ("BGR", (-1, 1))
    assert LAYOUTS["magface"] == ("BGR", (0, 1))
    assert LAYOUTS["opensphere"] == LAYOUTS["insightface"] == ("RGB", (-1, 1))
    assert LAYOUTS["cvlface"][0] is None


def test_files_are_found_through_our_own_writer(tmp_path):
    loaded, _, prototypes = WRAPPED["OpenSphere sf2 checkpoint_1.pth"]
    torch_file.write(tmp_path / "a.pth", loaded)
    found = find_state_dict(torch_file.read(tmp_path / "a.pth"))
    np.testing.assert_array_equal(found.prototypes, prototypes)
    for name, value in SFNET.items():
        np.testing.assert_array_equal(found.weights[name], value)


def test_the_first_convolution_of_the_sphereface2_branch_settles_the_layout():
    older = {re.sub(r"(layer\d\.0)\.conv1", r"\1.conv", n): v for n, v in SFNET.items()}
    assert older.keys() != SFNET.keys()
    found = find_state_dict({"backbone": under("module.", older), "head": {}})
    assert found.weights.keys() == SFNET.keys()
    assert found.candidates == ("sfnet10_deprecated",)


@pytest.mark.parametrize(
    "head",
    [
        {"module.w": PROTOTYPES.T},
        {"weight": PROTOTYPES},
        PROTOTYPES,
    ],
)
def test_a_head_in_a_file_of_its_own(head):
    found = find_state_dict(under("module.", SFNET), head)
    np.testing.assert_array_equal(found.prototypes, PROTOTYPES)


def test_as_many_classes_as_dimensions():
    """The shape does not tell rows from columns: the program does."""
    square = np.arange(D * D, dtype=np.float32).reshape(D, D)

    def prototypes(backbone, head):
        return find_state_dict({"backbone": backbone, "head": head}).prototypes

    older = prototypes(under("module.", SFNET), {"module.w": square})
    np.testing.assert_array_equal(older, square.T)
    np.testing.assert_array_equal(prototypes(SFNET, {"w": square}), square)
    adaface = under("model.", IR50) | {"head.kernel": square}
    np.testing.assert_array_equal(find_state_dict(adaface).prototypes, square.T)


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([1], "file: found a list, expected a state_dict"),
        (Opaque("models", "IResNet"), r"file: found a models\.IResNet"),
        ({"state_dict": Opaque("omegaconf", "X")}, r"state_dict: found a omegaconf\.X"),
        ({1: IRESNET}, "a int as name, expected text"),
        ({}, "0 names .* of no network known here"),
        ({"epoch": np.zeros(1)}, "'epoch' .* of no network known here; expected one"),
        (IRESNET | {"fc.bias": Opaque("numpy", "x")}, r"'fc\.bias' is a numpy\.x, exp"),
        (IRESNET | {"lr": 0.1}, "'lr' is a float, expected a tensor"),
        (under("module.", SFNET) | {"x": 1}, r"names not below module\.: 'x'"),
        ({"module.w": PROTOTYPES}, "of no network known here"),
        (IRESNET | {"fc.weight": np.zeros(3)}, r"no matrix fc\.weight, the last layer"),
        (
            {"backbone": IRESNET, "head": {"w": PROTOTYPES[:, 1:]}},
            r"prototypes are \[5, 15\], expected \[C, 16\] or \[16, C\]",
        ),
        ({"backbone": IRESNET, "head": {"w": 3}}, "head: found a int"),
    ],
)
def test_other_things_are_refused(loaded, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_state_dict(loaded)
    assert "\n" not in str(caught.value)


# --- which backbone -------------------------------------------------------------------


def test_the_peers_own_names_and_shapes(shared):
    peers = json.loads(shared("oracles/backbones.json").read_text())
    expected = {
        "opensphere/sfnet4": ("sfnet4", "sfnet4_deprecated"),
        "opensphere/sfnet20_bn": ("sfnet20_bn",),
        "opensphere/sfnet20_deprecated": ("sfnet20", "sfnet20_deprecated"),
        "insightface/iresnet18": ("iresnet18",),
        "insightface/mobilefacenet": ("mbf",),
        "insightface/vit_t": ("vit_t",),
    }
    assert peers.keys() == expected.keys()
    for name, facts in peers.items():
        weights = {
            key: np.broadcast_to(np.float32(0), shape)
            for key, shape in facts["parameters"].items()
        }
        found = find_state_dict(weights)
        assert found.candidates == expected[name]
        assert found.layout == name.split("/")[0]
        assert found.embedding_dim == 512


@pytest.mark.parametrize(
    "name",
    ["iresnet18", "iresnet50"]
    + [f"sfnet{n}{kind}" for n in (4, 10, 20, 36, 64) for kind in ("", "_bn")],
)
def test_our_own_networks(name):
    backbone = create_backbone(name, embedding_dim=8, width=2)
    shapes = jax.eval_shape(lambda key: backbone.init(key, 112), jax.random.key(0))
    params, batch_stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    weights = to_torch(backbone, 112, params, batch_stats)
    found = find_state_dict(weights)
    assert found.candidates[0] == name
    if found.candidates == (name,):
        assert guess_backbone(weights) == name
    else:
        with pytest.raises(ValueError, match=f"fits {name} and {name}_deprecated"):
            guess_backbone(weights)
    to_flax(backbone, 112, found.weights)


def mbf(blocks, width=128):
    shapes = {"layers.0.layers.0.weight": (width, 3, 3, 3)}
    if blocks[0] == 1:
        shapes["layers.1.layers.0.weight"] = (width, 2, 3, 3)
    else:
        for k in range(blocks[0]):
            shapes[f"layers.1.layers.{k}.layers.0.layers.0.weight"] = (1,)
    for layer, count in zip((3, 5, 7), blocks[1:], strict=True):
        shapes[f"layers.{layer - 1}.layers.0.layers.0.weight"] = (1,)
        for k in range(count):
            shapes[f"layers.{layer}.layers.{k}.layers.0.layers.0.weight"] = (1,)
            shapes[f"layers.{layer}.layers.{k}.layers.2.layers.0.weight"] = (1,)
    shapes["conv_sep.layers.0.weight"] = (512, 1, 1, 1)
    return zeros(shapes | {"features.layers.2.weight": (D, 512)})


def vit(width, depth):
    shapes = {"patch_embed.proj.weight": (width, 3, 9, 9)}
    shapes |= {f"blocks.{k}.norm1.weight": (width,) for k in range(depth)}
    return zeros(shapes | {"feature.2.weight": (D, width)})


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        (iresnet(3, 4, 6, 3), "iresnet34"),
        (iresnet(3, 13, 30, 3), "iresnet100"),
        (iresnet(6, 26, 60, 6), "iresnet200"),
        (ir([64] * 2 + [128] * 2 + [256] * 2 + [512] * 2), "ir18"),
        (ir([64] * 3 + [128] * 4 + [256] * 6 + [512] * 3), "ir34"),
        (IR50, "ir50"),
        (ir([64] * 3 + [128] * 13 + [256] * 30 + [512] * 3), "ir100"),
        (mbf((1, 4, 6, 2)), "mbf"),
        (mbf((2, 8, 12, 4), 256), "mbf_large"),
        (vit(256, 12), "vit_t"),
        (vit(512, 12), "vit_s"),
        (vit(512, 24), "vit_b"),
        (vit(768, 24), "vit_l"),
    ],
)
def test_networks_by_their_blocks(weights, name):
    assert guess_backbone(weights) == name
    assert find_state_dict(weights).candidates == (name,)


def test_a_parallel_ir_network_is_not_taken_for_opensphere():
    """OpenSphere has no IR; AdaFace's and CurricularFace's may be for BGR."""
    found = find_state_dict(under("module.", IR50))
    assert found.color_order is None
    assert found.candidates == ("ir50",)


@pytest.mark.parametrize(
    ("weights", "name"),
    [(vit(512, 12), "pos_embed"), (mbf((1, 4, 6, 2)), "features.layers.0.layers.0.we")],
)
def test_a_weight_that_tells_the_size_is_missing(weights, name):
    left = {k: v for k, v in weights.items() if not k.startswith(name)}
    with pytest.raises(ValueError, match=f"no {name}.* tells the size of the images"):
        image_size(left)
    whole = left | {name: np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="tells the size of the images"):
        image_size(whole)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (vit(1024, 47), "vit names with width and blocks 1024, 47, which is none"),
        (IRESNET | {"layer1.2.x": PROTOTYPES}, "iresnet names with blocks 3, 2, 2, 2"),
        (IR50 | {"body.0.res_layer.se_block.fc1.weight": PROTOTYPES}, "squeeze-and-ex"),
        (IR50 | {"body.0.res_layer.6.weight": PROTOTYPES}, "of bottlenecks or"),
        (mbf((1, 4, 6, 3)), "mbf names with blocks 1, 4, 6, 3"),
    ],
)
def test_networks_that_we_do_not_have(weights, message):
    assert find_state_dict(weights).candidates == ()
    with pytest.raises(ValueError, match=message):
        guess_backbone(weights)
