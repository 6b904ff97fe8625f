"""Schedules as functions of the step."""

import jax
import numpy as np
import pytest

from hyperface_jax import schedules

pytestmark = pytest.mark.core


def values(schedule, steps):
    return np.asarray([float(schedule(step)) for step in steps])


def test_stairs_are_the_official_schedule():
    """m = 1 + dm·#{s < n} at forward pass n, counted from 1: step n - 1 here."""
    schedule = schedules.stairs(1.0, 0.1, (3, 5, 5))
    official = [1 + 0.1 * sum(s < n for s in (3, 5, 5)) for n in range(1, 10)]
    np.testing.assert_allclose(values(schedule, range(9)), official, rtol=1e-6)
    assert jax.jit(schedule)(4) == pytest.approx(1.1)


def test_annealing_of_sphereface():
    schedule = schedules.sphereface_annealing()
    np.testing.assert_allclose(
        values(schedule, [0, 100, 10_000]), [1000, 1000 / 13, 5], rtol=1e-6
    )


@pytest.mark.parametrize("name", schedules.LEARNING_RATES)
def test_warm_up_then_the_schedule(name):
    schedule = schedules.learning_rate(
        name, peak=0.4, total_steps=100, warmup_steps=10, milestones=(40, 80)
    )
    np.testing.assert_allclose(
        values(schedule, range(10)), 0.4 * np.arange(1, 11) / 10, rtol=1e-5
    )
    got = values(schedule, [39, 41, 81, 100])
    expected = {
        "constant": [0.4, 0.4, 0.4, 0.4],
        "multistep": [0.4, 0.04, 0.004, 0.004],
        "cosine": [0.2 * (1 + np.cos(np.pi * k / 90)) for k in (29, 31, 71, 90)],
        "polynomial": [0.4 * (1 - k / 90) for k in (29, 31, 71, 90)],
    }
    np.testing.assert_allclose(got, expected[name], rtol=1e-4, atol=1e-7)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'linear', expected one of"):
        schedules.learning_rate("linear", peak=1, total_steps=10)
