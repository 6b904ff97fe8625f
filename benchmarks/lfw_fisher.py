"""Fisher vectors of dense SIFT, for `lfw_classical.py` (Simonyan et al., BMVC 2013).

Of every place of a grid, at three sizes, a RootSIFT vector is reduced to 64 principal
axes and joined by its place. A mixture of Gaussians of these, fitted without labels,
is the vocabulary; an image is described by how the means and variances of its own
vectors differ from those of the mixture (the improved Fisher vector: signed square
roots, length 1).

Letters: B images, N places, K Gaussians, D dimensions of a local vector.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

STEP, ORIENTATIONS, AXES, GAUSSIANS = 3, 8, 64, 256


class Grid(NamedTuple):
    """Which local vectors.

    Attributes:
      cells: sides of a SIFT vector's 4x4 cells, in pixels.
      samples: how many the vocabulary is fitted to.
    """

    cells: tuple[int, ...]
    samples: int


GRIDS = {
    "fisher": Grid((3, 4, 5), 200_000),
    "fisher_large": Grid((4, 6, 8), 100_000),
}


class Vocabulary(NamedTuple):
    """What is fitted.

    Attributes:
      centre: of RootSIFT vectors [128].
      axes: their principal axes [AXES, 128].
      weight: of a Gaussian [K].
      mean: [K, D].
      deviation: [K, D].
    """

    centre: np.ndarray
    axes: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def fit(greys: np.ndarray, grid: Grid, seed: int = 0) -> Vocabulary:
    """A vocabulary of images that no fold tests.

    Args:
      greys: float32 [B, H, W], 0 to 255.
      grid: of their local vectors.
      seed: of the choice of images and of the mixture.
    """
    rng = np.random.default_rng(seed)
    few = rng.choice(len(greys), min(400, len(greys)), replace=False)
    sift, place = map(np.asarray, local_vectors(greys[few], grid.cells))
    place = np.broadcast_to(place, (*sift.shape[:2], 2)).reshape(-1, 2)
    sift = sift.reshape(-1, sift.shape[-1])
    chosen = rng.choice(len(sift), min(grid.samples, len(sift)), replace=False)
    pca = PCA(AXES, random_state=seed).fit(sift[chosen])
    joined = np.hstack([pca.transform(sift[chosen]), place[chosen]])
    mixture = GaussianMixture(
        GAUSSIANS,
        covariance_type="diag",
        max_iter=40,
        reg_covar=1e-5,
        random_state=seed,
    )
    mixture.fit(joined)
    deviation = np.sqrt(mixture.covariances_)
    found = pca.mean_, pca.components_, mixture.weights_, mixture.means_, deviation
    return Vocabulary(*(x.astype(np.float32) for x in found))


@functools.partial(jax.jit, static_argnames="cells")
def local_vectors(
    greys: jax.Array, cells: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """RootSIFT vectors [B, N, 128] and their places [N, 2] in -.5 to .5."""
    maps = _orientations(jnp.sqrt(greys))
    side = greys.shape[1]
    vectors, places = [], []
    for cell in cells:
        sums = jax.lax.reduce_window(
            maps, 0.0, jax.lax.add, (1, cell, cell, 1), (1, 1, 1, 1), "VALID"
        )
        last = side - 4 * cell
        cut = [
            sums[:, i : i + last + 1 : STEP, j : j + last + 1 : STEP]
            for i in range(0, 4 * cell, cell)
            for j in range(0, 4 * cell, cell)
        ]
        found = jnp.concatenate(cut, axis=-1)
        vectors.append(found.reshape(len(greys), -1, found.shape[-1]))
        at = (np.arange(0, last + 1, STEP) + 2 * cell) / side - 0.5
        places.append(np.stack(np.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2))
    sift = jnp.concatenate(vectors, axis=1)
    sift = jnp.sqrt(sift / (jnp.sum(sift, axis=-1, keepdims=True) + 1e-3))
    return sift, jnp.asarray(np.concatenate(places), jnp.float32)


def _orientations(images: jax.Array) -> jax.Array:
    """Strength of the gradient, shared by the two nearest directions [B, H, W, 8]."""
    dy, dx = jnp.gradient(images, axis=(1, 2))
    place = jnp.arctan2(dy, dx) % (2 * np.pi) / (2 * np.pi) * ORIENTATIONS
    apart = jnp.abs(place[..., None] - jnp.arange(ORIENTATIONS))
    apart = jnp.minimum(apart, ORIENTATIONS - apart)
    return jnp.hypot(dy, dx)[..., None] * jnp.maximum(1 - apart, 0)


@functools.partial(jax.jit, static_argnames="cells")
def _fisher(greys: jax.Array, cells: tuple[int, ...], v: Vocabulary) -> jax.Array:
    """Improved Fisher vectors [B, 2 K D]."""
    sift, place = local_vectors(greys, cells)
    reduced = (sift - v.centre) @ v.axes.T
    place = jnp.broadcast_to(place, (*sift.shape[:2], 2))
    x = jnp.concatenate([reduced, place], axis=-1)  # [B, N, D]
    precision = v.deviation**-2
    distance = (
        x**2 @ precision.T
        - 2 * x @ (v.mean * precision).T
        + jnp.sum(v.mean**2 * precision, axis=1)
    )
    log_weight = jnp.log(v.weight) - jnp.sum(jnp.log(v.deviation), axis=1)
    share = jax.nn.softmax(log_weight - distance / 2, axis=-1)  # [B, N, K]
    count = x.shape[1]
    zeroth = jnp.sum(share, axis=1)[..., None] / count
    first = jnp.einsum("bnk,bnd->bkd", share, x) / count
    second = jnp.einsum("bnk,bnd->bkd", share, x**2) / count
    root = jnp.sqrt(v.weight)[:, None]
    of_mean = (first - v.mean * zeroth) / (v.deviation * root)
    of_variance = second - 2 * v.mean * first + (v.mean**2 - v.deviation**2) * zeroth
    of_variance *= precision / (np.sqrt(2) * root)
    found = jnp.stack([of_mean, of_variance], axis=1).reshape(len(greys), -1)
    found = jnp.sign(found) * jnp.sqrt(jnp.abs(found))
    return found / jnp.linalg.norm(found, axis=1, keepdims=True)


def fisher_vectors(
    greys: np.ndarray, grid: Grid, v: Vocabulary, batch: int = 64
) -> np.ndarray:
    """Those of each image and of its mirror image, added: float16 [B, 2 K D].

    Times 32: elements are near 1e-3, where float16 has few digits; lengths are of no
    account to `lfw_classical.project`.
    """
    parts = []
    for start in range(0, len(greys), batch):
        part = greys[start : start + batch]
        both = [_fisher(x, grid.cells, v) for x in (part, part[:, :, ::-1])]
        parts.append(np.asarray(32 * (both[0] + both[1]), np.float16))
    return np.concatenate(parts)
