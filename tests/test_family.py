"""The whole family: values, gradients, memory, chunks and meshes."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_family as reference

from hyperface_jax import (
    adaptive,
    catalogue,
    family,
    losses,
    magnitudes,
    regularizers,
    schedules,
    sharding,
)
from hyperface_jax import config as config_lib
from hyperface_jax import margins as margins_lib
from hyperface_jax.carried import Carried
from hyperface_jax.classifier import Head

core = pytest.mark.core  # also on jax 0.11; meshes are there in test_streaming

B, C, ROWS, D = 12, 13, 16, 6
SCALE = 9.0
SOFTMAX = [
    name
    for name in family.FAMILY
    if not name.startswith("sphereface2") and name != "uniface"
]


def data(name, seed=0):
    """Embeddings of lengths 5 to 130, labels, class vectors; some angles are wide."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, D))
    x *= (np.linspace(5, 130, B) / np.linalg.norm(x, axis=1))[:, None]
    centres = family.member(name).centres
    w = rng.standard_normal((ROWS, D) if centres == 1 else (ROWS, centres, D))
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    y = rng.integers(0, C, B).astype(np.int32)
    for i in range(0, B, 3):  # some are near their class, one is far from it
        own = w[y[i]] if centres == 1 else w[y[i], 1]
        x[i] += (-1.5 if i == 3 else 1.0) * np.linalg.norm(x[i]) * own
    return x, y, w


def head_of(name, **settings):
    member = family.member(name)
    defaults: dict[str, Any] = {
        "scale": SCALE,
        "margin": schedules.constant(member.margin.default),
        "detach": member.detach,
    }
    return Head(name, C, **defaults | settings)


def memory_of(head, dtype=jnp.float64):
    """As after some steps, so that it matters."""
    values = {"norm_mean": 40.0, "norm_deviation": 30.0, "difficulty": 0.3}
    memory = head.memory(ROWS, D)
    if "prototypes" in memory:
        return memory
    return {
        name: jnp.asarray(values.get(name, SCALE), dtype) for name in memory
    }  # "scale": SCALE


def evaluate(head, x, y, w, *, memory=None, bias=1.3, weight=None, seed=3):
    carried = Carried(
        trained={"bias": jnp.asarray(bias)} if head.member.binary else {},
        memory=memory_of(head) if memory is None else memory,
        weight=weight,
        key=jax.random.key(seed),
    )
    return head(x, y, w, jnp.int32(5), None, carried)


def drawn_margins(head, seed=3):
    """What ElasticFace draws, before it is given to examples."""
    deviation = family.constants_of(head.loss)["deviation"]
    noise = jax.random.normal(jax.random.key(seed), (B,), jnp.float64)
    return head.member.margin.default + deviation * np.asarray(noise)


def frozen_of(name, head, x, y, w):
    memory = [
        float(value) for value in memory_of(head).values() if hasattr(value, "dtype")
    ]
    drawn = drawn_margins(head) if name.startswith("elastic") else None
    return reference.freeze(name, x, y, w[:C], s=SCALE, memory=memory, drawn=drawn)


@core
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [*SOFTMAX, "uniface"])
def test_loss_and_gradients_are_the_formula(name):
    head = head_of(name, divide_by_scale=False)
    x, y, w = data(name)
    frozen = frozen_of(name, head, x, y, w)
    m = head.member.margin.default
    settings = {"m": m, "s": SCALE, "frozen": frozen, "bias": 1.3}
    strength = head.member.energy

    def total(x, w, offset=None):
        values, _ = reference.losses(name, x, y, w[:C], offset=offset, **settings)
        return np.dot(values, weights) + strength * weights.sum() * (
            reference.energy(y, w) if strength else 0
        )

    weights = np.linspace(0.5, 1.5, B)
    values, offset = reference.losses(name, x, y, w[:C], **settings)
    expected = values + (strength * reference.energy(y, w) if strength else 0)

    def ours(x, w):
        values, _ = evaluate(head, x, jnp.asarray(y), w)
        return jnp.dot(values, weights), values

    (_, found), (dx, dw) = jax.value_and_grad(ours, (0, 1), has_aux=True)(
        jnp.asarray(x), jnp.asarray(w)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert not np.any(np.asarray(dw)[C:])
    kept = offset if head.detach == "cosine" else None
    step = 1e-6
    for i, d in ((0, 1), (3, 0), (5, 2), (11, 4)):
        move = np.zeros_like(x)
        move[i, d] = step
        slope = total(x + move, w, kept) - total(x - move, w, kept)
        assert dx[i, d] == pytest.approx(slope / (2 * step), rel=2e-5, abs=1e-9)
    # Class vectors: the gradient does not run through their norm ("project").
    radial = np.sum(np.asarray(dw) * w, axis=-1, keepdims=True) * w
    tangent = np.asarray(dw) - radial
    for j in (int(y[0]), int(y[3]), 4):
        move = np.zeros_like(w)
        at = (j, 2) if w.ndim == 2 else (j, 1, 2)
        move[at] = step
        slope = total(x, w + move, kept) - total(x, w - move, kept)
        assert tangent[at] == pytest.approx(slope / (2 * step), rel=2e-5, abs=1e-8)


@pytest.mark.parametrize("name", family.FAMILY)
def test_chunks_and_meshes_equal_one_device(name):
    """Loss, gradients and memory; classes over both axes and over one."""
    x, y, w = (jnp.asarray(a, jnp.float32) for a in data(name))
    y = y.astype(jnp.int32)
    weight = jnp.ones(B).at[4].set(0)

    def run(**where):
        head = head_of(name, **where)

        def total(x, w):
            memory = memory_of(head, jnp.float32)
            bias = jnp.float32(1.3)
            values, aux = evaluate(
                head, x, y, w, memory=memory, bias=bias, weight=weight
            )
            seen = aux.get("seen")
            moved = head.remember(memory, seen, jnp.int32(5)) if seen else memory
            return jnp.sum(values * weight), (values, moved)

        (_, (values, moved)), gradients = jax.jit(
            jax.value_and_grad(total, (0, 1), has_aux=True)
        )(x, w)
        return {"loss": values, "memory": moved, "gradients": gradients}

    whole = run()
    # The classes on all devices, or on one axis; which of them makes no difference to
    # how a loss is made up.
    model, classes = (4, "model") if name in ("adaface", "vpl_arcface") else (2, "all")
    mesh = sharding.make_mesh(model, jax.devices()[:4])
    place = {"mesh": mesh, "class_axes": sharding.class_axes(classes), "chunk": 2}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-4, atol=3e-5),
        run(**place),
        whole,
    )


@core
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["c", "a", "m"])
def test_sphereface2_through_the_head_is_the_official_one(form, shared):
    oracle = np.load(shared("oracles/heads.npz"))
    case = f"sphereface2_{form}"
    h = json.loads(str(oracle[f"{case}/hyperparameters"]))
    x, y, w = (jnp.asarray(oracle[f"{case}/{k}"]) for k in ("x", "y", "w"))
    classes = w.shape[1]
    constants = {"t": h.get("t", 3.0), "alpha": h.get("alpha", 0.7)}
    head = Head(
        case,
        classes,
        schedules.constant(h["m"]),
        constants=constants,
        scale=h["r"],
        loss_weight=h["loss_weight"],
        clamp="official",
    )
    bias = jnp.asarray(oracle[f"{case}/b"][0])
    carried = Carried(trained={"bias": bias})
    values, _ = head(x, y, w.T, 0, None, carried)
    np.testing.assert_allclose(values.mean(), oracle[f"{case}/loss"], rtol=1e-6)
    np.testing.assert_allclose(head.trained()["bias"], bias, rtol=1e-5)


@core
@pytest.mark.usefixtures("float64")
def test_sphereface_plus_is_the_official_one(shared):
    oracle = np.load(shared("oracles/heads.npz"))
    case = "sphereface_plus"
    h = json.loads(str(oracle[f"{case}/hyperparameters"]))
    x, y, w = (oracle[f"{case}/{k}"] for k in ("x", "y", "w"))
    head = Head(
        case,
        w.shape[1],
        schedules.constant(h["m"]),
        constants={"energy": h["lambda_mhe"]},
        scale=h["s"],
        loss_weight=1.0,
        divide_by_scale=False,
        clamp="official",
    )

    def mean(x, w):
        return jnp.mean(head(x, jnp.asarray(y), w, 0)[0])

    value, (dx, dw) = jax.value_and_grad(mean, (0, 1))(jnp.asarray(x), jnp.asarray(w.T))
    np.testing.assert_allclose(value, oracle[f"{case}/loss"], rtol=1e-6)
    np.testing.assert_allclose(dx, oracle[f"{case}/dx"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(dw.T, oracle[f"{case}/dw"], rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_energy_of_one_class_is_zero_and_of_equal_vectors_finite():
    own = jnp.asarray(np.tile([[0.6, 0.8]], (4, 1)))
    kept = jnp.ones(4, bool)

    def energy(own, labels):
        return regularizers.minimum_hyperspherical_energy(own, labels, kept)

    value, slope = jax.value_and_grad(energy)(own, jnp.zeros(4, jnp.int32))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)
    value, slope = jax.value_and_grad(energy)(own, jnp.arange(4))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@core
def test_adaface_keeps_its_memory_by_the_rule():
    """Examples of weight 0 are not seen; a batch of one keeps the deviation."""
    memory = {"norm_mean": jnp.float32(20), "norm_deviation": jnp.float32(100)}
    rule = family.member("adaface").memory
    assert rule is not None
    assert rule.init(5) == {"norm_mean": 20.0, "norm_deviation": 100.0}

    def seen(norms, weight):
        norms = jnp.asarray(norms, jnp.float32)
        nothing = jnp.zeros((len(norms), 1))
        return adaptive.Seen(nothing, norms, norms, jnp.asarray(weight, jnp.float32))

    moved = rule.update(memory, seen([10, 14, 500, 99], [1, 1, 1, 0]))
    mean, deviation = reference.adaface_memory(np.array([10, 14, 500.0]), 20, 100)
    assert moved["norm_mean"] == pytest.approx(mean)
    assert moved["norm_deviation"] == pytest.approx(deviation)
    one = rule.update(memory, seen([10, 14], [0, 1]))
    assert one["norm_mean"] == pytest.approx(0.01 * 14 + 0.99 * 20)
    assert one["norm_deviation"] == 100
    none = rule.update(memory, seen([10, 14], [0, 0]))
    assert none == memory


def test_elastic_plus_gives_the_smallest_margin_to_the_nearest():
    given = family.member("elasticface_arc_plus").given
    assert given is not None
    cos = jnp.asarray([0.1, 0.9, -0.5, 0.4])
    seen = adaptive.Seen(cos, jnp.ones(4), cos, jnp.ones(4), target_cos=cos)
    margins = given(seen, {}, jnp.float32(0.5), jax.random.key(0))["margin"]
    assert np.argsort(margins).tolist() == np.argsort(-cos).tolist()


@core
def test_vpl_mixes_in_what_it_has_seen_lately():
    constants = {"share": 0.5, "start": 2, "recent": 3}
    head = Head(
        "vpl_arcface", C, schedules.constant(0.5), constants=constants, scale=SCALE
    )
    x, y, w = data("vpl_arcface")
    y[:] = np.arange(B) % 4
    x, y, w = jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.asarray(w, jnp.float32)
    memory = head.memory(ROWS, D)

    def loss(memory, step, w=w):
        return head(x, y, w, step, None, Carried(memory=memory))

    early, aux = loss(memory, 0)
    memory = head.remember(memory, aux["seen"], 0)
    last = memory["prototypes"]["last"]
    for label in range(4):  # of several images the last one
        i = max(k for k in range(B) if y[k] == label)
        np.testing.assert_allclose(last[label], x[i] / np.linalg.norm(x[i]), rtol=1e-5)
    np.testing.assert_array_equal(memory["prototypes"]["at"][:4], 1)
    np.testing.assert_array_equal(last[4:], 0)
    np.testing.assert_array_equal(loss(memory, 1)[0], early)  # before the start
    unit = w[:4] * 0.5 + last[:4] * 0.5
    mixed = w.at[:4].set(unit / np.linalg.norm(unit, axis=1, keepdims=True))
    plain = Head("arcface", C, schedules.constant(0.5), scale=SCALE)
    np.testing.assert_allclose(loss(memory, 2)[0], plain(x, y, mixed, 2)[0], rtol=1e-5)
    np.testing.assert_array_equal(loss(memory, 4)[0], early)  # too long ago


def test_arcface_is_a_case_of_several():
    """Combined, MV, CurricularFace, ElasticFace and sub-centres at their zero."""
    x, y, w = (jnp.asarray(a, jnp.float32) for a in data("arcface"))
    y = y.astype(jnp.int32)
    margin = schedules.constant(0.5)
    base = Head("arcface", C, margin, scale=SCALE, detach="none")(x, y, w, 0)[0]
    easy = Head("arcface_easy", C, margin, scale=SCALE, detach="none")(x, y, w, 0)[0]
    mv = Head("mv_arc", C, margin, constants={"t": 1.0}, scale=SCALE, detach="none")
    np.testing.assert_allclose(mv(x, y, w, 0)[0], easy, rtol=1e-5)
    for name, constants in (
        ("combined", {"m1": 1.0, "m3": 0.0}),
        ("subcenter_arcface", {"centres": 1}),
    ):
        head = Head(name, C, margin, constants=constants, scale=SCALE, detach="none")
        np.testing.assert_allclose(head(x, y, w, 0)[0], base, rtol=1e-5)
    wrap = Head("arcface_wrap", C, margin, scale=SCALE)(x, y, w, 0)[0]
    elastic = Head(
        "elasticface_arc", C, margin, constants={"deviation": 0.0}, scale=SCALE
    )
    got = evaluate(elastic, x, y, w)[0]
    np.testing.assert_allclose(got, wrap, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sphereface2_c", {"norm": "nfn"}, "head.norm is 'nfn' with sphereface2_c"),
        ("adacos", {"norm": "sfn"}, "head.norm is 'sfn' with adacos, expected 'hfn'"),
        ("uniface", {"interclass_filter": 0.4}, "interclass_filter is 0.4 with unif"),
        ("vpl_arcface", {"sample_rate": 0.5}, "sample_rate is 0.5 with vpl_arcface"),
        ("adaface", {"constants": {"h": 0}}, "h of AdaFace is 0"),
        ("adaface", {"constants": {"decay": 2}}, "decay of AdaFace is 2"),
        ("magface", {"constants": {"upper": 5}}, "lower and upper of MagFace are"),
        ("sphereface2_m", {"constants": {"alpha": 1.0}}, "alpha of SphereFace2 is 1"),
        ("mv_am", {"constants": {"t": 0.9}}, "t of MV-Softmax is 0.9"),
        ("nonsense", {}, "loss is 'nonsense', expected one of"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(name, settings, message):
    with pytest.raises(ValueError, match=r".") as error:
        Head(name, C, schedules.constant(0.5), **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sphereface2_c", r"carried=Carried\(trained=head.trained\(\)\)"),
        ("adaface", r"carried=Carried\(memory=head.memory\(rows, dim\)\)"),
        ("vpl_arcface", r"carried=Carried\(memory=head.memory\(rows, dim\)\)"),
        ("elasticface_arc", r"carried=Carried\(key=a random key\)"),
    ],
)
def test_what_a_loss_carries_is_asked_for(name, message):
    head = Head(name, C, schedules.constant(0.5))
    x, w = jnp.ones((2, 4)), jnp.ones((C, head.centres, 4))
    with pytest.raises(ValueError, match=f"{name} needs {message}"):
        head(x, jnp.arange(2), w[:, 0] if head.centres == 1 else w, 0)


def test_plain_softmax_has_no_filter():
    with pytest.raises(ValueError, match=r"interclass_filter is 0\.4 with plain_soft"):
        Head("plain_softmax", C, schedules.constant(0), interclass_filter=0.4)


def test_every_row_has_a_source_and_a_sound_margin():
    for name in family.names():
        row = family.member(name)
        assert len(row.margin.source) > 5, name
        assert row.margin.default >= row.margin.neutral, name
        if name not in ("circle",):
            scale = margins_lib.minimum_scale(row.margin, row.margin.default, 100)
            assert 0 < scale < 1000, name


def _steep(cos, context):
    return cos - context.margin * (1 - cos)


def test_a_margin_of_your_own_needs_no_name():
    """The same loss as a row of the table, an unnamed margin and an unnamed member."""
    own = margins_lib.Margin(_steep, margins_lib.plain_eta, 0.0, 0.2, "here")
    x, y, w = map(jnp.asarray, data("cosface"))
    expected, _ = losses.hyperspherical_softmax(
        *(x, y, w[:C]),
        margin=own,
        magnitude=magnitudes.hfn(SCALE),
        context=margins_lib.MarginContext(0.2),
    )
    for loss in (own, family.Member(own)):
        head = Head(loss, C, schedules.constant(0.2), scale=SCALE)
        np.testing.assert_allclose(head(x, y, w, 0)[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="yours has its own"):
        Head(own, C, schedules.constant(0.2), constants={"t": 1.0})


def test_a_margin_added_after_import_is_a_word_in_a_config(monkeypatch):
    own = margins_lib.Margin(_steep, margins_lib.plain_eta, 0.0, 0.2, "here")
    monkeypatch.setitem(margins_lib.MARGINS, "steep", own)
    assert "steep" in catalogue.loss_names()
    config = config_lib.default_config()
    config.head.loss = "steep"
    config.train.epochs = 1.0
    config_lib.validate(config)
    assert config_lib.member_of(config).margin is own


@pytest.mark.parametrize("name", ["sphereface_r_v2", "sphereface2_c", "plain_softmax"])
def test_a_label_of_no_class_makes_its_loss_nan(name):
    """And only its own; the gradients of the others stay finite."""
    x, y, w = map(jnp.asarray, data("cosface"))
    bad = y.at[1].set(C).at[2].set(-1)
    head = Head(name, C, schedules.constant(catalogue.member_of(name).margin.default))
    given = Carried(trained=head.trained())

    def loss(x, labels):
        return head(x, labels, w, 0, carried=given)[0]

    found, expected = loss(x, bad), loss(x, y)
    assert np.isnan(found[1:3]).all()
    rest = [0, *range(3, len(y))]
    np.testing.assert_array_equal(found[jnp.array(rest)], expected[jnp.array(rest)])
    gradient = jax.grad(lambda x: loss(x, bad).sum())(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [128, 300])
def test_labels_may_be_as_narrow_as_they_like(classes):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(5, 8))), rng.normal(size=(classes, 8))
    labels, margin = np.array([0, 1, 7, 43, 44]), schedules.constant(0.2)
    head = Head("cosface", classes, margin, prototype_norm="differentiate")
    expected, _ = head(x, jnp.asarray(labels), jnp.asarray(w), 0)
    found, _ = head(x, jnp.asarray(labels, jnp.int8), jnp.asarray(w), 0)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("norm", ["hfn", "sfn"])
def test_a_scale_of_0_is_refused(norm):
    with pytest.raises(ValueError, match=r"scale is 0.0, expected a number > 0"):
        Head("cosface", C, schedules.constant(0.2), norm=norm, scale=0.0)
