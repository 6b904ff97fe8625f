"""Layers of the backbones against NumPy and against their own parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import sharding
from hyperface_jax.backbones.batch_norm import BatchNorm
from hyperface_jax.backbones.layers import Conv, DropPath, PReLU, drop_path_rates, relu

KEY = jax.random.key(0)


def batch_norm_reference(x, weight, variables, momentum=0.9, epsilon=1e-5):
    """(output, running mean, running var) in float64."""
    x = x.astype(np.float64)
    params, stats = variables["params"], variables["batch_stats"]
    values = x[weight > 0].reshape(-1, x.shape[-1])
    mean, var = values.mean(0), values.var(0)
    y = (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]
    new_mean = momentum * stats["mean"] + (1 - momentum) * mean
    new_var = momentum * stats["var"] + (1 - momentum) * values.var(0, ddof=1)
    return y, new_mean, new_var


def batch_norm_variables(rng, channels):
    draw = lambda centre: (centre + 0.2 * rng.standard_normal(channels)).astype("f4")  # noqa: E731
    return {
        "params": {"scale": draw(1), "bias": draw(0)},
        "batch_stats": {"mean": draw(0), "var": draw(1)},
    }


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (8, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_batch_norm_in_training(rng, shape, weighted):
    x = (3 + 2 * rng.standard_normal(shape)).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    weight = np.ones(shape[0], np.float32)
    if weighted:
        weight[[0, 2]] = 0
        x[2] = 1e4
    y, changed = BatchNorm().apply(
        variables,
        x,
        train=True,
        weight=jnp.asarray(weight) if weighted else None,
        mutable=["batch_stats"],
    )
    expected, mean, var = batch_norm_reference(x, weight, variables)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], var, rtol=1e-5)


def test_batch_norm_in_evaluation(rng):
    x = rng.standard_normal((4, 2, 2, 3)).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    params, stats = variables["params"], variables["batch_stats"]
    y = BatchNorm().apply(variables, x, train=False)
    expected = (x - stats["mean"].reshape(1, 1, 1, 3)) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_gradient_ignores_unreadable_images(rng):
    """Same gradients as without those images, even where they hold NaN."""
    x = rng.standard_normal((5, 4, 4, 3)).astype(np.float32)
    factor = rng.standard_normal((3, 4, 4, 3)).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    keep = np.array([0, 1, 3])

    def loss(params, x, weight, rows):
        y, _ = BatchNorm().apply(
            variables | {"params": params},
            x,
            train=True,
            weight=weight,
            mutable=["batch_stats"],
        )
        return jnp.sum(factor * y[rows] ** 2)

    grad = jax.grad(loss, argnums=(0, 1))
    _, expected_dx = grad(variables["params"], x[keep], None, np.arange(3))
    weight = jnp.array([1.0, 1, 0, 1, 0])
    corrupt = x.copy()
    corrupt[[2, 4]] = 1e6
    _, dx = grad(variables["params"], corrupt, weight, keep)
    np.testing.assert_allclose(dx[keep], expected_dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dx[np.array([2, 4])], 0)
    corrupt[[2, 4]] = np.nan
    _, changed = BatchNorm().apply(
        variables, corrupt, train=True, weight=weight, mutable=["batch_stats"]
    )
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(changed))


def batch_norm_in_float64(x, weight, groups, scale, bias, slope):
    """Group by group, from the definition; JAX differentiates it."""
    outputs = []
    for part, kept in zip(
        np.split(np.arange(len(x)), groups), np.split(weight > 0, groups), strict=True
    ):
        values = x[part][kept].reshape(-1, x.shape[-1])
        mean = jnp.mean(values, axis=0)
        var = jnp.mean((values - mean[None]) ** 2, axis=0)
        around = (1,) * (x.ndim - 1) + (-1,)
        y = (x[part] - mean.reshape(around)) / jnp.sqrt(var + 1e-5).reshape(around)
        outputs.append(y * scale.reshape(around) + bias.reshape(around))
    y = jnp.concatenate(outputs)
    return y if slope is None else jnp.where(y > 0, y, slope.reshape(around) * y)


MAPS, VECTORS = (6, 5, 4, 3), (6, 3)
ALL, SOME = [1, 1, 1, 1, 1, 1], [1, 0, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("shape", "slope", "weight", "groups"),
    [
        (MAPS, None, ALL, 1),
        (MAPS, 0.0, SOME, 1),
        (MAPS, [0.25, -0.5, 1.5], SOME, 2),
        (VECTORS, None, ALL, 2),
        (VECTORS, [0.25, -0.5, 1.5], SOME, 1),
    ],
)
def test_batch_norm_gradients_against_float64(rng, shape, slope, weight, groups):
    """Examples of weight 0 are normalised all the same, and move no statistics."""
    x = (3 + 2 * rng.standard_normal(shape)).astype(np.float32)
    factor = rng.standard_normal(shape).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    weight = np.array(weight, np.float32)
    module = BatchNorm(group=shape[0] // groups if groups > 1 else 0)

    def ours(x, scale, bias, slope):
        y, _ = module.apply(
            variables | {"params": {"scale": scale, "bias": bias}},
            x,
            train=True,
            weight=jnp.asarray(weight),
            slope=slope,
            mutable=["batch_stats"],
        )
        return jnp.sum(factor * y)

    slopes = None if slope is None else np.broadcast_to(np.float32(slope), 3)
    chosen = (0, 1, 2) if slope is None else (0, 1, 2, 3)
    found = jax.jit(jax.grad(ours, chosen))(x, scale, bias, slopes)
    with jax.enable_x64(True):
        wide = [None if v is None else jnp.float64(v) for v in (x, scale, bias, slopes)]
        of_sum = lambda x, *rest: jnp.sum(  # noqa: E731
            jnp.float64(factor) * batch_norm_in_float64(x, weight, groups, *rest)
        )
        expected = jax.jit(jax.grad(of_sum, chosen))(*wide)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_batch_norm_keeps_its_input_and_nothing_else(rng):
    """What a backward pass needs of a feature map is in the dtype it came in."""
    variables = batch_norm_variables(rng, 3)
    x = jnp.asarray(rng.standard_normal((8, 6, 6, 3)), jnp.bfloat16)

    def kept(x):
        return jax.vjp(
            lambda x: BatchNorm().apply(
                variables, x, train=True, slope=0.25, mutable=["batch_stats"]
            )[0],
            x,
        )[1]

    large = [a for a in jax.tree.leaves(jax.eval_shape(kept, x)) if a.size >= x.size]
    assert [(a.shape, a.dtype) for a in large] == [(x.shape, x.dtype)]


def test_batch_norm_without_any_readable_image(rng):
    variables = batch_norm_variables(rng, 3)
    y, changed = BatchNorm().apply(
        variables,
        jnp.zeros((4, 2, 2, 3)),
        train=True,
        weight=jnp.zeros(4),
        mutable=["batch_stats"],
    )
    assert np.isfinite(y).all()
    for name, value in variables["batch_stats"].items():
        np.testing.assert_array_equal(changed["batch_stats"][name], value)


def test_batch_norm_far_from_zero(rng):
    """One pass over the data must not cancel once the running mean is near."""
    x = (1000 + 0.1 * rng.standard_normal((64, 8, 8, 2))).astype(np.float32)
    variables = batch_norm_variables(rng, 2)
    variables["batch_stats"]["mean"] = np.full(2, 999.9, np.float32)
    y, _ = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    expected, _, _ = batch_norm_reference(x, np.ones(64), variables)
    np.testing.assert_allclose(y, expected, atol=2e-3)


@pytest.mark.parametrize("unreadable", [[], [1], [3, 4, 5]])
def test_batch_norm_of_groups_is_that_of_separate_devices(rng, unreadable):
    """Outputs of each part alone; running values: the mean of what the parts keep."""
    x = (3 + 2 * rng.standard_normal((6, 4, 4, 3))).astype(np.float32)
    weight = np.ones(6, np.float32)
    weight[unreadable] = 0
    variables = batch_norm_variables(rng, 3)

    def run(module, rows):
        return module.apply(
            variables,
            x[rows],
            train=True,
            weight=jnp.asarray(weight[rows]),
            mutable=["batch_stats"],
        )

    y, changed = run(BatchNorm(group=3), slice(0, 6))
    parts = [run(BatchNorm(), slice(0, 3)), run(BatchNorm(), slice(3, 6))]
    np.testing.assert_allclose(
        y, np.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-5
    )
    kept = [part["batch_stats"] for _, part in parts[: 1 if 5 in unreadable else 2]]
    for name in ("mean", "var"):
        want = np.mean([stats[name] for stats in kept], axis=0)
        np.testing.assert_allclose(changed["batch_stats"][name], want, rtol=1e-5)


def test_batch_norm_on_two_devices_is_pytorchs(rng):
    """Two devices of 64 images: each is normalised apart, gradients are averaged."""
    torch = pytest.importorskip("torch")
    x = (3 * rng.standard_normal((128, 5, 4, 6)) + 1).astype("f4")
    toward = rng.standard_normal(x.shape).astype("f4")
    ours = batch_norm_variables(rng, x.shape[-1])
    outputs, of_x, of_parameters, running = [], [], [], []
    for half in (slice(0, 64), slice(64, 128)):
        layer = torch.nn.BatchNorm2d(x.shape[-1])
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(ours["params"]["scale"]))
            layer.bias.copy_(torch.tensor(ours["params"]["bias"]))
            layer.running_mean.copy_(torch.tensor(ours["batch_stats"]["mean"]))
            layer.running_var.copy_(torch.tensor(ours["batch_stats"]["var"]))
        images = torch.tensor(x[half].transpose(0, 3, 1, 2), requires_grad=True)
        y = layer(images)
        # The mean over the images of a device, as its loss takes it.
        (y * torch.tensor(toward[half].transpose(0, 3, 1, 2))).sum().div(64).backward()
        outputs.append(y.detach().numpy().transpose(0, 2, 3, 1))
        of_x.append(images.grad.numpy().transpose(0, 2, 3, 1) / 2)
        of_parameters.append([layer.weight.grad.numpy(), layer.bias.grad.numpy()])
        running.append([layer.running_mean.numpy(), layer.running_var.numpy()])

    where = sharding.batch_sharding(sharding.make_mesh(1, jax.devices()[:2]))
    module = BatchNorm(group=64)

    @jax.jit
    def loss(params, x, toward):
        variables = {"params": params, "batch_stats": ours["batch_stats"]}
        y, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * toward) / 128, (y, changed["batch_stats"])

    (_, (y, stats)), (params, images) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(ours["params"], *(jax.device_put(a, where) for a in (x, toward)))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(y, np.concatenate(outputs), **close)
    np.testing.assert_allclose(images, np.concatenate(of_x), rtol=1e-3, atol=1e-6)
    for name, theirs in zip(("scale", "bias"), np.mean(of_parameters, 0), strict=True):
        np.testing.assert_allclose(params[name], theirs, **close)
    for name, theirs in zip(("mean", "var"), np.mean(running, 0), strict=True):
        np.testing.assert_allclose(stats[name], theirs, **close)


def test_a_group_that_does_not_divide_the_batch(rng):
    variables = batch_norm_variables(rng, 3)
    with pytest.raises(ValueError, match="group is 4, expected a divisor of the 6"):
        BatchNorm(group=4).apply(
            variables, jnp.zeros((6, 3)), train=True, mutable=["batch_stats"]
        )


def test_batch_norm_refuses_a_single_value():
    module = BatchNorm()
    variables = module.init(KEY, jnp.zeros((1, 3)), train=False)
    with pytest.raises(ValueError, match="1 value a channel"):
        module.apply(variables, jnp.zeros((1, 3)), train=True, mutable=["batch_stats"])


def test_frozen_scale_gets_no_gradient(rng):
    x = rng.standard_normal((4, 3)).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    for frozen in (False, True):
        module = BatchNorm(frozen_scale=frozen)
        params = variables["params"]
        _, vjp = jax.vjp(
            lambda p, m=module: m.apply({**variables, "params": p}, x, train=False),
            params,
        )
        (grads,) = vjp(jnp.ones_like(x))
        assert (np.abs(grads["scale"]).max() == 0) == frozen
        assert np.abs(grads["bias"]).max() > 0


def test_prelu_has_one_slope_a_channel():
    x = jnp.array([[-1.0, -2.0], [3.0, 4.0]])
    initial = PReLU().init(KEY, 2)["params"]["slope"]
    np.testing.assert_array_equal(initial, [0.25, 0.25])
    slope = PReLU().apply({"params": {"slope": jnp.array([0.1, -0.5])}}, 2)
    identity = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    y = BatchNorm(epsilon=0.0).apply(
        variables | {"batch_stats": identity}, x, train=False, slope=slope
    )
    np.testing.assert_allclose(y, [[-0.1, 1.0], [3.0, 4.0]])


def test_relu_is_jax_s_and_does_not_hide_nan():
    x = jnp.array([-1.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    slope = jax.grad(lambda x: jnp.sum(relu(x)))(x[:3])
    np.testing.assert_array_equal(slope, [0, 0, 1])


def test_strided_convolution_pads_both_sides():
    """PyTorch's padding 1 and not "SAME", which would pad the end only."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)  # looks one up and one left
    y = Conv(1, stride=2).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 0], [0, 5]])


def test_convolution_in_groups(rng):
    """Each group is a convolution of its own channels, here without padding."""
    x = rng.standard_normal((2, 5, 5, 6)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 2, 9)).astype(np.float32)
    conv = Conv(9, padding=0, groups=3)
    y = conv.apply({"params": {"kernel": kernel}}, x)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = [
        np.einsum(
            "bhwcij,ijco->bhwo",
            windows[:, :, :, 2 * g : 2 * g + 2],
            kernel[..., 3 * g : 3 * g + 3],
        )
        for g in range(3)
    ]
    np.testing.assert_allclose(y, np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)
    init = conv.init(KEY, x)["params"]["kernel"]
    assert init.shape == kernel.shape


def test_drop_path_drops_whole_examples():
    assert drop_path_rates(0.4, 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(0.4, 0) == []
    x = jnp.ones((4000, 2, 1))
    module = DropPath(0.25)
    assert module.apply({}, x, train=False) is x
    y = module.apply({}, x, train=True, rngs={"dropout": KEY})
    np.testing.assert_array_equal(y[:, :1], y[:, 1:])
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert np.mean(y) == pytest.approx(1, abs=0.03)
