"""The head in chunks and shards: the same numbers as the whole matrix, less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import (
    catalogue,
    class_sums,
    classifier,
    losses,
    magnitudes,
    margins,
    schedules,
    sharding,
    streaming,
)
from hyperface_jax.planning import programs

pytestmark = pytest.mark.core

BATCH, DIM, CLASSES, ROWS = 8, 6, 27, 32
MESHES = [(None, "all"), (1, "all"), (2, "all"), (4, "all"), (2, "model")]


def data(seed=0, batch=BATCH, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = 3 * rng.standard_normal((batch, DIM))
    w = rng.standard_normal((ROWS, DIM))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    labels = rng.integers(0, CLASSES, batch).astype(np.int32)
    labels[:2] = 0, CLASSES - 1
    # An example on its class vector and one on the opposite pole.
    x[0], x[1] = 2 * w[labels[0]], -2 * w[labels[1]]
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(labels)


def loss_and_gradients(loss, norm, detach, *, prototype_norm="project", **where):
    """Per-example losses, aux, and the gradients of a weighted sum of the losses."""
    x, w, labels = data()
    loss_fn = classifier.Head(
        loss,
        num_classes=CLASSES,
        norm=norm,
        scale=12.0,
        margin=schedules.constant(0.4 if "face" in loss[-5:] else 1.5),
        annealing=schedules.sphereface_annealing(),
        detach=detach,
        prototype_norm=prototype_norm,
        **where,
    )

    def total(x, w):
        values, aux = loss_fn(x, labels, w, 0)
        return jnp.sum(values * jnp.linspace(0.5, 1.5, BATCH)), (values, aux)

    value_and_grad = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, (values, aux)), (dx, dw) = value_and_grad(x, w)
    return {"loss": values, "dx": dx, "dw": dw, **aux}


@functools.cache
def dense(*case):
    loss, norm, detach, prototype_norm = case
    return loss_and_gradients(
        loss, norm, detach, prototype_norm=prototype_norm, chunk=ROWS
    )


def assert_equal(got, want, rtol=1e-9):
    assert got.keys() == want.keys()
    for name in want:
        scale = np.abs(want[name]).max()
        np.testing.assert_allclose(
            got[name], want[name], rtol=rtol, atol=rtol * scale, err_msg=name
        )


@pytest.mark.usefixtures("float64", "strict_promotion")
@pytest.mark.parametrize("detach", margins.DETACH)
@pytest.mark.parametrize("loss", [catalogue.PLAIN_SOFTMAX, *margins.MARGINS])
def test_chunks_equal_the_whole_matrix(loss, detach):
    norm = {"none": "hfn", "cosine": "sfn", "angle": "nfn"}[detach]
    want = dense(loss, norm, detach, "project")
    assert_equal(loss_and_gradients(loss, norm, detach, chunk=4), want)
    assert np.isfinite(want["dx"]).all()
    assert np.abs(want["dw"][:CLASSES]).max() > 0
    np.testing.assert_array_equal(want["dw"][CLASSES:], 0)


@pytest.mark.usefixtures("float64", "strict_promotion")
@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize(("model", "classes"), MESHES[1:])
@pytest.mark.parametrize(
    "case",
    [
        ("sphereface_r_v2", "sfn", "none", "differentiate"),
        ("sphereface_r_v1", "hfn", "cosine", "project"),
        ("plain_softmax", "nfn", "none", "project"),
    ],
    ids=lambda case: case[0],
)
def test_every_mesh_equals_one_device(case, model, classes, chunk):
    got = loss_and_gradients(
        *case[:3],
        prototype_norm=case[3],
        chunk=chunk,
        mesh=sharding.make_mesh(model, jax.devices()[:4]),
        class_axes=sharding.class_axes(classes),
    )
    assert_equal(got, dense(*case))


def hardest_other(target_cos, context):
    return target_cos - context.margin


def harder_where_above_the_target(cos, target_cos, context):
    """In the manner of MV-Softmax: those above the target (with margin) count more."""
    hard = cos > target_cos - context.margin
    return jnp.where(hard, 1.2 * cos + 0.2, cos)


LOOKS_AT_TARGET = margins.Margin(
    hardest_other, harder_where_above_the_target, 0, 0.3, "for this test"
)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", [None, 2])
@pytest.mark.parametrize("chunk", [0, 4])
def test_others_may_depend_on_a_target_that_is_elsewhere(chunk, model):
    """In another chunk, and on another device."""
    x, w, labels = data()
    margin = margins.Margin(
        hardest_other, harder_where_above_the_target, 0, 0.3, "test"
    )

    def loss_of(context):
        return losses.hyperspherical(
            margin=margin,
            magnitude=magnitudes.hfn(10.0),
            context=context,
            detach="none",
        )

    context = margins.MarginContext(margin=jnp.asarray(0.3))
    mesh = None if model is None else sharding.make_mesh(model, jax.devices()[:4])
    mask = jnp.arange(ROWS) < CLASSES

    def whole(x, w):
        return jnp.sum(losses.dense(loss_of(context), x, labels, w, mask)[0])

    def parts(x, w):
        values, _ = streaming.evaluate(
            loss_of,
            context,
            x,
            labels,
            w,
            num_classes=CLASSES,
            chunk=chunk,
            mesh=mesh,
        )
        return jnp.sum(values)

    want, got = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (whole, parts))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), got, want
    )


def test_which_margins_look_at_the_target():
    """Only for these the head computes the target's cosine before all others."""
    context = margins.MarginContext(margin=0.3, annealing=5.0)
    known = margins.MARGINS.values()
    assert not any(margins.looks_at_target(margin, context) for margin in known)
    assert margins.looks_at_target(LOOKS_AT_TARGET, context)


def test_float32_is_close_to_float64():
    """Loss and both gradients; cosines next to the poles included."""
    x, w, labels = data(dtype=np.float32)
    loss_fn = classifier.Head(
        "sphereface_r_v2",
        num_classes=CLASSES,
        scale=60.0,
        margin=schedules.constant(1.4),
        chunk=4,
    )

    def total(x, w):
        return jnp.sum(loss_fn(x, labels, w, 0)[0])

    got = jax.device_get(jax.value_and_grad(total, (0, 1))(x, w))
    with jax.enable_x64(True):
        want = jax.device_get(jax.value_and_grad(total, (0, 1))(*data()[:2]))
    assert got[0].dtype == jnp.float32
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_a_chunk_of_padding_alone_adds_nothing():
    x = jnp.ones((3,), jnp.float32)
    logits = jnp.full((3, 4), 7.0)
    nothing = jnp.zeros((3, 4), bool)
    padding = class_sums.of_logits(logits, logits / 7, nothing, jnp.zeros(4, bool))
    start = class_sums.empty(x)
    sums = class_sums.add(start, padding)
    np.testing.assert_array_equal(sums.total, 0)
    real = class_sums.of_logits(logits, logits / 7, nothing, None)
    np.testing.assert_allclose(class_sums.add(sums, real).total, 4)


@pytest.mark.parametrize("rows", [4096, 4096 * 3, 4096 * 23, 4096 * 2441, 1024, 37])
def test_chunks_divide_the_rows(rows):
    for batch in (64, 512, 4096):
        for chunk in (0, 1, 1000, 4096, 10**9):
            found = streaming.choose_chunk(batch, rows, chunk)
            assert rows % found == 0
            assert 1 <= found <= (chunk or rows)
    if rows % 4096 == 0:
        # No chunk is so thin that a matrix product would starve.
        assert streaming.choose_chunk(512, rows * 64) >= 4096


def test_dense_is_chosen_where_it_fits():
    assert streaming.choose_chunk(64, 4096) == 4096
    assert streaming.choose_chunk(512, 131072) == 131072
    assert streaming.choose_chunk(512, 1048576) == 8192
    # A cosine for each of a class's vectors.
    assert streaming.choose_chunk(512, 131072, centres=3) == 2048
    # More memory, larger matrices.
    assert streaming.choose_chunk(512, 1048576, dense_bytes=1 << 34) == 1048576
    with pytest.raises(ValueError, match=r"head.chunk is -1, expected 0"):
        streaming.choose_chunk(8, 64, -1)


def test_rows_without_a_good_divisor_are_refused():
    """257 489 is a prime: chunks of one class would take for ever."""
    with pytest.raises(
        ValueError, match=r"head.class_multiple: 257489 rows .* of 1 at"
    ):
        streaming.choose_chunk(1024, 257489)
    assert streaming.choose_chunk(1024, 257489, 4096) == 1  # who asks for it gets it
    assert streaming.choose_chunk(1024, 4096 * 63) == 4096


def compiled(rows, *, batch=64, dim=32, chunk=0, model=None, classes="all"):
    mesh = None if model is None else sharding.make_mesh(model, jax.devices()[:4])
    loss_fn = classifier.Head(
        "sphereface_r_v2",
        num_classes=rows - 3,
        margin=schedules.constant(1.4),
        chunk=chunk,
        mesh=mesh,
        class_axes=sharding.class_axes(classes),
    )

    def total(x, w, labels):
        return jnp.mean(loss_fn(x, labels, w, 0)[0])

    def shape(*size, dtype=jnp.float32, spec=None):
        where = None
        if mesh is not None:
            where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(spec))
        return jax.ShapeDtypeStruct(size, dtype, sharding=where)

    return (
        jax.jit(jax.value_and_grad(total, (0, 1)))
        .lower(
            shape(batch, dim, spec=sharding.AXES),
            shape(rows, dim, spec=sharding.class_axes(classes)),
            shape(batch, dtype=jnp.int32, spec=sharding.AXES),
        )
        .compile()
    )


def temporary_bytes(rows, **options):
    return compiled(rows, **options).memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_classes():
    small, large = (temporary_bytes(rows, chunk=4096) for rows in (2**16, 2**20))
    # The running sums, five numbers an example and chunk, are kept for the gradient.
    assert large - small < 2 * 5 * 4 * 64 * (2**20 - 2**16) // 4096
    assert large < temporary_bytes(2**20, chunk=2**20) / 10


@pytest.mark.parametrize("chunk", [0, 1024])
@pytest.mark.parametrize("model", [1, 2, 4])
def test_no_class_axis_travels_and_nothing_travels_in_the_loop(model, chunk):
    results = {}
    for rows in (2**13, 2**15):
        text = compiled(rows, model=model, chunk=chunk).as_text()
        assert ("body=" in text) == bool(chunk)
        found = programs.collectives(text)
        assert found
        assert not any(one.in_loop for one in found)
        assert all(one.nbytes <= 64 * 32 * 4 for one in found)
        results[rows] = found
    assert results[2**13] == results[2**15]


def test_classes_on_model_alone_reduce_their_gradient_over_data():
    program = compiled(2**13, model=2, chunk=1024, classes="model")
    found = programs.collectives(program.as_text())
    assert not any(one.in_loop for one in found)
    gradient = programs.Collective("all-reduce", ((2**12, 32),), 2**12 * 32 * 4, False)
    assert gradient in found


@pytest.mark.parametrize("model", [1, 2, 4])
def test_a_device_holds_a_quarter(model):
    one = compiled(2**15, chunk=1024)
    four = compiled(2**15, chunk=1024, model=model)
    weights = [p.memory_analysis().argument_size_in_bytes for p in (one, four)]
    assert weights[1] == pytest.approx(weights[0] / 4, rel=0.01)
    dense = [compiled(2**15, chunk=2**15, model=m) for m in (None, model)]
    flops = [p.cost_analysis()["flops"] for p in dense]
    assert flops[1] == pytest.approx(flops[0] / 4, rel=0.1)
    temporary = [p.memory_analysis().temp_size_in_bytes for p in dense]
    assert temporary[1] < 1.1 * temporary[0] / 4
