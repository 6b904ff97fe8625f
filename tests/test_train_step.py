"""The step: parts of a batch, weights, the latch, the mesh, compilations."""

import functools
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import augment, catalogue, classifier, optimizer, schedules, sharding
from hyperface_jax.backbones import create_backbone
from hyperface_jax.carried import Carried
from hyperface_jax.training import checkpoint, train_state, train_step

pytestmark = pytest.mark.core

CLASSES, SIZE, BATCH = 10, 32, 16
LEVEL = schedules.constant(0.5)


def setup(
    *,
    backbone="sfnet4",
    devices=1,
    model=1,
    margin=None,
    ema_decay=0.0,
    settings=None,
    norm="hfn",
    prototype_norm="project",
    chunk=0,
    classes="all",
    loss="sphereface_r_v2",
    **step_options,
):
    """(initial state, jitted step, mesh) of a narrow network."""
    mesh = sharding.make_mesh(model, jax.devices()[:devices])
    network = create_backbone(backbone, width=4, embedding_dim=8)
    learning_rate = schedules.constant(0.05)
    margin = margin or schedules.constant(1.4)
    part = optimizer.PartSettings()
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=learning_rate, backbone=part, prototypes=part
    )
    head = classifier.Head(
        loss,
        num_classes=CLASSES,
        norm=norm,
        scale=20.0,
        margin=margin,
        loss_weight=10.0,
        prototype_norm=prototype_norm,
        chunk=chunk,
        mesh=mesh,
        class_axes=sharding.class_axes(classes),
    )
    step = train_step.make_train_step(
        backbone=network,
        augment=augment.make_augment(settings or augment.AugmentSettings(flip=0)),
        head=head,
        tx=tx,
        learning_rate=learning_rate,
        margin=margin,
        prototype_norm=prototype_norm,
        ema_decay=ema_decay,
        **step_options,
    )
    init = functools.partial(
        train_state.init_train_state,
        backbone=network,
        image_size=SIZE,
        head=head,
        class_multiple=8,
        prototype_init="xavier_normal",
        unit_prototypes=prototype_norm == "project",
        tx=tx,
        seed=0,
        ema=ema_decay > 0,
    )
    create, step = sharding.jit_on_mesh(
        init, step, mesh, class_axes=sharding.class_axes(classes), donate=False
    )
    return create(), step, mesh


def make_batch(seed=0, weight=None):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "weight": np.ones(BATCH, np.float32) if weight is None else weight,
    }


def run(steps=3, batches=None, **options):
    state, step, mesh = setup(**options)
    metrics = []
    for k in range(steps):
        batch = make_batch(k) if batches is None else batches[k]
        state, row = step(state, sharding.put_batch(mesh, batch))
        metrics.append({key: float(value) for key, value in row.items()})
    return jax.device_get(state), metrics


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
    )


def test_loss_falls_and_metrics_are_sane():
    batch = make_batch()
    state, metrics = run(steps=15, batches=[batch] * 15, backbone="sfnet4_bn")
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[-1]["target_angle"] < metrics[0]["target_angle"]
    assert 80 < metrics[0]["target_angle"] < 100
    assert metrics[0]["margin"] == pytest.approx(1.4)
    assert metrics[0]["examples"] == BATCH
    assert int(state.step) == 15
    norms = np.linalg.norm(state.params["prototypes"], axis=1)
    np.testing.assert_allclose(norms[:CLASSES], 1, rtol=1e-6)
    np.testing.assert_array_equal(norms[CLASSES:], 0)  # padding stays where it was


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(accumulate):
    whole, parts = run(), run(accumulate=accumulate)
    assert_close(whole[0].params, parts[0].params)
    for a, b in zip(whole[1], parts[1], strict=True):
        # A difference of two large numbers in float32.
        assert a.pop("magnitude_std") == pytest.approx(b.pop("magnitude_std"), rel=1e-2)
        assert a == pytest.approx(b, rel=1e-4)


def test_examples_of_weight_zero_change_nothing():
    """Not the loss, not BatchNorm, not a metric."""
    weight = np.ones(BATCH, np.float32)
    weight[[2, 7]] = 0
    clean = make_batch(0, weight)
    dirty = make_batch(0, weight)
    dirty["image"][[2, 7]] = 255
    dirty["label"][[2, 7]] = 0
    results = [run(1, [batch], backbone="sfnet4_bn") for batch in (clean, dirty)]
    assert_close(results[0][0].params, results[1][0].params, rtol=1e-6)
    assert_close(results[0][0].batch_stats, results[1][0].batch_stats, rtol=1e-6)
    assert results[0][1] == results[1][1]
    assert results[0][1][0]["examples"] == BATCH - 2


MOVING = augment.AugmentSettings(flip=0.5, shift=0.1, erase=0.5)


@functools.cache
def one_device(steps, backbone):
    return run(steps, backbone=backbone, settings=MOVING)


@pytest.mark.parametrize(
    ("steps", "backbone", "model", "chunk", "classes"),
    [
        (20, "sfnet4", 1, 0, "all"),
        (20, "sfnet4", 2, 2, "all"),
        (20, "sfnet4", 4, 2, "model"),
        (3, "sfnet4_bn", 2, 2, "all"),
    ],
)
def test_any_mesh_equals_one_device(steps, backbone, model, chunk, classes):
    """The whole step; with BatchNorm rounding grows too fast for twenty steps."""
    one = one_device(steps, backbone)
    many = run(
        steps,
        backbone=backbone,
        settings=MOVING,
        devices=4,
        model=model,
        chunk=chunk,
        classes=classes,
    )
    for step in range(steps):
        for name in ("loss", "grad_norm_backbone", "grad_norm_prototypes"):
            want = pytest.approx(one[1][step][name], rel=1e-4)
            assert many[1][step][name] == want, (step, name)
    assert_close(one[0].params, many[0].params, rtol=2e-4, atol=2e-5)
    assert_close(one[0].batch_stats, many[0].batch_stats, rtol=1e-4, atol=1e-5)


def test_a_margin_schedule_compiles_once():
    stairs, traces = schedules.stairs(1.0, 0.1, (1, 2, 3, 4)), []

    def schedule(step):
        traces.append(step)
        return stairs(step)

    state, step, mesh = setup(margin=schedule)
    seen, counts = [], []
    for k in range(6):
        state, metrics = step(state, sharding.put_batch(mesh, make_batch(k)))
        seen.append(float(metrics["margin"]))
        counts.append(len(traces))
    np.testing.assert_allclose(seen, [1.0, 1.1, 1.2, 1.3, 1.4, 1.4], rtol=1e-6)
    assert counts[0] > 0
    assert counts[-1] == counts[0]


def test_non_finite_step_is_latched():
    def nan_at_two(step):
        return jnp.where(step == 2, jnp.nan, 1.4)

    state, step, mesh = setup(margin=nan_at_two, ema_decay=0.9, backbone="sfnet4_bn")
    states, losses = [], []
    for k in range(5):
        state, metrics = step(state, sharding.put_batch(mesh, make_batch(k)))
        states.append(state)
        losses.append(float(metrics["loss"]))
    assert int(state.nonfinite_step) == 2
    assert int(state.step) == 2
    assert np.isnan(losses[2])
    before = states[1].replace(nonfinite_step=state.nonfinite_step)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_moving_average():
    decay = 0.5
    state, step, mesh = setup(ema_decay=decay)
    expected = jax.device_get(state.params["backbone"])
    for k in range(3):
        state, _ = step(state, sharding.put_batch(mesh, make_batch(k)))
        new = jax.device_get(state.params["backbone"])
        expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, expected, new)
    assert_close(state.ema["backbone"], expected)
    weights, _ = state.evaluation_weights(use_ema=True)
    assert weights is state.ema["backbone"]
    weights, _ = state.evaluation_weights(use_ema=False)
    assert weights is state.params["backbone"]


def test_prototypes_and_momentum_live_on_all_devices():
    state, step, mesh = setup(devices=4)
    state, _ = step(state, sharding.put_batch(mesh, make_batch()))
    rows = state.params["prototypes"].shape[0]
    shard = state.params["prototypes"].addressable_shards[0].data
    assert shard.shape == (rows // 4, 8)


def test_shapes_that_cannot_be_sharded():
    mesh = sharding.make_mesh(1, jax.devices()[:4])
    with pytest.raises(
        ValueError, match=r"batch_size is 6, expected a multiple of the 4"
    ):
        sharding.check_divisible("train.batch_size", 6, mesh)
    with pytest.raises(
        ValueError, match=r"mesh.model is 3, expected a divisor of the 4"
    ):
        sharding.make_mesh(3)


@pytest.mark.parametrize("loss", catalogue.loss_names())
def test_every_loss_has_a_downhill_gradient(loss):
    """One update of every row of the table, differentiable prototypes included."""
    learning_rate = schedules.constant(0.01)
    part = optimizer.PartSettings()
    tx = optimizer.make_optimizer(
        "sgd", learning_rate=learning_rate, backbone=part, prototypes=part
    )
    head = classifier.Head("normface" if loss == "plain_softmax" else loss, 2, LEVEL)
    fixed = head.member.binary or head.member.own_scale
    head = classifier.Head(
        loss,
        num_classes=CLASSES,
        norm="hfn" if fixed else "nfn" if loss == "plain_softmax" else "sfn",
        margin=schedules.constant(0.5 if head.member.margin.neutral == 0 else 1.5),
        annealing=schedules.sphereface_annealing(),
        prototype_norm="differentiate",
        detach="none",
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((6, 8)), jnp.float32)
    shape = (16, 8) if head.centres == 1 else (16, head.centres, 8)
    w = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    y = jnp.arange(6)
    memory = head.memory(16, 8)

    def mean(params):
        carried = Carried(params.get("head", {}), memory, key=jax.random.key(0))
        where = (params["backbone"], y, params["prototypes"], 0, None)
        return jnp.mean(head(*where, carried)[0])

    params = {"backbone": x, "prototypes": w}
    if trained := head.trained():
        params["head"] = trained
    before, gradients = jax.value_and_grad(mean)(params)
    new, _ = optimizer.update(
        tx, gradients, tx.init(params), params, prototype_norm="differentiate"
    )
    assert mean(new) < before
    np.testing.assert_array_equal(gradients["prototypes"][CLASSES:], 0)


def assert_near(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        found,
        expected,
    )


REMEMBERING = ("adaface", "adacos", "vpl_arcface")


@pytest.mark.parametrize("loss", ["adaface", "vpl_arcface", "sphereface2_c"])
def test_what_a_loss_carries_goes_with_the_state(loss, tmp_path):
    """Moved once a step, equal on four devices and in parts, saved and restored."""
    one, step, _ = setup(loss=loss, margin=LEVEL)
    four, step4, mesh = setup(loss=loss, margin=LEVEL, devices=4, model=2)
    weight = np.ones(BATCH, np.float32)
    weight[3] = 0
    batches = [make_batch(seed, weight) for seed in range(2)]
    for batch in batches:
        one, metrics = step(one, batch)
        four, _ = step4(four, sharding.put_batch(mesh, batch))

    def of(state):
        return {k: v for k, v in state.params.items() if k != "backbone"}, state.memory

    assert_near(of(four), of(one))
    assert bool(one.memory) == (loss in REMEMBERING)
    assert all(np.isfinite(v) for v in metrics.values())
    if loss in ("adaface", "vpl_arcface"):
        start, step_parts, _ = setup(loss=loss, margin=LEVEL, accumulate=2)
        parts, _ = step_parts(start, batches[0])
        assert_near(parts.memory, step(start, batches[0])[0].memory)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(one, {})
    fresh, *_ = setup(loss=loss, margin=LEVEL)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(fresh)
    jax.tree.map(np.testing.assert_array_equal, restored, one)


def test_parts_of_a_batch_on_a_mesh():
    """Accumulation and classes in chunks over four devices at once."""
    one = run(accumulate=2)
    many = run(accumulate=2, devices=4, model=2, chunk=2)
    assert_close(one[0].params, many[0].params, rtol=1e-4)
    assert many[1][-1]["loss"] == pytest.approx(one[1][-1]["loss"], rel=1e-5)


def flops_of_a_device(**options):
    state, step, mesh = setup(backbone="sfnet4_bn", **options)
    batch = sharding.put_batch(mesh, make_batch())
    return step.lower(state, batch).compile().cost_analysis()["flops"]


def test_every_mesh_computes_a_quarter():
    """No mesh computes the backbone twice: it follows the batch, not the classes."""
    one = flops_of_a_device()
    for model in (1, 2, 4):
        part = flops_of_a_device(devices=4, model=model)
        assert part == pytest.approx(one / 4, rel=0.1)


@pytest.fixture(scope="module")
def saved_on_four(tmp_path_factory):
    """(folder with step 3, parameters after step 6, metrics) of four devices."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    state, step, mesh = setup(backbone="sfnet4", settings=MOVING, devices=4)
    losses = []
    with checkpoint.Checkpoints(folder) as checkpoints:
        for k in range(6):
            state, row = step(state, sharding.put_batch(mesh, make_batch(k)))
            losses.append(float(row["loss"]))
            if k == 2:
                checkpoints.save(state, {})
    return folder, jax.device_get(state.params), losses


@pytest.mark.parametrize(("devices", "model"), [(1, 1), (2, 1), (2, 2)])
def test_a_checkpoint_of_four_devices_goes_on_elsewhere(devices, model, saved_on_four):
    folder, params, losses = saved_on_four
    fresh, step, mesh = setup(
        backbone="sfnet4", settings=MOVING, devices=devices, model=model
    )
    with checkpoint.Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(fresh)
    assert int(state.step) == 3
    assert state.params["prototypes"].sharding.num_devices == devices
    for k in range(3, 6):
        state, row = step(state, sharding.put_batch(mesh, make_batch(k)))
        assert float(row["loss"]) == pytest.approx(losses[k], rel=1e-5)
    assert_close(jax.device_get(state).params, params, rtol=1e-4, atol=1e-5)


def test_saving_keeps_neither_threads_nor_open_files(tmp_path):
    """Three descriptors a save would end a run at its 340th checkpoint."""

    def held() -> tuple[int, int]:
        files = Path("/proc/self/fd")
        return threading.active_count(), len(
            list(files.iterdir())
        ) if files.exists() else 0

    state, *_ = setup()
    before = held()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for k in range(1, 11):
            checkpoints.save(state.replace(step=jnp.asarray(k)), {})
    threads, files = np.subtract(held(), before)
    assert threads < 5
    assert files < 10


def test_the_moving_average_of_what_stands_still_stays():
    """decay and 1 - decay, each rounded to float32, do not add up to 1."""
    weights = {"w": jnp.asarray([1.0, -3.0, 1e-3])}
    ema = {"backbone": weights, "batch_stats": {}}
    average = jax.jit(lambda e: train_step._moving_average(e, weights, {}, 0.9999))
    for _ in range(3000):
        ema = average(ema)
    np.testing.assert_array_equal(ema["backbone"]["w"], weights["w"])
