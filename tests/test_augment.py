"""Augmentation: ranges, determinism, geometry, resampling against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hyperface_jax import augment, resample

SIZE = 32


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)


def smooth(size=SIZE):
    y, x = np.mgrid[0:size, 0:size] / size
    return (255 * np.stack([x, y, 0.5 * (x + y)], -1)).astype(np.float32)


ALL_ON = augment.AugmentSettings(
    flip=0.5,
    shift=0.1,
    scale=0.1,
    rotate=10,
    erase=0.3,
    crop=0.2,
    low_resolution=0.2,
    photometric=0.2,
    grey=0.2,
)


def test_off_is_plain_normalisation(images):
    function = augment.make_augment(augment.AugmentSettings(flip=0))
    got = function(jax.random.key(0), images)
    np.testing.assert_allclose(got, (images - 127.5) / 127.5, rtol=1e-6)
    assert got.min() >= -1
    assert got.max() <= 1


def test_pure_keyed_and_per_example(images):
    function = jax.jit(augment.make_augment(ALL_ON))
    one = function(jax.random.key(1), images)
    np.testing.assert_array_equal(one, function(jax.random.key(1), images))
    assert (one != function(jax.random.key(2), images)).any()
    assert np.isfinite(one).all()
    assert one.min() >= -1.001
    assert one.max() <= 1.001
    # Equal images get different changes.
    same = function(jax.random.key(1), np.repeat(images[:1], 64, 0))
    assert len({bytes(np.asarray(x)) for x in same}) > 32


def test_flip_happens_half_of_the_time(images):
    many = np.repeat(images, 8, 0)
    got = augment.make_augment(augment.AugmentSettings())(jax.random.key(0), many)
    plain = augment.normalize(many)
    is_plain = np.isclose(got, plain, atol=1e-6).all(axis=(1, 2, 3))
    is_flipped = np.isclose(got, plain[:, :, ::-1], atol=1e-6).all(axis=(1, 2, 3))
    assert (is_plain | is_flipped).all()
    assert 0.4 < is_flipped.mean() < 0.6


def test_similarity_without_change_is_the_identity():
    image = jnp.asarray(smooth())
    got = augment.random_similarity(jax.random.key(0), image, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(got, image, atol=1e-3)


def test_rotation_agrees_with_pillow():
    """The sign and the centre, on a smooth picture away from the corners."""
    image = smooth(64)
    for seed in range(3):
        key = jax.random.key(seed)
        draw = jax.random.uniform(key, (4,), minval=-1, maxval=1)
        got = augment.random_similarity(key, jnp.asarray(image), 0.0, 0.0, 20.0)
        pillow = Image.fromarray(image.astype(np.uint8)).rotate(
            -20.0 * float(draw[0]), Image.Resampling.BILINEAR
        )
        inner = slice(16, 48)
        difference = np.abs(np.asarray(got) - np.asarray(pillow, float))[inner, inner]
        assert difference.max() < 3


def test_box_operations_change_only_a_box(images):
    image = jnp.asarray(images[0], jnp.float32)
    for operation, fill in (
        (augment.random_erase, 127.5),
        (augment.random_crop_mask, 0),
    ):
        for seed in range(5):
            got = np.asarray(operation(jax.random.key(seed), image))
            changed = np.any(got != np.asarray(image), axis=-1)
            assert 0 < changed.sum() < SIZE * SIZE
            assert (got[changed] == fill).all()


def test_photometric_and_grey(images):
    image = jnp.asarray(images[0], jnp.float32)
    got = augment.photometric(jax.random.key(0), image)
    assert got.shape == image.shape
    assert got.min() >= 0
    assert got.max() <= 255
    luma = np.asarray(Image.fromarray(images[0]).convert("L"), float)
    np.testing.assert_allclose(augment.grey(image)[..., 1], luma, atol=0.6)


@pytest.mark.parametrize("method", range(5), ids=resample.METHODS)
@pytest.mark.parametrize(("n_in", "n_out"), [(32, 9), (32, 17), (9, 32), (32, 32)])
def test_resize_matrix(method, n_in, n_out):
    matrix = np.asarray(resample.resize_matrix(method, float(n_in), float(n_out), SIZE))
    assert matrix.shape == (SIZE, SIZE)
    np.testing.assert_allclose(matrix[:n_out].sum(1), 1, atol=1e-5)
    assert (matrix[n_out:] == 0).all()
    assert (matrix[:, n_in:] == 0).all()
    if n_in == n_out:
        np.testing.assert_allclose(matrix, np.eye(SIZE), atol=1e-5)
    # A ramp stays a ramp away from the edges. OpenCV's cubic (a = -.75) and Lanczos
    # wave by a few hundredths around it, "nearest" by up to a pixel, "area" by half
    # of one where the sizes do not divide.
    ramp = matrix[:n_out, :n_in] @ np.arange(n_in)
    expected = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    edge = 4 * max(n_out // n_in, 1)
    inner = slice(edge, n_out - edge)
    tolerance = {
        "nearest": max(n_in / n_out, 1.0),
        "linear": 1e-4,
        "area": 0.5 if n_out < n_in else 1e-4,
        "cubic": 0.05,
        "lanczos4": 0.05,
    }[resample.METHODS[method]]
    assert np.abs(ramp - expected)[inner].max(initial=0) <= tolerance


def test_resize_by_traced_sizes_compiles_once():
    traces = []

    @jax.jit
    def function(m, a, b):
        traces.append(m)
        return resample.resize_matrix(m, a, b, SIZE)

    for method, n in ((0, 10.0), (3, 20.0), (4, 31.0)):
        function(method, 32.0, n)
    assert len(traces) == 1  # jax's own count forgets when many programs are alive
