"""Partial FC: who is drawn, what the loss is then, and that the rest stays still."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperface_jax import (
    augment,
    backbones,
    classifier,
    geometry,
    losses,
    magnitudes,
    margins,
    optimizer,
    sampling,
    schedules,
    sharding,
    streaming,
)
from hyperface_jax.training import train_state, train_step

ROWS, CLASSES, BATCH, DIM = 64, 57, 8, 6
MESHES = [(None, "all"), (1, "all"), (2, "all"), (4, "model"), (2, "model")]


def mesh_of(model):
    return None if model is None else sharding.make_mesh(model, jax.devices()[:4])


def sampler_of(rate=0.5, *, model=None, classes="all", batch=BATCH):
    return sampling.make_sampler(
        rate,
        rows=ROWS,
        num_classes=CLASSES,
        batch_size=batch,
        mesh=mesh_of(model),
        class_axes=sharding.class_axes(classes),
    )


def labels_of(seed=0):
    return np.random.default_rng(seed).integers(0, CLASSES, BATCH).astype(np.int32)


@pytest.mark.parametrize(("model", "classes"), MESHES)
def test_the_batch_and_a_fixed_number_of_others(model, classes):
    sampler = sampler_of(model=model, classes=classes)
    draw = jax.jit(sampler.draw)
    shards = 1 if model is None else 4 if classes == "all" else model
    seen = np.zeros(ROWS)
    for k in range(200):
        labels = labels_of(k)
        ids = np.asarray(draw(jax.random.key(k), labels))
        assert ids.shape == (ROWS // 2,)
        assert len(set(ids)) == ROWS // 2
        assert set(labels) <= set(ids)
        for part, own in zip(ids.reshape(shards, -1), range(shards), strict=True):
            assert (np.diff(part) > 0).all()
            assert (part // (ROWS // shards) == own).all()
        seen[ids] += 1
    # Others are drawn alike: half of the time, less what the batch takes.
    assert seen[:CLASSES].min() > 0.3 * 200
    # A device takes padding only when it has nothing else (57 of 64 are classes).
    assert seen[CLASSES:].sum() <= (200 if shards == 4 else 0)


def test_the_draw_is_a_function_of_the_key():
    draw, labels = sampler_of().draw, labels_of()
    first, again, other = (draw(jax.random.key(k), labels) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.core
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("model", "classes", "chunk"),
    [(None, "all", 0), (2, "all", 4), (2, "model", 0)],
)
def test_the_loss_is_that_of_the_drawn_classes(model, classes, chunk):
    """Loss and gradients equal the whole matrix with the others masked out."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((BATCH, DIM)))
    w = geometry.l2_normalize(jnp.asarray(rng.standard_normal((ROWS, DIM))))
    labels = jnp.asarray(labels_of())
    sampler = sampler_of(model=model, classes=classes)
    tree = {"prototypes": w}
    ids = sampler.draw(jax.random.key(5), labels)
    loss_fn = classifier.Head(
        "sphereface_r_v2",
        num_classes=CLASSES,
        scale=15.0,
        margin=schedules.constant(1.4),
        chunk=chunk,
        mesh=mesh_of(model),
        class_axes=sharding.class_axes(classes),
    )
    whole = losses.hyperspherical(
        margin=margins.get_margin("sphereface_r_v2"),
        magnitude=magnitudes.hfn(15.0),
        context=margins.MarginContext(margin=1.4),
    )
    drawn = np.zeros(ROWS, bool)
    drawn[np.asarray(ids)] = True
    drawn[CLASSES:] = False

    def sampled(x, w):
        rows = sampler.take({"prototypes": w}, ids)["prototypes"]
        return jnp.sum(loss_fn(x, labels, rows, 0, ids)[0])

    def masked(x, w):
        return jnp.sum(losses.dense(whole, x, labels, w, jnp.asarray(drawn))[0])

    got, want = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (sampled, masked)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want
    )
    back = sampler.put(tree, ids, sampler.take(tree, ids))["prototypes"]
    np.testing.assert_array_equal(back, w)


def step_of(rate, model=None, loss="sphereface_r_v2"):
    """(state, jitted step) of a narrow network with momentum and weight decay."""
    network = backbones.create_backbone("sfnet4", width=4, embedding_dim=DIM)
    part = optimizer.PartSettings(weight_decay=0.01)
    rate_of = schedules.constant(0.05)
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=rate_of, backbone=part, prototypes=part
    )
    mesh = sharding.make_mesh(model or 1, jax.devices()[: 1 if model is None else 4])
    margin = schedules.constant(1.4)
    head = classifier.Head(
        loss, num_classes=CLASSES, scale=20.0, margin=margin, mesh=mesh
    )
    step = train_step.make_train_step(
        backbone=network,
        augment=augment.make_augment(augment.AugmentSettings(flip=0)),
        head=head,
        tx=tx,
        learning_rate=rate_of,
        margin=margin,
        sampler=sampling.make_sampler(
            rate, rows=ROWS, num_classes=CLASSES, batch_size=BATCH, mesh=mesh
        )
        if rate
        else None,
    )
    init = functools.partial(
        train_state.init_train_state,
        backbone=network,
        image_size=32,
        head=head,
        class_multiple=ROWS,
        prototype_init="xavier_normal",
        unit_prototypes=True,
        tx=tx,
        seed=0,
        ema=False,
    )
    create, step = sharding.jit_on_mesh(init, step, mesh, donate=False)
    return create(), step


def batch_of(seed, most=CLASSES):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, most, BATCH).astype(np.int32),
        "weight": np.ones(BATCH, np.float32),
    }


def class_arrays(state):
    """Prototypes and their momentum."""
    (trace,) = (
        s.trace["prototypes"]
        for s in jax.tree.leaves(
            state.opt_state, is_leaf=lambda s: isinstance(s, optax.TraceState)
        )
        if isinstance(s, optax.TraceState)
        and not isinstance(s.trace["prototypes"], optax.MaskedNode)
    )
    return np.asarray(state.params["prototypes"]), np.asarray(trace)


@pytest.mark.parametrize("model", [None, 2])
def test_what_is_not_drawn_stays_where_it_is(model):
    """To the bit, momentum included, though momentum and decay are not 0."""
    state, step = step_of(0.5, model)
    moved = np.zeros(ROWS)
    for k in range(6):
        before = class_arrays(state)
        state, _ = step(state, batch_of(k))
        after = class_arrays(state)
        changed = [(a != b).any(axis=1) for a, b in zip(before, after, strict=True)]
        assert (~changed[1] | changed[0]).all()
        moved += changed[0]
        assert changed[0].sum() <= ROWS // 2
        assert set(batch_of(k)["label"]) <= set(np.flatnonzero(changed[0]))
    assert moved[:CLASSES].min() < 6  # of those that were not drawn in every step
    np.testing.assert_array_equal(moved[CLASSES:], 0)
    norms = np.linalg.norm(class_arrays(state)[0][:CLASSES], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_all_classes_are_the_exact_step():
    """Rate 1 through the sampler equals the step without one."""
    drawn, exact = step_of(1.0), step_of(None)
    for k in range(4):
        drawn, exact = (
            (step(state, batch_of(k))[0], step) for state, step in (drawn, exact)
        )
    for a, b in zip(class_arrays(drawn[0]), class_arrays(exact[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_long_run_does_not_drift():
    """A class that is never in a batch moves only when it is drawn.

    With one dense update its momentum would carry it on in every step between.
    """
    state, step = step_of(0.25)
    drawn = still = 0
    for k in range(40):
        before = class_arrays(state)[0][CLASSES - 1]
        state, _ = step(state, batch_of(k, most=5))
        if (class_arrays(state)[0][CLASSES - 1] != before).any():
            drawn += 1
        else:
            still += 1
    assert drawn > 2
    assert still > 20


@pytest.mark.parametrize(
    ("rate", "batch", "message"),
    [
        (
            0.1,
            64,
            r"head.sample_rate is 0.1: 6 of 64 classes on each of 1 devices, exp",
        ),
        (0.0, 8, r"head.sample_rate is 0.0, expected 0 < rate <= 1"),
        (1.5, 8, r"head.sample_rate is 1.5, expected"),
    ],
)
def test_a_rate_that_cannot_hold_the_batch(rate, batch, message):
    with pytest.raises(ValueError, match=message):
        sampler_of(rate, batch=batch)


@pytest.mark.parametrize("devices", [1, 8, 64])
@pytest.mark.parametrize("classes", [94_208, 360_448, 2_060_288])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_share_that_is_drawn_is_what_was_asked_for(rate, classes, devices):
    count = sampling.rows_per_device(rate, classes, 64, devices)
    local = classes // devices
    assert rate * local - 1 <= count <= 1.0625 * rate * local + 1
    # Even chunks: at least a sixteenth of a thousand classes at a time.
    assert streaming.choose_chunk(4096, count, 1024) >= min(64, count // 2)


def test_the_interclass_filter_ignores_near_classes():
    """A class nearer than the threshold pulls and pushes nothing; the target does."""
    w = jnp.eye(4)
    x = jnp.asarray([[1.0, 0.6, 0.1, 0.0]])
    labels = jnp.asarray([0])

    def total(w, filter_):
        loss = losses.hyperspherical(
            margin=margins.get_margin("normface"),
            magnitude=magnitudes.hfn(10.0),
            context=margins.MarginContext(margin=0.0),
            interclass_filter=filter_,
            divide_by_scale=False,
        )
        values, _ = streaming.evaluate(lambda _: loss, (), x, labels, w, num_classes=4)
        return values[0]

    unit = np.asarray(x[0] / jnp.linalg.norm(x))
    logits = 10 * np.where([False, True, False, False], 0, unit)
    want = np.log(np.exp(logits).sum()) - logits[0]
    value, gradient = jax.value_and_grad(total)(w, 0.4)
    # A small loss: float32 holds log(1 + .0008) to about 1e-4 of itself.
    np.testing.assert_allclose(value, want, rtol=5e-4)
    assert np.abs(gradient[1]).max() == 0
    assert np.abs(gradient[0]).max() > 0
    assert np.abs(jax.grad(total)(w, 0.0)[1]).max() > 0
