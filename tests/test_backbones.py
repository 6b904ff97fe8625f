"""Backbones against the peers' own outputs, and how they train."""

import dataclasses
import functools
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla

from hyperface_jax import sharding
from hyperface_jax.backbones import BACKBONES, create_backbone
from hyperface_jax.backbones.torch_names import to_flax, to_torch

KEY = jax.random.key(0)

# Million parameters (SPEC section 3); the older layout has those without BatchNorm.
MILLIONS = {
    "sfnet4": 14.397,
    "sfnet10": 17.052,
    "sfnet20": 24.501,
    "sfnet36": 34.605,
    "sfnet64": 50.021,
    "sfnet4_bn": 14.399,
    "sfnet10_bn": 17.055,
    "sfnet20_bn": 24.507,
    "sfnet36_bn": 34.615,
    "sfnet64_bn": 50.037,
    "iresnet18": 24.03,
    "iresnet34": 34.14,
    "iresnet50": 43.59,
    "iresnet100": 65.16,
    "iresnet200": 118.83,
    "ir18": 24.02,
    "ir34": 34.13,
    "ir50": 43.59,
    "ir100": 65.15,
    "mbf": 2.06,
    "mbf_large": 6.31,
    "vit_t": 19.14,
    "vit_s": 76.02,
    "vit_b": 113.83,
    "vit_l": 255.68,
    "vit_h": 756.39,
}


def shapes(backbone, image_size):
    return jax.eval_shape(lambda key: backbone.init(key, image_size), KEY)


def filled(backbone, image_size, seed=0):
    """(params, batch_stats) of plausible NumPy values; compiles no initialiser."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            value = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            name = path[-1].key
            centre = {"bias": 0, "mean": 0, "scale": 1, "var": 1, "slope": 0.25}[name]
            value = centre + 0.05 * noise
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes(backbone, image_size))


def short(backbone):
    """The same network with few residual blocks: less to compile."""
    if backbone.name.startswith("vit"):
        change = {"depth": 2}
    elif backbone.name.startswith("sfnet"):
        change = {"blocks": (0, 1, 0, 0)}
    else:
        change = {"blocks": (1, 1, 1, 1)}
    return dataclasses.replace(backbone, module=backbone.module.clone(**change))


def images_of(batch, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def structure(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_counts(name):
    params, batch_stats = shapes(create_backbone(name), 112)
    millions = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    expected = MILLIONS[name.removesuffix("_deprecated")]
    decimals = 3 if name.startswith("sfnet") else 2
    assert round(millions, decimals) == expected
    without_norm = name.startswith("sfnet") and not name.endswith("_bn")
    assert bool(batch_stats) == (not without_norm)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def oracle_weights(parameters, prelu):
    """The rule of oracles/README.md: values from names."""
    weights = {}
    for name, shape in parameters.items():
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            value = np.zeros(())
        elif name.endswith("running_var"):
            value = 0.5 + np.abs(z)
        elif name.endswith("running_mean"):
            value = 0.1 * z
        elif len(shape) >= 2:
            value = z / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("bias"):
            value = 0.1 * z
        elif name in prelu:
            value = 0.25 + 0.05 * z
        else:
            value = 1 + 0.1 * z
        weights[name] = np.asarray(value, np.float32)
    return weights


@pytest.mark.parametrize(
    ("oracle", "name"),
    [
        ("opensphere/sfnet4", "sfnet4"),
        ("opensphere/sfnet20_bn", "sfnet20_bn"),
        ("opensphere/sfnet20_deprecated", "sfnet20_deprecated"),
        ("insightface/iresnet18", "iresnet18"),
        ("insightface/mobilefacenet", "mbf"),
        ("insightface/vit_t", "vit_t"),
    ],
)
def test_equals_the_official_networks(shared, oracle, name):
    facts = json.loads(shared("oracles/backbones.json").read_text())[oracle]
    with np.load(shared("oracles/backbones.npz")) as outputs:
        expected = outputs[oracle]
    backbone = create_backbone(name)
    weights = oracle_weights(dict(facts["parameters"]), set(facts["prelu"]))
    params, batch_stats = to_flax(backbone, 112, weights)
    assert sum(p.size for p in jax.tree.leaves(params)) == facts["trainable"]

    images = np.random.RandomState(0).uniform(-1, 1, (2, 3, 112, 112))
    images = images.astype(np.float32).transpose(0, 2, 3, 1)
    embeddings, _ = jax.jit(lambda p, s, x: backbone.apply(p, s, x, train=False))(
        params, batch_stats, images
    )
    error = np.linalg.norm(embeddings - expected) / np.linalg.norm(expected)
    assert error < 1e-5
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * np.abs(expected).max())

    back = to_torch(backbone, 112, params, batch_stats)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    "name", ["sfnet10", "sfnet10_bn", "iresnet18", "ir18", "mbf_large", "vit_t"]
)
def test_names_survive_the_round_trip(name):
    backbone = create_backbone(name, width=4, embedding_dim=6)
    trees = filled(backbone, 48)
    state_dict = to_torch(backbone, 48, *trees)
    back = to_flax(backbone, 48, state_dict)
    assert structure(back) == structure(trees)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, trees))
    # Old PyTorch has no counters.
    old = {k: v for k, v in state_dict.items() if not k.endswith("tracked")}
    assert structure(to_flax(backbone, 48, old)) == structure(trees)


def test_wrong_state_dicts_are_named():
    backbone = create_backbone("iresnet18", width=2, embedding_dim=3)
    good = to_torch(backbone, 32, *filled(backbone, 32))
    cases = [
        ({"fc.bias": None}, "does not fit iresnet18: missing fc.bias"),
        ({"head.w": np.zeros(3)}, "does not fit iresnet18: superfluous head.w"),
        (
            {"layer1.0.conv1.weight": np.zeros((2, 2, 1, 1))},
            "layer1.0.conv1.weight is [2, 2, 1, 1], iresnet18 for 32x32 images "
            "expects [2, 2, 3, 3]",
        ),
    ]
    for change, message in cases:
        bad = {k: v for k, v in (good | change).items() if v is not None}
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            to_flax(backbone, 32, bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape("fc.weight is [3, 64]")):
        to_flax(backbone, 48, good)
    params, batch_stats = filled(backbone, 32)
    del params["prelu"]
    with pytest.raises(ValueError, match="missing prelu/slope"):
        to_torch(backbone, 32, params, batch_stats)


@pytest.mark.parametrize("name", ["sfnet10_bn", "iresnet18", "ir18", "mbf", "vit_t"])
def test_a_network_of_groups_is_two_networks(rng, name):
    """Every BatchNorm of a network follows the choice."""
    images = jnp.asarray(rng.uniform(-1, 1, (8, 32, 32, 3)), jnp.float32)
    whole = short(create_backbone(name, width=4, embedding_dim=8, batch_norm_group=4))
    half = short(create_backbone(name, width=4, embedding_dim=8))
    params, stats = filled(half, 32)
    got, _ = jax.jit(lambda x: whole.apply(params, stats, x, train=True))(images)
    alone = jax.jit(lambda x: half.apply(params, stats, x, train=True))
    want = jnp.concatenate([alone(images[:4])[0], alone(images[4:])[0]])
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    together, _ = alone(images)
    assert np.abs(together - want).max() > 0.01


@pytest.mark.parametrize(("group", "travels"), [(0, True), (4, False), (2, False)])
def test_statistics_of_groups_within_a_device_do_not_travel(group, travels):
    """Global statistics cost an all-reduce a layer; those of a device's rows none."""
    backbone = create_backbone(
        "sfnet10_bn", width=4, embedding_dim=8, batch_norm_group=group
    )
    mesh = sharding.make_mesh(1, jax.devices()[:4])
    params, stats = jax.eval_shape(lambda: backbone.init(KEY, 32))
    images = jax.ShapeDtypeStruct(
        (16, 32, 32, 3), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )

    def embed(params, stats, x):
        return backbone.apply(params, stats, x, train=True)[0]

    program = jax.jit(embed, out_shardings=sharding.batch_sharding(mesh))
    text = program.lower(params, stats, images).compile().as_text()
    assert ("all-reduce" in text) == travels


def kept(backbone, images):
    """Arrays [B, ...] that the backward pass keeps of the forward pass."""
    params, stats = jax.eval_shape(lambda k: backbone.init(k, image_size=32), KEY)

    def vjp(params, stats):
        return jax.vjp(
            lambda p: backbone.apply(p, stats, images, train=True)[0], params
        )

    leaves = jax.tree.leaves(jax.eval_shape(vjp, params, stats)[1])
    return [leaf for leaf in leaves if leaf.shape[:1] == (len(images),)]


def test_the_backward_pass_keeps_maps_in_bfloat16_only():
    backbone = create_backbone("iresnet18", width=4, embedding_dim=8, dtype="bfloat16")
    maps = [
        leaf for leaf in kept(backbone, jnp.zeros((2, 32, 32, 3))) if leaf.ndim == 4
    ]
    assert {leaf.dtype for leaf in maps} == {jnp.dtype("bfloat16")}
    # Of a block its input, what enters and leaves both convolutions, and no more.
    blocks, with_shortcut = 8, 4
    assert len(maps) == 3 + 5 * blocks + with_shortcut


@pytest.mark.parametrize("name", ["sfnet10_bn", "iresnet18", "ir18", "mbf", "vit_t"])
def test_rematerialised_blocks_give_the_same_gradient_from_less(name, rng):
    images = rng.uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    results, sizes = [], []
    for remat in (False, True):
        backbone = create_backbone(name, width=4, embedding_dim=8, remat=remat)
        backbone = backbone if name == "sfnet10_bn" else short(backbone)
        params, stats = filled(backbone, 32)

        @functools.partial(jax.jit, compiler_options=xla.AS_USERS)
        @jax.value_and_grad
        def loss(params, backbone=backbone, stats=stats):
            embeddings, new = backbone.apply(params, stats, images, train=True)
            return jnp.sum(jnp.sin(embeddings)) + sum(
                map(jnp.sum, jax.tree.leaves(new))
            )

        results.append(loss(params))
        sizes.append(
            sum(leaf.size * leaf.dtype.itemsize for leaf in kept(backbone, images))
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results
    )
    assert sizes[1] < 0.7 * sizes[0]


def test_initial_values_have_the_published_spread():
    """Xavier, He (fan out), N(0, .1), N(0, .02); the rest as PyTorch's defaults."""

    def init(name, *paths):
        backbone = create_backbone(name, width=16, embedding_dim=32)

        @jax.jit  # leaves that are not returned are not computed
        def leaves(key):
            params, _ = backbone.init(key, 32)
            flat = {"/".join(k.key for k in p): v for p, v in path_leaves(params)}
            return [flat[path] for path in paths]

        return [np.asarray(leaf) for leaf in leaves(KEY)]

    path_leaves = jax.tree_util.tree_leaves_with_path
    kernel = "layer3_0/conv1/kernel"
    xavier, conv_bias = init("sfnet10_deprecated", kernel, "layer3_0/conv1/bias")
    he, fc_kernel, fc_bias = init("sfnet10", kernel, "fc/kernel", "fc/bias")
    normal, scale, slope = init(
        "iresnet18", kernel, "features/scale", "layer2_0/prelu/slope"
    )
    assert np.std(xavier) == pytest.approx(np.sqrt(2 / (9 * (32 + 64))), rel=0.03)
    assert np.std(he) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
    assert np.std(normal) == pytest.approx(0.1, rel=0.03)
    for values, fan_in in (
        (conv_bias, 9 * 32),
        (fc_kernel, 2 * 2 * 128),
        (fc_bias, 2 * 2 * 128),
    ):
        bound = 1 / np.sqrt(fan_in)
        assert 0.8 * bound < np.abs(values).max() <= bound
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_array_equal(slope, 0.25)

    grouped, dense = init("mbf", "layers_1/layers_0/kernel", "features/layers_2/kernel")
    he_linear, zero = init("ir18", "output_layer_3/kernel", "output_layer_3/bias")
    # A fan out is that of all groups together.
    assert np.std(grouped) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.06)
    assert np.std(dense) == pytest.approx(np.sqrt(2 / 32), rel=0.03)
    assert np.std(he_linear) == pytest.approx(np.sqrt(2 / 32), rel=0.03)
    np.testing.assert_array_equal(zero, 0)
    patch, *small = init(
        "vit_t",
        "patch_embed/proj/kernel",
        "blocks_0/attn/qkv/kernel",
        "feature_0/kernel",
        "pos_embed",
    )
    assert 0.98 / np.sqrt(243) < np.abs(patch).max() <= 1 / np.sqrt(243)
    for values in small:
        assert np.std(values) == pytest.approx(0.02, rel=0.06)


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("sfnet4", "float32", 64),
        ("sfnet4_bn", "float32", 64),
        ("sfnet4_bn", "bfloat16", 48),
        ("sfnet4_deprecated", "bfloat16", 48),
        ("iresnet18", "bfloat16", 32),
        ("ir18", "bfloat16", 32),
        ("mbf", "bfloat16", 48),
        ("mbf_large", "float32", 32),
        ("vit_t", "bfloat16", 40),
    ],
)
def test_training_keeps_structure_and_dtypes(name, dtype, size):
    """Narrow, at other sizes, in both precisions, with an unreadable image, jitted."""
    backbone = short(create_backbone(name, width=4, embedding_dim=8, dtype=dtype))
    params, batch_stats = filled(backbone, size)
    weight = jnp.array([1.0, 1.0, 0.0])

    @jax.jit
    def gradients(params, batch_stats, images):
        def loss(params):
            embeddings, new = backbone.apply(
                params, batch_stats, images, train=True, weight=weight
            )
            return jnp.sum(weight[:, None] * embeddings**2), (embeddings, new)

        return jax.grad(loss, has_aux=True)(params)

    grads, (embeddings, new) = gradients(params, batch_stats, images_of(3, size))
    assert embeddings.shape == (3, 8)
    assert embeddings.dtype == jnp.float32
    assert structure(new) == structure(batch_stats)
    assert structure(grads) == structure(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if not batch_stats:
        assert new == {}
    for path in backbone.frozen:
        leaf = grads
        for key in path:
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, 0)
    if dtype == "bfloat16":
        full = short(create_backbone(name, width=4, embedding_dim=8))
        evaluate = lambda b: jax.jit(  # noqa: E731
            lambda p, s, x: b.apply(p, s, x, train=False)[0]
        )(params, batch_stats, images_of(3, size))
        want, got = evaluate(full), evaluate(backbone)
        assert got.dtype == jnp.float32
        assert 0 < np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("sfnet10", "dropout"),
        ("sfnet10", "drop_path"),
        ("ir18", "drop_path"),
        ("mbf_large", "drop_path"),
        ("vit_t", "dropout"),
        ("vit_t", "drop_path"),
        ("vit_t", "mask_ratio"),
    ],
)
def test_random_parts_need_a_key_and_sleep_in_evaluation(name, option):
    plain = create_backbone(name, width=4, embedding_dim=8)
    noisy = create_backbone(name, width=4, embedding_dim=8, **{option: 0.5})
    if name != "sfnet10":  # one residual block would have rate 0
        plain, noisy = short(plain), short(noisy)
    params, stats = filled(plain, 32)
    images = images_of(4, 32)
    with pytest.raises(ValueError, match="training needs a key"):
        noisy.apply(params, stats, images, train=True)

    def embed(backbone, train, seed=None):
        run = jax.jit(
            lambda key: backbone.apply(params, stats, images, train=train, key=key)[0]
        )
        return np.asarray(run(None if seed is None else jax.random.key(seed)))

    np.testing.assert_array_equal(embed(noisy, False), embed(plain, False))
    if not stats:
        np.testing.assert_array_equal(embed(plain, True), embed(plain, False))
    np.testing.assert_array_equal(embed(noisy, True, 1), embed(noisy, True, 1))
    assert np.abs(embed(noisy, True, 1) - embed(noisy, True, 2)).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet50"}, "backbone is 'resnet50', expected one of sfnet4, "),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of float32, bfloat16"),
        ({"width": 0}, "width is 0, expected at least 1"),
        ({"drop_path": 1.0}, "drop_path is 1.0, expected at least 0 and below 1"),
        ({"mask_ratio": 0.1}, "mask_ratio is 0.1, expected 0: sfnet4 has no tokens"),
        (
            {"name": "vit_t", "mask_ratio": -0.1},
            "mask_ratio is -0.1, expected at least 0 and below 1",
        ),
        (
            {"name": "vit_t", "width": 3},
            "width is 3, which makes 12 channels a token, expected a multiple of the 8",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_backbone(**({"name": "sfnet4"} | arguments))


def test_wrong_images():
    backbone = create_backbone("sfnet4", width=2, embedding_dim=4)
    with pytest.raises(ValueError, match="100x100, expected multiples of 16"):
        backbone.init(KEY, 100)
    params, _ = filled(backbone, 32)
    cases = [
        (np.zeros((1, 3, 32, 32), "f4"), {}, "images are [1, 3, 32, 32], expected [B,"),
        (np.zeros((1, 32, 32, 3), "u1"), {}, "images are uint8, expected floating"),
        (np.zeros((1, 40, 40, 3), "f4"), {}, "40x40, expected multiples of 16"),
        (np.zeros((1, 64, 64, 3), "f4"), {}, "64x64, 16 pixels of the last map, the"),
        (np.zeros((2, 32, 32, 3), "f4"), {"weight": jnp.ones(1)}, "weight is [1]"),
    ]
    for images, keywords, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            backbone.apply(params, {}, images, train=True, **keywords)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_t", (8, 8), "image size is 8x8, expected at least 9"),
        (
            "vit_t",
            (32, 40),
            "32x40, 12 pixels of the last map, the parameters of vit_t",
        ),
        ("mbf", (40, 40), "image size is 40x40, expected multiples of 16"),
        ("mbf", (48, 48), "48x48, 9 pixels of the last map, the parameters of mbf are"),
        ("mbf", (16, 64), "images are 16x64, expected squares"),
    ],
)
def test_images_that_the_last_layer_is_not_for(name, shape, message):
    backbone = create_backbone(name, width=2, embedding_dim=4)
    params, stats = shapes(backbone, 32)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            lambda p, s: backbone.apply(p, s, jnp.zeros((1, *shape, 3)), train=False),
            params,
            stats,
        )
