"""psi, eta, magnitudes and the loss against the float64 reference and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from hyperface_jax import geometry, losses, magnitudes, margins

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("strict_promotion")]

NAMES = sorted(margins.MARGINS)
ANGLES = np.concatenate(
    [np.linspace(0.01, math.pi - 0.01, 61), [0.0, math.pi / 2 - 0.2, math.pi]]
)


def test_reference_shares_the_named_constants():
    assert reference.MIN_SIN == geometry.MIN_SIN
    assert reference.OFFICIAL_CLIP == geometry.OFFICIAL_CLIP


def margins_of(name):
    if name == "sphereface_2017":
        return [2.0, 4.0]
    return [margins.MARGINS[name].neutral, margins.MARGINS[name].default, 0.3, 1.7, 2.0]


def curves(name, m, theta, annealing=0.0):
    margin = margins.MARGINS[name]
    context = margins.MarginContext(margin=m, annealing=annealing)
    cos = jnp.cos(jnp.asarray(theta))[:, None]
    return margin.psi(cos, context)[:, 0], margin.eta(cos, cos, context)[:, 0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_psi_and_eta_equal_the_reference(name):
    for m in margins_of(name):
        if m < 1 and margins.MARGINS[name].neutral == 1:
            continue
        got_psi, got_eta = curves(name, m, ANGLES, annealing=5.0)
        want_psi = [reference.psi(name, a, m, annealing=5.0) for a in ANGLES]
        want_eta = [reference.eta(name, a, m) for a in ANGLES]
        np.testing.assert_allclose(got_psi, want_psi, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got_eta, want_eta, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_slopes_have_the_closed_form_and_the_stated_limits(name):
    margin = margins.MARGINS[name]
    for m in margins_of(name):
        if m < 1 and margin.neutral == 1:
            continue
        context = margins.MarginContext(margin=m, annealing=5.0)
        # Not on a joint of two pieces, where either slope is right.
        angles = [a for a in ANGLES if not _on_a_joint(name, a, m)]
        cos = jnp.cos(jnp.asarray(angles))

        def psi(c, context=context):
            return margin.psi(c.reshape(1, 1), context)[0, 0]

        def eta(c, context=context):
            return margin.eta(c.reshape(1, 1), c.reshape(1, 1), context)[0, 0]

        got_psi = jax.vmap(jax.grad(psi))(cos)
        got_eta = jax.vmap(jax.grad(eta))(cos)
        assert np.isfinite(got_psi).all()
        assert np.isfinite(got_eta).all()
        want_psi = [reference.slope_psi(name, a, m, annealing=5.0) for a in angles]
        want_eta = [reference.slope_eta(name, a, m) for a in angles]
        np.testing.assert_allclose(got_psi, want_psi, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(got_eta, want_eta, rtol=1e-8, atol=1e-8)


def _on_a_joint(name, theta, m):
    if name == "arcface_easy":
        return abs(theta - math.pi / 2) < 1e-6
    if name.startswith("arcface"):
        return abs(theta + m - math.pi) < 1e-6
    if name.startswith("sphereface") and name != "sphereface_r_v2":
        pieces = m * theta / math.pi
        return abs(pieces - round(pieces)) < 1e-6 and round(pieces) > 0
    return False


def test_float32_slope_is_exact_at_theta_zero():
    c = jnp.float32(1.0)
    m = jnp.float32(1.5)
    assert jax.grad(geometry.cos_multiple)(c, m) == pytest.approx(2.25)
    assert jax.grad(geometry.cos_multiple)(c, jnp.float32(0.5)) == pytest.approx(0.25)
    # Rounding may push a cosine over 1; the value stays 1 and the slope its limit.
    over = jnp.nextafter(c, jnp.float32(2))
    assert jax.grad(geometry.cos_multiple)(over, m) == pytest.approx(2.25)
    assert float(geometry.angle(over)) == 0


def test_known_values_of_the_specification():
    assert float(curves("sphereface", 1.5, [2.5])[0][0]) == pytest.approx(
        -1.179441, abs=1e-6
    )
    assert float(curves("sphereface_r_v1", 1.5, [2.5])[0][0]) == -1
    assert float(curves("sphereface", 1.5, [3.0])[0][0]) == pytest.approx(
        -1.789204, abs=1e-6
    )
    assert float(curves("sphereface_r_v2", 1.5, [2.5])[1][0]) == pytest.approx(
        -0.095724, abs=1e-6
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_psi_is_below_eta_and_both_decrease(name):
    """Where SPEC says so: wrap turns up beyond π - m, v1 is flat beyond π/m."""
    m = margins.MARGINS[name].default
    theta = np.linspace(0.01, math.pi - 0.01, 300)
    psi, eta = map(np.asarray, curves(name, m, theta))
    if name == "arcface_wrap":
        assert (np.diff(psi[theta > math.pi - m]) > 0).all()
        assert (psi > eta)[theta > math.pi - m / 2 + 0.02].all()
        theta_ok = theta < math.pi - m
        psi, eta = psi[theta_ok], eta[theta_ok]
    assert (psi <= eta + 1e-12).all()
    assert (np.diff(eta) < 0).all()
    if name == "arcface_easy":
        return  # jumps up at π/2, which is what "easy" gives away
    assert (np.diff(psi) <= 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_neutral_margin_is_the_undistorted_function(name):
    psi, eta = curves(name, margins.MARGINS[name].neutral, ANGLES)
    np.testing.assert_allclose(psi, eta, atol=2e-6)


@pytest.mark.parametrize(
    ("m", "classes", "expected"),
    [
        (1.4, 8631, 24.1),
        (1.7, 8631, 34.4),
        (2.0, 8631, 46.6),
        (1.4, 85742, 28.2),
        (1.4, 1180, 20.6),
        (2.0, 10_000_000, 70.7),
    ],
)
def test_minimum_scale_of_v2(m, classes, expected):
    margin = margins.MARGINS["sphereface_r_v2"]
    assert margins.minimum_scale(margin, m, classes) == pytest.approx(
        expected, abs=0.06
    )


def test_minimum_scale_of_the_others():
    for name in ("normface", "sphereface", "sphereface_r_v1"):
        m = margins.MARGINS[name].default
        value = margins.minimum_scale(margins.MARGINS[name], m, 8631)
        assert value == pytest.approx(13.7, abs=0.06)
    assert margins.minimum_scale(margins.MARGINS["cosface"], 1.0, 100) == math.inf
    with pytest.raises(ValueError, match="num_classes is 1"):
        margins.minimum_scale(margins.MARGINS["cosface"], 0.3, 1)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="'sphreface', expected one of normface"):
        margins.get_margin("sphreface")
    with pytest.raises(ValueError, match="'l3', expected one of"):
        magnitudes.sfn(30.0, 0.01, "l3")


# --- the whole head -------------------------------------------------------------------

X = np.array([[3.0, 4.0], [-1.0, 2.0]])
W = np.array(
    [[math.cos(2 * math.pi * j / 3), math.sin(2 * math.pi * j / 3)] for j in range(3)]
)
GOLDEN = [
    # name, m, norm, s, loss weight, divide, set 1, set 2 (SPEC section 1)
    ("sphereface", 1.5, "hfn", 30.0, 50.0, 5.349731, 110.383597),
    ("sphereface_r_v1", 1.5, "hfn", 30.0, 50.0, 5.349731, 89.855733),
    ("sphereface_r_v2", 1.5, "hfn", 30.0, 50.0, 2.835026, 81.391465),
    ("sphereface", 1.5, "nfn", None, 1.0, 0.717058, 8.455187),
    ("sphereface_r_v1", 1.5, "nfn", None, 1.0, 0.717058, 6.402522),
    ("sphereface_r_v2", 1.5, "nfn", None, 1.0, 0.645306, 6.455499),
    ("sphereface", 1.5, "sfn", 30.0, 50.0, 1.458917, 14.355798),
    ("sphereface_r_v1", 1.5, "sfn", 30.0, 50.0, 1.458917, 10.934690),
    ("sphereface_r_v2", 1.5, "sfn", 30.0, 50.0, 1.339330, 11.022985),
    ("sphereface_r_v2", 1.4, "hfn", 60.0, 50.0, 1.810025, None),
    ("cosface", 0.35, "hfn", 64.0, 64.0, 4.570304, None),
    ("arcface", 0.5, "hfn", 64.0, 64.0, 7.993959, 109.423411),
    ("arcface_wrap", 0.5, "hfn", 64.0, 64.0, 7.993959, 107.139520),
    ("arcface_linear", 0.5, "hfn", 64.0, 64.0, 7.993959, 116.864470),
    ("arcface_easy", 0.5, "hfn", 64.0, 64.0, None, 97.223599),
    ("ga_softmax", 1.5, "hfn", 30.0, 30.0, 2.144451, None),
]


def magnitude_of(norm, s, t=0.0, penalty="l1"):
    if norm == "hfn":
        return magnitudes.hfn(s)
    return magnitudes.nfn() if norm == "nfn" else magnitudes.sfn(s, t, penalty)


def mean_loss(x, y, w, *, margin, m, norm, s=None, t=0.0, penalty="l1", **options):
    annealing = options.pop("annealing", 0.0)
    if options.pop("official", False):
        options["clamp"] = "official"
    if options.pop("differentiate", False):
        options["prototype_norm"] = "differentiate"
    loss, _ = losses.hyperspherical_softmax(
        x,
        jnp.asarray(y, jnp.int32),
        w,
        margin=margins.MARGINS[margin],
        magnitude=magnitude_of(norm, s, t, penalty),
        context=margins.MarginContext(margin=m, annealing=annealing),
        **options,
    )
    return jnp.mean(loss)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c[0]}-{c[2]}-{c[1]}")
def test_golden_values(case):
    name, m, norm, s, weight, *expected = case
    for labels, value in zip(([0, 1], [2, 0]), expected, strict=True):
        if value is not None:
            got = mean_loss(
                jnp.asarray(X),
                labels,
                jnp.asarray(W),
                margin=name,
                m=m,
                norm=norm,
                s=s,
                t=0.01,
                loss_weight=weight,
                detach="cosine",
            )
            assert float(got) == pytest.approx(value, abs=2e-6)


HEADS = [
    dict(margin=name, norm=norm, detach=detach)
    for name in NAMES
    for norm in ("hfn", "nfn", "sfn")
    for detach in margins.DETACH
]


def head_arguments(case, rng, size=(6, 9, 5)):
    count, classes, dims = size
    w = rng.standard_normal((classes, dims))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    x = rng.standard_normal((count, dims)) * rng.uniform(0.5, 6, (count, 1))
    y = rng.integers(0, classes, count)
    arguments = dict(
        m=margins.MARGINS[case["margin"]].default, s=9.0, t=0.05, annealing=5.0, **case
    )
    return x, y, w, arguments


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", HEADS, ids=lambda c: "-".join(c.values()))
def test_head_equals_the_reference_in_float64(case, rng):
    x, y, w, arguments = head_arguments(case, rng)
    for extra in ({}, {"differentiate": True, "loss_weight": 50.0, "penalty": "l2"}):
        weights = 3 * w if extra else w
        value, (dx, dw) = jax.value_and_grad(mean_loss, argnums=(0, 2))(
            jnp.asarray(x), y, jnp.asarray(weights), **arguments, **extra
        )
        loss, want_dx, want_dw = reference.head(x, y, weights, **arguments, **extra)
        assert float(value) == pytest.approx(loss, rel=1e-9)
        np.testing.assert_allclose(dx, want_dx, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(dw, want_dw, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", HEADS[::4], ids=lambda c: "-".join(c.values()))
def test_head_in_float32(case, rng):
    x, y, w, arguments = head_arguments(case, rng)
    x, w = x.astype(np.float32), w.astype(np.float32)
    value, (dx, dw) = jax.value_and_grad(mean_loss, argnums=(0, 2))(
        jnp.asarray(x), y, jnp.asarray(w), **arguments
    )
    loss, want_dx, want_dw = reference.head(x, y, w, **arguments)
    assert float(value) == pytest.approx(loss, rel=2e-5)
    for got, want in ((dx, want_dx), (dw, want_dw)):
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_check_grads_when_not_detached(name, rng):
    x, y, w, arguments = head_arguments(
        dict(margin=name, norm="nfn", detach="none"), rng, size=(3, 4, 3)
    )
    check_grads(
        lambda x, w: mean_loss(jnp.asarray(x), y, jnp.asarray(w), **arguments),
        (jnp.asarray(x), jnp.asarray(w)),
        order=1,
        modes=("rev",),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.usefixtures("float64")
def test_detached_cosface_equals_cosface(rng):
    case = dict(margin="cosface", norm="hfn")
    x, y, w, arguments = head_arguments(case, rng)
    for argument in (0, 2):
        gradients = [
            jax.grad(mean_loss, argnums=argument)(
                jnp.asarray(x), y, jnp.asarray(w), detach=detach, **arguments
            )
            for detach in ("none", "cosine")
        ]
        np.testing.assert_allclose(*gradients, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["sphereface", "sphereface_r_v1", "sphereface_r_v2"])
def test_detached_gradient_is_softmax_error(name, rng):
    """∂L/∂c = lw (p - 1[y])/B for v0, v1 and v2 alike, without a factor s."""
    x, y, w, _ = head_arguments(dict(margin=name, norm="hfn", detach="cosine"), rng)
    context = margins.MarginContext(margin=1.5)
    cos = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True) @ w.T)
    is_target = jnp.asarray(np.eye(w.shape[0], dtype=bool)[y])

    def loss(cos):
        own = jnp.sum(jnp.where(is_target, cos, 0), axis=1, keepdims=True)
        f = margins.angular_functions(
            cos, own, is_target, margin=margins.MARGINS[name], context=context
        )
        log_p = jax.nn.log_softmax(9.0 * f, axis=1)
        total = -jnp.sum(jnp.where(is_target, log_p, 0)) / len(y)
        return 50.0 / 9.0 * total, jnp.exp(log_p)

    gradient, p = jax.grad(loss, has_aux=True)(cos)
    np.testing.assert_allclose(
        gradient, 50.0 * (p - np.asarray(is_target, float)) / len(y), rtol=1e-10
    )


@pytest.mark.parametrize("case", HEADS, ids=lambda c: "-".join(c.values()))
def test_corners_are_finite(case):
    """x = 0, θ = 0 and θ = π: finite loss and gradients, and 0 at x = 0 for HFN."""
    w = jnp.eye(4, dtype=jnp.float32)[:3]
    x = jnp.stack([jnp.zeros(4, jnp.float32), 2 * w[0], -2 * w[1]])
    value, (dx, dw) = jax.value_and_grad(mean_loss, argnums=(0, 2))(
        x, [0, 0, 1], w, m=2.0, s=9.0, t=0.05, **case
    )
    assert np.isfinite(value)
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()
    np.testing.assert_array_equal(dx[0], 0)


@pytest.mark.usefixtures("float64")
def test_rotation_and_permutation_invariance(rng):
    x, y, w, arguments = head_arguments(
        dict(margin="sphereface_r_v2", norm="sfn", detach="cosine"), rng
    )
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    order = rng.permutation(len(w))
    value = mean_loss(jnp.asarray(x), y, jnp.asarray(w), **arguments)
    rotated = mean_loss(
        jnp.asarray(x @ rotation), y, jnp.asarray(w @ rotation), **arguments
    )
    shuffled = mean_loss(
        jnp.asarray(x), np.argsort(order)[y], jnp.asarray(w[order]), **arguments
    )
    np.testing.assert_allclose([rotated, shuffled], [value, value], rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_masked_classes_take_no_part(rng):
    x, y, w, arguments = head_arguments(
        dict(margin="sphereface_r_v2", norm="hfn", detach="cosine"), rng
    )
    padded = np.concatenate([w, np.zeros((3, w.shape[1]))])
    mask = jnp.arange(len(padded)) < len(w)
    value, dw = jax.value_and_grad(mean_loss, argnums=2)(
        jnp.asarray(x), y, jnp.asarray(padded), class_mask=mask, **arguments
    )
    want, want_dw = jax.value_and_grad(mean_loss, argnums=2)(
        jnp.asarray(x), y, jnp.asarray(w), **arguments
    )
    np.testing.assert_allclose(value, want, rtol=1e-13)
    np.testing.assert_allclose(dw[: len(w)], want_dw, rtol=1e-13)
    np.testing.assert_array_equal(dw[len(w) :], 0)


@pytest.mark.usefixtures("float64")
def test_plain_softmax_is_softmax_of_inner_products(rng):
    x, w = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    y = rng.integers(0, 7, 5)
    loss, aux = losses.plain_softmax(jnp.asarray(x), jnp.asarray(y), jnp.asarray(w))
    logits = x @ w.T
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), y]
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    cos = logits / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=1)
    np.testing.assert_allclose(aux["target_cos"], cos[np.arange(5), y], rtol=1e-12)
    np.testing.assert_array_equal(aux["correct"], cos.argmax(1) == y)


def test_margin_may_differ_by_example(rng):
    """The context carries [B, 1]: what MagFace and AdaFace will need."""
    x, y, w, arguments = head_arguments(
        dict(margin="arcface", norm="hfn", detach="cosine"), rng
    )
    x, w = x.astype(np.float32), w.astype(np.float32)
    arguments.pop("m")
    each = np.linspace(0.1, 0.6, len(x)).astype(np.float32)
    together = mean_loss(
        jnp.asarray(x), y, jnp.asarray(w), m=jnp.asarray(each)[:, None], **arguments
    )
    alone = [
        mean_loss(
            jnp.asarray(x[i : i + 1]), y[i : i + 1], jnp.asarray(w), m=m, **arguments
        )
        for i, m in enumerate(each.tolist())
    ]
    assert float(together) == pytest.approx(float(np.mean(alone)), rel=1e-5)


def test_a_margin_may_depend_on_the_magnitude(rng):
    """MagFace will: the loss fills in |x| of each example."""
    seen = []

    def psi(target_cos, context):
        seen.append(context.magnitude)
        return target_cos - 0.01 * context.magnitude

    margin = margins.MARGINS["cosface"]._replace(psi=psi)
    x = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    w = geometry.l2_normalize(jnp.asarray(rng.standard_normal((5, 4)), jnp.float32))
    losses.hyperspherical_softmax(
        x,
        jnp.arange(3),
        w,
        margin=margin,
        magnitude=magnitudes.hfn(10.0),
        context=margins.MarginContext(margin=0.0),
    )
    np.testing.assert_allclose(seen[0][:, 0], np.linalg.norm(x, axis=1), rtol=1e-6)
