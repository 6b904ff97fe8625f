"""LFW without a network: descriptors, each with PCA and Joint Bayesian, fold by fold.

    python benchmarks/lfw_classical.py --lfw lfw.tar --pairs pairs.txt --out runs/lfw

The descriptors of `lfw_descriptors.py` and the Fisher vectors of `lfw_fisher.py`,
averaged with the mirror image's; of each the whitened principal axes of the training
images, scaled to unit length, and a Joint Bayesian model of them. The same people are
trained on, held out and tested as configs/lfw.py:fold=K does (people with one image
too, in the PCA and in the model). Dimensions, EM steps, whitening and the list of
descriptors were chosen on fold 8. Writes <out>/<descriptor>_foldK.npz (scores of the
held-out and of the tested pairs), which benchmarks/lfw_study.py sums and tabulates.
scikit-image and scikit-learn are needed here and nowhere in the package.
"""

import argparse
import functools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import joint_bayesian
import lfw_fisher
import numpy as np
from lfw_descriptors import DESCRIPTORS, SIDE, grey_of, mirrored_mean
from sklearn.decomposition import KernelPCA

from hyperface_jax.data import splits
from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.pairs import Pairs

FOLDS = range(1, 9)
NAMES = (*DESCRIPTORS, *lfw_fisher.GRIDS)


def split(lfw: str, pairs: str, fold: int):
    """Training people, and the evaluation set of a fold: those of configs/lfw.py."""
    train, (test,) = splits.train_and_test(
        "faces", path=lfw, pairs_path=pairs, fold=fold, dev_fraction=0.1, seed=0
    )
    return train, test


def images_of(lfw: str, pairs: str) -> np.ndarray:
    """All images, uint8 [N, 90, 90, 3]."""
    source = split(lfw, pairs, 1)[0].source
    records = source.__getitems__(list(range(len(source))))
    return np.stack([decode_image(record["image"], SIDE) for record in records])


def always_trained_on(lfw: str, pairs: str) -> np.ndarray:
    """Rows of the people whom no fold tests or holds out."""
    of_fold = [split(lfw, pairs, fold)[0].rows for fold in FOLDS]
    return functools.reduce(np.intersect1d, of_fold)


def describe(name: str, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Descriptors of all images, float16 [N, F].

    Args:
      name: of `NAMES`.
      images: uint8 [N, H, W, 3].
      rows: of the images that a vocabulary may be fitted to.
    """
    if name in DESCRIPTORS:
        with ProcessPoolExecutor() as pool:
            of_image = functools.partial(mirrored_mean, name)
            return np.stack(list(pool.map(of_image, images, chunksize=64)))
    greys = np.stack([grey_of(image) for image in images]).astype(np.float32)
    grid = lfw_fisher.GRIDS[name]
    return lfw_fisher.fisher_vectors(greys, grid, lfw_fisher.fit(greys[rows], grid))


def kernel_of(
    name: str, images: np.ndarray, rows: np.ndarray, cache: Path
) -> np.ndarray:
    """Inner products of all images' descriptors, float32 [N, N], computed once."""
    if cache.exists():
        return np.load(cache, mmap_mode="r")
    found = describe(name, images, rows)
    kernel = np.zeros((len(found), len(found)), np.float32)
    centre = found.mean(0, dtype=np.float32)  # the PCA's own comes later: for float32
    for start in range(0, found.shape[1], 8192):
        part = slice(start, start + 8192)
        values = found[:, part].astype(np.float32) - centre[part]
        kernel += values @ values.T
    np.save(cache, kernel)
    print(f"{name}: {found.shape[1]} numbers", flush=True)
    return kernel


def project(kernel: np.ndarray, rows: np.ndarray, dimensions: int) -> np.ndarray:
    """All images on the training rows' principal axes, whitened, of length 1 [N, d]."""
    pca = KernelPCA(
        dimensions, kernel="precomputed", eigen_solver="randomized", random_state=0
    )
    pca.fit(np.asarray(kernel[np.ix_(rows, rows)]))
    vectors = pca.transform(np.asarray(kernel[:, rows])) / np.sqrt(pca.eigenvalues_)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run_fold(a: argparse.Namespace, name: str, kernel: np.ndarray, fold: int) -> None:
    """Scores of one descriptor and fold, stored."""
    train, test = split(a.lfw, a.pairs, fold)
    vectors = project(kernel, train.rows, a.dimensions).astype(np.float64)
    model = joint_bayesian.fit(vectors[train.rows], train.labels)

    def scores(pairs: Pairs) -> np.ndarray:
        return model.scores(vectors, pairs.first, pairs.second)

    np.savez(
        a.out / f"{name}_fold{fold}.npz",
        dev=scores(test.dev_pairs),
        dev_genuine=test.dev_pairs.is_genuine,
        test=scores(test.pairs),
        test_genuine=test.pairs.is_genuine,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lfw", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=FOLDS)
    parser.add_argument("--descriptors", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--dimensions", type=int, default=250)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    images, rows = images_of(a.lfw, a.pairs), always_trained_on(a.lfw, a.pairs)
    for name in a.descriptors:
        kernel = kernel_of(name, images, rows, a.out / f"{name}_kernel.npy")
        for fold in a.folds:
            run_fold(a, name, kernel, fold)
        print(f"{name} done", flush=True)


if __name__ == "__main__":
    main()
