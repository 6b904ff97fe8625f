"""The procedural face renderer: deterministic, three-dimensional, identifying."""

import dataclasses

import numpy as np
import pytest

from hyperface_jax.data.synth.colour import ITA_RANGE, ita_to_linear
from hyperface_jax.data.synth.conditions import (
    CONDITION_NAMES,
    from_vector,
    frontal,
    sample_conditions,
    to_vector,
)
from hyperface_jax.data.synth.encode import encode_jpeg
from hyperface_jax.data.synth.identity import sample_identity
from hyperface_jax.data.synth.pose import TEMPLATE
from hyperface_jax.data.synth.render import landmarks, prepare, render


def person(number):
    return sample_identity(np.random.default_rng([11, number]))


def shoot(subject, size=64, **changes):
    conditions = dataclasses.replace(frontal(), **changes)
    return render(subject, conditions, size, np.random.default_rng(0))


@pytest.fixture(scope="module")
def meshes():
    return [prepare(person(number)) for number in range(8)]


@pytest.mark.parametrize("size", [64, 112])
def test_shape_type_and_range(meshes, size):
    image = shoot(meshes[0], size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 15
    assert 40 < image.mean() < 215


def test_equal_arguments_give_equal_pictures():
    for number in range(3):
        pictures = []
        for _ in range(2):
            rng = np.random.default_rng([5, number])
            mesh = prepare(sample_identity(rng))
            pictures.append(render(mesh, sample_conditions(rng), 64, rng))
        np.testing.assert_array_equal(*pictures)


def test_identity_and_prepared_mesh_render_alike(meshes):
    np.testing.assert_array_equal(shoot(person(0)), shoot(meshes[0]))


def test_rendering_leaves_the_mesh_unchanged(meshes):
    before = shoot(meshes[1])
    for occluder in (1, 4):
        shoot(meshes[1], occluder=occluder, glasses=2, smile=1.0, mouth_open=1.0)
    np.testing.assert_array_equal(before, shoot(meshes[1]))


@pytest.mark.parametrize("size", [0, -16, 60])
def test_size_must_be_a_multiple_of_16(meshes, size):
    with pytest.raises(ValueError, match="multiple of 16"):
        shoot(meshes[0], size)


def test_all_conditions_render(meshes):
    rng = np.random.default_rng(3)
    for number in range(30):
        image = render(meshes[number % 8], sample_conditions(rng), 64, rng)
        assert image.std() > 2


def test_persons_differ_more_than_a_person_from_itself(meshes):
    # The same near-frontal pictures for everyone, so that only identity differs.
    variants = ({}, {"yaw": 6.0}, {"smile": 0.5}, {"light_azimuth": 30.0})
    images = np.array([[shoot(m, **v) for v in variants] for m in meshes], np.float32)
    within = np.abs(images[:, 1:] - images[:, :1]).mean()
    first = images[:, 0]
    between = np.abs(first[:, None] - first[None])[~np.eye(len(meshes), dtype=bool)]
    assert between.mean() > 1.5 * within


def test_frontal_landmarks_match_the_template(meshes):
    for mesh in meshes:
        points = landmarks(mesh, frontal(), 112)
        assert np.abs(points - TEMPLATE).max() < 7.0
    np.testing.assert_allclose(
        landmarks(meshes[0], frontal(), 64), points_at(meshes[0], 112) * 64 / 112
    )


def points_at(mesh, size, **changes):
    return landmarks(mesh, dataclasses.replace(frontal(), **changes), size)


def test_yaw_moves_the_nose_tip_in_front_of_the_eyes(meshes):
    def offset(points):
        return points[2, 0] - points[:2, 0].mean()

    for mesh in meshes:
        left, middle, right = (
            offset(points_at(mesh, 112, yaw=yaw)) for yaw in (-30.0, 0.0, 30.0)
        )
        assert left + 4 < middle < right - 4


def test_pitch_moves_the_nose_tip_towards_the_mouth(meshes):
    def height(points):
        eyes, mouth = points[:2, 1].mean(), points[3:, 1].mean()
        return (points[2, 1] - eyes) / (mouth - eyes)

    for mesh in meshes:
        up, down = (height(points_at(mesh, 112, pitch=p)) for p in (-15.0, 15.0))
        assert up < down


def test_light_side_is_the_brighter_side(meshes):
    for mesh in meshes:
        images = [
            shoot(mesh, light_azimuth=a, light_intensity=1.0, ambient=0.2)
            for a in (-70.0, 70.0)
        ]
        left, right = ([i[28:52, 16:28].mean(), i[28:52, 36:48].mean()] for i in images)
        assert left[0] > left[1] + 10
        assert right[1] > right[0] + 10


def test_condition_vector_round_trip():
    rng = np.random.default_rng(8)
    for _ in range(20):
        conditions = sample_conditions(rng)
        vector = to_vector(conditions)
        assert vector.dtype == np.float32
        assert vector.shape == (len(CONDITION_NAMES),)
        again = from_vector(vector)
        np.testing.assert_array_equal(to_vector(again), vector)
        assert again.background_seed == conditions.background_seed
        assert abs(conditions.yaw) <= 40
    assert len(set(CONDITION_NAMES)) == len(CONDITION_NAMES)
    with pytest.raises(ValueError, match="expected"):
        from_vector(np.zeros(3, np.float32))


def test_larger_ita_is_lighter_skin():
    scale = np.linspace(*ITA_RANGE, 20)
    luminance = [ita_to_linear(a) @ np.array([0.21, 0.72, 0.07]) for a in scale]
    assert np.all(np.diff(luminance) > 0)
    fixed = dict(auto_exposure=0.0)
    person_0 = dataclasses.replace(person(0), beard=0.0, moustache=0.0)
    dark, light = (
        shoot(dataclasses.replace(person_0, ita=a), **fixed)[34:44, 20:44].mean()
        for a in (-40.0, 50.0)
    )
    assert light > dark + 20


def test_ita_is_sampled_over_its_range():
    draws = np.array([person(number).ita for number in range(400)])
    share, _ = np.histogram(draws, bins=4, range=ITA_RANGE)
    assert share.min() > 70


def test_noise_comes_from_the_generator(meshes):
    conditions = dataclasses.replace(frontal(), noise=5.0)
    first, second = (
        render(meshes[0], conditions, 64, np.random.default_rng(seed))
        for seed in (0, 1)
    )
    assert np.any(first != second)


def test_jpeg(meshes):
    image = shoot(meshes[0])
    small, large = encode_jpeg(image, 40), encode_jpeg(image, 95)
    assert large[:2] == b"\xff\xd8"
    assert len(small) < len(large)
