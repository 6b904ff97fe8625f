"""PyTorch's SGD rule, masks, clips and factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from hyperface_jax import geometry, optimizer
from hyperface_jax.backbones import create_backbone

pytestmark = pytest.mark.core


def params_and_gradients(rng, steps=4):
    shapes = {"backbone": {"w": (3, 2), "b": (2,), "f": (2,)}, "prototypes": (5, 2)}

    def draw():
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    return draw(), [draw() for _ in range(steps)]


def run(params, gradients, prototype_norm="differentiate", **options):
    settings = dict(
        learning_rate=lambda step: 0.1 / (1 + step),
        backbone=optimizer.PartSettings(weight_decay=0.01),
        prototypes=optimizer.PartSettings(weight_decay=0.02, learning_rate_factor=3.0),
    )
    tx = optimizer.make_optimizer("sgd", **(settings | options))
    state = tx.init(params)
    for gradient in gradients:
        params, state = optimizer.update(
            tx, gradient, state, params, prototype_norm=prototype_norm
        )
    return params


def test_sgd_is_pytorchs(rng):
    params, gradients = params_and_gradients(rng)
    got = run(params, gradients)
    for get, decay, factor in (
        (lambda t: t["backbone"]["w"], 0.01, 1.0),
        (lambda t: t["prototypes"], 0.02, 3.0),
    ):
        value, buffer = np.asarray(get(params), np.float64), None
        for step, gradient in enumerate(gradients):
            value, buffer = reference.sgd(
                value,
                np.asarray(get(gradient), np.float64),
                buffer,
                lr=factor * 0.1 / (1 + step),
                momentum=0.9,
                weight_decay=decay,
            )
        np.testing.assert_allclose(get(got), value, rtol=1e-5)


@pytest.mark.parametrize("jitted", [False, True])
def test_back_to_the_sphere_and_rows_that_stay(rng, jitted):
    """The update, then the norm; and to the bit nothing where it is refused."""
    params, (gradient, *_) = params_and_gradients(rng)
    zero = jnp.zeros((1, 2))  # padding
    params["prototypes"] = jnp.concatenate([params["prototypes"] / 3, zero])
    gradient["prototypes"] = jnp.concatenate([gradient["prototypes"], zero])
    part = optimizer.PartSettings(weight_decay=0.01)
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=lambda step: 0.1, backbone=part, prototypes=part
    )

    def update(state, params, norm, ok):
        arguments = (tx, gradient, state, params)
        return optimizer.update(*arguments, prototype_norm=norm, ok=ok)

    if jitted:
        update = jax.jit(update, static_argnums=2)
    old = params, tx.init(params)
    free, free_state = update(old[1], params, "differentiate", True)
    got, state = update(old[1], params, "project", True)
    np.testing.assert_allclose(
        got["prototypes"], geometry.l2_normalize(free["prototypes"]), rtol=1e-6
    )
    np.testing.assert_array_equal(got["prototypes"][-1], 0)
    jax.tree.map(
        np.testing.assert_array_equal,
        (got["backbone"], state),
        (free["backbone"], free_state),
    )
    refused = update(old[1], params, "project", jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, refused, old)


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_decay_masks_and_frozen_parameters(rng):
    params, _ = params_and_gradients(rng)
    part = optimizer.PartSettings(weight_decay=0.5, decay_mask="matrices")
    got = run(params, [zeros(params)], backbone=part)
    assert (got["backbone"]["w"] != params["backbone"]["w"]).all()
    np.testing.assert_array_equal(got["backbone"]["b"], params["backbone"]["b"])
    part = optimizer.PartSettings(weight_decay=0.5)
    got = run(params, [zeros(params)], backbone=part, frozen=(("f",),))
    assert (got["backbone"]["b"] != params["backbone"]["b"]).all()
    np.testing.assert_array_equal(got["backbone"]["f"], params["backbone"]["f"])


def test_no_norm_spares_batch_norm_alone():
    backbone = create_backbone("ir18", width=4, embedding_dim=8)
    weights, batch_stats = backbone.init(jax.random.key(0), 32)
    # BatchNorm's new bias is 0, which decay would leave as it is.
    params = {"backbone": jax.tree.map(lambda w: w + 1, weights)}
    params["prototypes"] = jnp.ones((2, 8))
    part = optimizer.PartSettings(weight_decay=0.5, decay_mask="no_norm")
    got = run(params, [zeros(params)], backbone=part)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), got, params)
    flat = jax.tree_util.tree_leaves_with_path
    has_statistics = {path[:-1] for path, _ in flat(batch_stats)}
    decayed = {path: value for path, value in flat(moved["backbone"])}
    assert decayed == {path: path[:-1] not in has_statistics for path in decayed}
    assert {path[-1].key for path, value in decayed.items() if value} == {
        "kernel",
        "slope",
        "bias",  # of the linear layer
    }


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_clipping_of_all_and_of_a_part(rng, name):
    params, (gradient, *_) = params_and_gradients(rng)
    plain = optimizer.PartSettings(weight_decay=0.0)
    clipped = optimizer.PartSettings(weight_decay=0.0, clip_norm=0.1)

    def moved(**options):
        tx = optimizer.make_optimizer(
            name,
            learning_rate=lambda step: 1.0,
            **(dict(backbone=plain, prototypes=plain) | options),
        )
        updates, _ = tx.update(gradient, tx.init(params), params)
        return {k: float(optimizer.global_norm(v)) for k, v in updates.items()}

    if name == "sgd":
        total = moved(clip_norm=0.3)
        assert np.hypot(*total.values()) == pytest.approx(0.3, rel=1e-5)
        part = moved(backbone=clipped)
        assert part["backbone"] == pytest.approx(0.1, rel=1e-5)
        assert part["prototypes"] == pytest.approx(moved()["prototypes"])
    else:
        # Adam's first step is the sign of the gradient, whatever its size.
        assert moved(backbone=clipped) == pytest.approx(moved(), rel=1e-3)


def test_project_returns_to_the_sphere(rng):
    params, gradients = params_and_gradients(rng)
    got = run(params, gradients, prototype_norm="project")
    np.testing.assert_allclose(jnp.linalg.norm(got["prototypes"], axis=1), 1, rtol=1e-6)


def test_unknown_names():
    part = optimizer.PartSettings()
    with pytest.raises(ValueError, match="optimizer is 'lamb', expected one of"):
        optimizer.make_optimizer(
            "lamb", learning_rate=lambda s: 1.0, backbone=part, prototypes=part
        )
