"""SphereFace2 against loops in float64, the official numbers, and itself in parts."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import binary, losses, sharding, streaming
from hyperface_jax.margins import MarginContext

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("float64")]

B, C, ROWS, D = 8, 13, 16, 6
SETTINGS = {"scale": 9.0, "t": 3.0, "alpha": 0.7, "loss_weight": 5.0}
MARGIN = {"c": 0.4, "a": 0.5, "m": 1.7}


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, D))
    w = rng.standard_normal((ROWS, D))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    labels = rng.integers(0, C, B).astype(np.int32)
    x[0], x[1] = 2 * w[labels[0]], -3 * w[labels[1]]  # both poles
    return jnp.asarray(x), jnp.asarray(labels), jnp.asarray(w)


def by_loops(variant, m, x, labels, w, bias):
    """Loss of each example from angles, nothing shared with the package."""
    r, t, alpha = (SETTINGS[k] for k in ("scale", "t", "alpha"))
    found = []
    for i, label in enumerate(labels):
        total = 0.0
        for j in range(C):
            cos = float(np.dot(x[i], w[j]) / np.linalg.norm(x[i]))
            theta = math.acos(min(max(cos, -1), 1))
            own = j == label
            moved = theta
            if own and variant in "am":
                moved = theta + m if variant == "a" else m * theta
                moved = min(moved, math.pi)
            h = 2 * ((math.cos(moved) + 1) / 2) ** t - 1
            if variant == "c":
                h += -m if own else m
            z = r * h + bias
            # -log of the sigmoid of z, or of -z.
            total += (alpha if own else 1 - alpha) * np.logaddexp(0, -z if own else z)
        found.append(SETTINGS["loss_weight"] / r * total)
    return found


def evaluate(variant, x, labels, w, bias, *, detach="cosine", **where):
    def loss_of(context):
        margin, bias = context
        return binary.sphereface2(
            variant=variant, context=margin, bias=bias, detach=detach, **SETTINGS
        )

    context = (MarginContext(jnp.asarray(MARGIN[variant])), bias)
    return streaming.evaluate(loss_of, context, x, labels, w, num_classes=C, **where)


def value_and_gradients(variant, **options):
    x, labels, w = data()

    def total(x, w, bias):
        values, aux = evaluate(variant, x, labels, w, bias, **options)
        return jnp.sum(values * jnp.linspace(0.5, 1.5, B)), (values, aux)

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (_, (values, aux)), (dx, dw, db) = run(x, w, jnp.asarray(0.8))
    return {"loss": values, "dx": dx, "dw": dw, "db": db, **aux}


@pytest.mark.parametrize("variant", binary.VARIANTS)
def test_loss_is_the_formula(variant):
    x, labels, w = data()
    values, aux = evaluate(variant, x, labels, w, jnp.asarray(0.8))
    expected = by_loops(variant, MARGIN[variant], x, labels, w, 0.8)
    np.testing.assert_allclose(values, expected, rtol=1e-7)
    assert aux["correct"][0] == 1
    assert aux["correct"][1] == 0
    assert ((aux["probability"] > 0) & (aux["probability"] < 1)).all()


@pytest.mark.parametrize("variant", binary.VARIANTS)
@pytest.mark.parametrize("detach", ["none", "cosine"])
def test_gradients(variant, detach):
    """Without detachment differences of the loss; with it, of z's slope 1 in cos."""
    found = value_and_gradients(variant, detach=detach)
    assert all(np.isfinite(value).all() for value in found.values())
    x, labels, w = data()
    weights = np.linspace(0.5, 1.5, B)

    def total(x, bias):
        return np.dot(weights, by_loops(variant, MARGIN[variant], x, labels, w, bias))

    step = 1e-6
    slope = (total(x, 0.8 + step) - total(x, 0.8 - step)) / (2 * step)
    assert float(found["db"]) == pytest.approx(slope, rel=1e-6)
    if detach == "none":
        for i, d in ((2, 0), (3, 4), (5, 1)):
            move = np.zeros((B, D))
            move[i, d] = step
            slope = (total(x + move, 0.8) - total(x - move, 0.8)) / (2 * step)
            assert float(found["dx"][i, d]) == pytest.approx(slope, rel=1e-5)
        return
    # Characteristic gradient detachment: dL/dcos_j = lw α_ij (σ(z_j) - [j = y]).
    loss = binary.sphereface2(
        variant=variant,
        context=MarginContext(MARGIN[variant]),
        bias=0.8,
        **SETTINGS,
    )
    target = np.asarray(labels)[:, None] == np.arange(C)
    z, _ = loss.logits(loss.prepare(x), w[:C], None, jnp.asarray(target))
    alpha = np.where(target, SETTINGS["alpha"], 1 - SETTINGS["alpha"])
    by_cos = SETTINGS["loss_weight"] * alpha * (jax.nn.sigmoid(z) - target)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    dw = (weights[:, None] * by_cos).T @ unit
    np.testing.assert_allclose(found["dw"][:C], dw, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", binary.VARIANTS)
@pytest.mark.parametrize(
    ("chunk", "model", "classes"),
    [(4, None, "all"), (0, 1, "all"), (2, 2, "all"), (4, 2, "model")],
)
def test_chunks_and_shards_equal_the_whole_matrix(variant, chunk, model, classes):
    whole = value_and_gradients(variant, chunk=ROWS)
    parts = value_and_gradients(
        variant,
        chunk=chunk,
        mesh=sharding.make_mesh(model) if model else None,
        class_axes=sharding.class_axes(classes),
    )
    for name, expected in whole.items():
        np.testing.assert_allclose(
            parts[name], expected, rtol=1e-9, atol=1e-11, err_msg=name
        )
    np.testing.assert_array_equal(whole["dw"][C:], 0)


@pytest.mark.parametrize("variant", binary.VARIANTS)
def test_at_the_initial_bias_both_kinds_of_class_pull_alike(variant):
    settings = {k: SETTINGS[k] for k in ("scale", "t", "alpha")}
    m, classes = MARGIN[variant], 1000
    bias = binary.initial_bias(variant, m, classes, **settings)
    one = jnp.zeros((1, 2)).at[0, 0].set(1.0)
    right_angle = jnp.zeros((2, 2)).at[:, 1].set(1.0)
    loss = binary.sphereface2(
        variant=variant, context=MarginContext(m), bias=bias, **SETTINGS
    )
    target = jnp.array([[True, False]])
    z, _ = loss.logits(loss.prepare(one), right_angle, None, target)
    own, other = z[0]
    pull = settings["alpha"] * jax.nn.sigmoid(-own)
    push = (1 - settings["alpha"]) * (classes - 1) * jax.nn.sigmoid(other)
    assert float(pull) == pytest.approx(float(push), rel=1e-9)


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("variant", binary.VARIANTS)
def test_official_numbers(variant, chunk, shared):
    oracle = np.load(shared("oracles/heads.npz"))
    get = lambda name: oracle[f"sphereface2_{variant}/{name}"]  # noqa: E731
    hyper = json.loads(str(get("hyperparameters")))
    settings = {"scale": hyper["r"], "t": hyper["t"], "alpha": hyper["alpha"]}
    w = jnp.asarray(get("w").T)
    bias = binary.initial_bias(variant, hyper["m"], len(w), **settings)
    assert bias == pytest.approx(float(get("b")[0]), rel=1e-6)

    def mean(x, w, bias):
        def loss_of(bias):
            return binary.sphereface2(
                variant=variant,
                context=MarginContext(hyper["m"]),
                bias=bias,
                clamp="official",
                loss_weight=hyper["loss_weight"],
                **settings,
            )

        loss, _ = streaming.evaluate(
            loss_of, bias, x, jnp.asarray(get("y")), w, num_classes=len(w), chunk=chunk
        )
        return jnp.mean(loss)

    loss, found = jax.value_and_grad(mean, (0, 1, 2))(
        jnp.asarray(get("x")), w, jnp.asarray(get("b")[0])
    )
    assert float(loss) == pytest.approx(float(get("loss")), rel=1e-6)
    expected = (get("dx"), get("dw").T, get("db")[0])
    for got, want in zip(found, expected, strict=True):
        assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variant": "b"}, "variant of SphereFace2 is 'b', expected one of c, a, m"),
        ({"t": 0.5}, "t of SphereFace2 is 0.5"),
        ({"alpha": 1.0}, "alpha of SphereFace2 is 1.0"),
        ({"detach": "angle"}, "detach is 'angle'"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    settings = {"variant": "c", "context": MarginContext(0.4), "bias": 0.0} | wrong
    with pytest.raises(ValueError, match=message):
        binary.sphereface2(**settings)


def test_dense_and_streaming_share_the_loss():
    x, labels, w = data()
    loss = binary.sphereface2(
        variant="c", context=MarginContext(0.4), bias=0.8, **SETTINGS
    )
    mask = jnp.arange(ROWS) < C
    values, _ = losses.dense(loss, x, labels, w, mask)
    again, _ = evaluate("c", x, labels, w, jnp.asarray(0.8))
    np.testing.assert_allclose(values, again, rtol=1e-12)
