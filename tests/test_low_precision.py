"""Momentum in bfloat16: unbiased where rounding to nearest stagnates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperface_jax import classifier, low_precision, optimizer, schedules
from hyperface_jax.backbones import create_backbone
from hyperface_jax.training import checkpoint, train_state


def test_rounding_keeps_the_mean_and_the_neighbours(rng):
    x = jnp.asarray(rng.standard_normal(50) * 10.0 ** rng.integers(-20, 20, 50))
    x = x.astype(jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    rounded = jax.vmap(lambda k: low_precision.round_stochastically(k, x))(keys)
    assert rounded.dtype == jnp.bfloat16
    rounded = np.asarray(rounded, np.float64)
    wide = np.asarray(x, np.float64)
    step = np.abs(wide) / 128  # a bfloat16 has its neighbour within this
    assert (np.abs(rounded - wide) <= step).all()
    assert (np.abs(rounded.mean(axis=0) - wide) < step * 5 / np.sqrt(4000)).all()
    assert all(len(np.unique(column)) <= 2 for column in rounded.T)


def test_what_is_exact_or_not_finite_stays():
    x = jnp.asarray([0.0, 1.0, -1.5, jnp.inf, -jnp.inf, jnp.nan, 3.0e38], jnp.float32)
    got = low_precision.round_stochastically(jax.random.key(1), x)
    np.testing.assert_array_equal(got[:5], x[:5].astype(jnp.bfloat16))
    assert np.isnan(got[5])
    assert np.isfinite(float(got[6]))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_does_not_stagnate(nesterov):
    """Constant gradient g: momentum 1 gives g/(1 - .99), and nearest stops short."""
    g = jnp.full((2000,), 1e-3)
    exact = optax.trace(0.99, nesterov)
    ours = low_precision.bfloat16_trace(0.99, nesterov)

    @jax.jit
    def run(nearest):
        def body(carry, _):
            a, b, c = carry
            step, a = exact.update(g, a)
            own, b = ours.update(g, b)
            c = (0.99 * c.astype(jnp.float32) + g).astype(jnp.bfloat16)
            return (a, b, c), (step.mean(), own.mean())

        carry, steps = jax.lax.scan(
            body, (exact.init(g), ours.init(g), nearest), None, length=600
        )
        return carry[2], steps

    nearest, (want, got) = run(jnp.zeros_like(g, jnp.bfloat16))
    np.testing.assert_allclose(got, want, rtol=3e-3)
    assert float(nearest.astype(jnp.float32).mean()) < 0.95 * float(want[-1])


def test_a_run_with_it_is_saved_and_restored(tmp_path):
    """The state is half as large, and a restored one goes on alike."""
    network = create_backbone("sfnet4", width=4, embedding_dim=8)

    def state_of(dtype):
        tx = optimizer.make_optimizer(
            "sgd",
            learning_rate=lambda step: 0.1,
            backbone=optimizer.PartSettings(),
            prototypes=optimizer.PartSettings(momentum_dtype=dtype),
        )
        init = functools.partial(
            train_state.init_train_state,
            backbone=network,
            image_size=32,
            head=classifier.Head("normface", 12, schedules.constant(0.0)),
            class_multiple=16,
            prototype_init="xavier_normal",
            unit_prototypes=True,
            tx=tx,
            seed=0,
            ema=False,
        )
        return tx, jax.jit(init)()

    def bytes_of(state):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))

    tx, state = state_of("bfloat16")
    saved = 16 * 8 * 2
    assert bytes_of(state_of("float32")[1]) - bytes_of(state) == saved - 4  # a count

    @jax.jit
    def step(state):
        gradients = jax.tree.map(lambda p: 0.01 * p + 0.001, state.params)
        params, opt_state = optimizer.update(
            tx, gradients, state.opt_state, state.params, prototype_norm="project"
        )
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1)

    state = step(step(state))
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state, {})
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore(state_of("bfloat16")[1])
    jax.tree.map(np.testing.assert_array_equal, step(state), step(restored))


def test_an_unknown_dtype():
    with pytest.raises(ValueError, match="momentum_dtype is 'int8', expected one of"):
        optimizer.make_optimizer(
            "sgd",
            learning_rate=lambda step: 0.1,
            backbone=optimizer.PartSettings(momentum_dtype="int8"),
            prototypes=optimizer.PartSettings(),
        )
