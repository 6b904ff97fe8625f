"""The official heads' numbers (OpenSphere in float64) and 40-step trajectories."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax import geometry, losses, magnitudes, margins, optimizer, streaming

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("float64")]

# The official code clips cosines and has 3.14159 for pi: agreement is to that, not to
# rounding. Gradients are compared relative to their norm.
RELATIVE = 1e-6

HEADS = {
    "normface": ("normface", "cosine"),
    "cosface": ("cosface", "cosine"),
    "arcface": ("arcface", "cosine"),
    "sphereface": ("sphereface", "cosine"),
    "ga_softmax": ("ga_softmax", "angle"),
    **{
        f"sfr_{variant}_{norm}": (name, "cosine")
        for variant, name in (
            ("v0", "sphereface"),
            ("v1", "sphereface_r_v1"),
            ("v2", "sphereface_r_v2"),
        )
        for norm in ("hfn", "nfn", "sfn")
    },
}


def magnitude_of(hyper):
    norm = hyper.get("norm", "hfn")
    if norm == "hfn":
        return magnitudes.hfn(hyper["s"])
    if norm == "nfn":
        return magnitudes.nfn()
    return magnitudes.sfn(hyper["s"], hyper["t"])


def official_loss(x, y, w, hyper, margin, detach, chunk=0):
    # Heads older than SphereFace-R have no loss weight: plain cross-entropy.
    weight = hyper.get("loss_weight", hyper.get("lw"))

    def loss_of(context):
        return losses.hyperspherical(
            margin=margins.MARGINS[margin],
            magnitude=magnitude_of(hyper),
            context=context,
            detach=detach,
            clamp="official",
            loss_weight=1.0 if weight is None else weight,
            divide_by_scale=weight is not None,
        )

    loss, _ = streaming.evaluate(
        loss_of,
        margins.MarginContext(margin=hyper.get("m", 0.0)),
        x,
        jnp.asarray(y),
        w,
        num_classes=len(w),
        chunk=chunk,
    )
    return jnp.mean(loss)


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("case", HEADS)
def test_loss_and_gradients(case, chunk, shared):
    oracle = np.load(shared("oracles/heads.npz"))
    hyper = json.loads(str(oracle[f"{case}/hyperparameters"]))
    name, detach = HEADS[case]
    loss, (dx, dw) = jax.value_and_grad(official_loss, argnums=(0, 2))(
        jnp.asarray(oracle[f"{case}/x"]),
        oracle[f"{case}/y"],
        jnp.asarray(oracle[f"{case}/w"].T),
        hyper,
        name,
        detach,
        chunk,
    )
    assert float(loss) == pytest.approx(float(oracle[f"{case}/loss"]), rel=RELATIVE)
    for got, want in ((dx, oracle[f"{case}/dx"]), (dw.T, oracle[f"{case}/dw"])):
        assert np.linalg.norm(got - want) <= RELATIVE * np.linalg.norm(want)


@pytest.mark.parametrize("case", ["v2_hfn", "v1_hfn", "v2_sfn"])
def test_forty_optimizer_steps(case, shared):
    """Projecting after the update gives the official trajectory."""
    oracle = np.load(shared("oracles/trajectories.npz"))
    hyper = json.loads(str(oracle[f"{case}/hyperparameters"]))
    params = {
        "backbone": jnp.asarray(oracle[f"{case}/A0"]),
        "prototypes": geometry.l2_normalize(jnp.asarray(oracle[f"{case}/W0"].T)),
    }
    part = optimizer.PartSettings(weight_decay=hyper["weight_decay"])
    tx = optimizer.make_optimizer(
        "sgd",
        learning_rate=lambda step: hyper["lr"],
        momentum=hyper["momentum"],
        backbone=part,
        prototypes=part,
    )
    state = tx.init(params)

    def loss_fn(params, x, y):
        return official_loss(
            x @ params["backbone"],
            y,
            params["prototypes"],
            hyper,
            f"sphereface_r_{hyper['variant']}",
            "cosine",
        )

    @jax.jit
    def step(params, state, x, y):
        loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
        params, state = optimizer.update(
            tx, gradients, state, params, prototype_norm="project"
        )
        return params, state, loss

    got = []
    batches = zip(oracle[f"{case}/X"], oracle[f"{case}/Y"], strict=True)
    for x, y in batches:
        params, state, loss = step(params, state, jnp.asarray(x), jnp.asarray(y))
        got.append(float(loss))
    np.testing.assert_allclose(got, oracle[f"{case}/loss"], rtol=1e-9)
    np.testing.assert_allclose(params["backbone"], oracle[f"{case}/A"], rtol=1e-8)
    last = oracle[f"{case}/W"]
    unit = last / np.linalg.norm(last, axis=0)
    np.testing.assert_allclose(params["prototypes"].T, unit, rtol=1e-8, atol=1e-12)
