"""IR against its definition in NumPy, from a state_dict of AdaFace's names."""

import dataclasses

import jax
import numpy as np
import pytest

from hyperface_jax.backbones import create_backbone
from hyperface_jax.backbones.torch_names import to_flax, to_torch

WIDTH, DIM, SIZE = 2, 5, 32
BLOCKS = (1, 2, 1, 1)


def names_and_shapes():
    """The state_dict, SPEC section 3, of stages with BLOCKS residual blocks."""
    found = {}

    def norm(name, channels, affine=True):
        leaves = ("weight", "bias") if affine else ()
        for leaf in (*leaves, "running_mean", "running_var"):
            found[f"{name}.{leaf}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    def conv(name, channels, out, size):
        found[f"{name}.weight"] = (out, channels, size, size)

    conv("input_layer.0", 3, WIDTH, 3)
    norm("input_layer.1", WIDTH)
    found["input_layer.2.weight"] = (WIDTH,)
    channels, i = WIDTH, 0
    for stage, blocks in enumerate(BLOCKS):
        out = WIDTH * 2**stage
        for _ in range(blocks):
            block = f"body.{i}"
            if channels != out:
                conv(f"{block}.shortcut_layer.0", channels, out, 1)
                norm(f"{block}.shortcut_layer.1", out)
            norm(f"{block}.res_layer.0", channels)
            conv(f"{block}.res_layer.1", channels, out, 3)
            norm(f"{block}.res_layer.2", out)
            found[f"{block}.res_layer.3.weight"] = (out,)
            conv(f"{block}.res_layer.4", out, out, 3)
            norm(f"{block}.res_layer.5", out)
            channels, i = out, i + 1
    norm("output_layer.0", channels)
    found["output_layer.3.weight"] = (DIM, channels * (SIZE // 16) ** 2)
    found["output_layer.3.bias"] = (DIM,)
    norm("output_layer.4", DIM, affine=False)
    return found


def weights_of(rng):
    weights = {}
    for name, shape in names_and_shapes().items():
        value = 0.1 * rng.standard_normal(shape)
        if name.endswith("running_var") or (len(shape) == 1 and "weight" in name):
            value = 1 + value
        elif len(shape) > 1:
            value = 10 * value / np.sqrt(np.prod(shape[1:]))
        weights[name] = np.asarray(value, np.float32)
        if name.endswith("tracked"):
            weights[name] = np.zeros((), np.int64)
    return weights


def forward(weights, x):
    """Embeddings in evaluation, float64; maps are B, C, H, W."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def conv(name, x, stride=1):
        kernel = w[f"{name}.weight"]
        size = kernel.shape[-1]
        p = size // 2
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
        windows = windows[:, :, ::stride, ::stride]
        return np.einsum("bchwij,ocij->bohw", windows, kernel)

    def vector(value, x):
        return value.reshape((1, -1) + (1,) * (x.ndim - 2))

    def norm(name, x):
        y = x - vector(w[f"{name}.running_mean"], x)
        y = y / np.sqrt(vector(w[f"{name}.running_var"], x) + 1e-5)
        if f"{name}.weight" in w:
            y = y * vector(w[f"{name}.weight"], x) + vector(w[f"{name}.bias"], x)
        return y

    def prelu(name, x):
        return np.maximum(x, 0) + vector(w[f"{name}.weight"], x) * np.minimum(x, 0)

    x = prelu("input_layer.2", norm("input_layer.1", conv("input_layer.0", x)))
    strides = [1 if i else 2 for blocks in BLOCKS for i in range(blocks)]
    for i, stride in enumerate(strides):
        block = f"body.{i}"
        y = conv(f"{block}.res_layer.1", norm(f"{block}.res_layer.0", x))
        y = prelu(f"{block}.res_layer.3", norm(f"{block}.res_layer.2", y))
        y = norm(f"{block}.res_layer.5", conv(f"{block}.res_layer.4", y, stride))
        if f"{block}.shortcut_layer.0.weight" in w:
            shortcut = conv(f"{block}.shortcut_layer.0", x, stride)
            x = norm(f"{block}.shortcut_layer.1", shortcut)
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + y
    x = norm("output_layer.0", x).reshape(len(x), -1)
    x = x @ w["output_layer.3.weight"].T + w["output_layer.3.bias"]
    return norm("output_layer.4", x)


def test_equals_its_definition(rng):
    backbone = create_backbone("ir18", width=WIDTH, embedding_dim=DIM)
    module = backbone.module.clone(blocks=BLOCKS)
    backbone = dataclasses.replace(backbone, module=module)
    weights = weights_of(rng)
    params, stats = to_flax(backbone, SIZE, weights)
    images = rng.uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    got, _ = jax.jit(lambda x: backbone.apply(params, stats, x, train=False))(images)
    want = forward(weights, images.astype(np.float64).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    back = to_torch(backbone, SIZE, params, stats)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ir18", 24020352),
        ("ir34", 34134080),
        ("ir50", 43585600),
        ("ir100", 65150912),
    ],
)
def test_counts_are_those_of_the_official_networks(name, count):
    """Counted by PyTorch in AdaFace's IR_18, IR_34, IR_50 and IR_101."""
    backbone = create_backbone(name)
    params, _ = jax.eval_shape(lambda k: backbone.init(k, 112), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
