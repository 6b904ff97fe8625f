"""LFW without a network: dense LBP + PCA + Joint Bayesian, fold by fold.

    python benchmarks/lfw_classical.py --lfw lfw.tar --pairs pairs.txt --out runs/lfw

The same people are trained on, held out and tested as configs/lfw.py:fold=K does; the
threshold comes from the held-out people. Writes <out>/lbp_foldK.npz (scores of the
held-out and of the tested pairs), which benchmarks/lfw_study.py fuses and tabulates.
scikit-image and scikit-learn are needed here and nowhere in the package.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import joint_bayesian
import numpy as np
from sklearn.decomposition import PCA

from hyperface_jax.data import splits
from hyperface_jax.data.pairs import Pairs

SIDES = (90, 64, 45)  # pixels: three scales
RADII = (1, 2)
CELL, STEP, CODES = 10, 5, 59


def dense_lbp(image: np.ndarray) -> np.ndarray:
    """Square roots of uniform-LBP histograms of overlapping cells, all scales [F].

    Args:
      image: uint8 [H, W, 3].
    """
    from skimage.feature import local_binary_pattern
    from skimage.transform import resize

    grey = image @ np.array([0.299, 0.587, 0.114])
    parts = []
    for side in SIDES:
        scaled = resize(grey, (side, side), anti_aliasing=True, preserve_range=True)
        scaled = np.rint(scaled).astype(np.uint8)
        for radius in RADII:
            codes = local_binary_pattern(scaled, 8, radius, "nri_uniform").astype(int)
            parts.append(_cell_histograms(codes))
    return np.sqrt(np.concatenate(parts)).astype(np.float16)


def _cell_histograms(codes: np.ndarray) -> np.ndarray:
    """Shares of the codes in each cell, by sums over an integral image."""
    side = len(codes)
    integral = np.zeros((side + 1, side + 1, CODES), np.int32)
    np.put_along_axis(integral[1:, 1:], codes[..., None], 1, axis=2)
    integral = integral.cumsum(0).cumsum(1)
    at = np.arange(0, side - CELL + 1, STEP)
    low, high = np.ix_(at, at), np.ix_(at + CELL, at + CELL)
    counts = integral[high] + integral[low]
    counts -= integral[np.ix_(at, at + CELL)] + integral[np.ix_(at + CELL, at)]
    return (counts / CELL**2).ravel()


def features_of(lfw: str, pairs: str, cache: Path) -> np.ndarray:
    """Features float16 [images, F] of all images, computed once."""
    if cache.exists():
        return np.load(cache, mmap_mode="r")
    faces, _ = split(lfw, pairs, 1)[:2]
    source = np.arange(len(faces.source))
    records = faces.source.__getitems__(source.tolist())
    from hyperface_jax.data.decode import decode_image

    images = [decode_image(record["image"], SIDES[0]) for record in records]
    with ProcessPoolExecutor(2) as pool:
        found = np.stack(list(pool.map(dense_lbp, images, chunksize=64)))
    np.save(cache, found)
    return found


def split(lfw: str, pairs: str, fold: int):
    """Training people, and the evaluation set of a fold: those of configs/lfw.py."""
    train, (test,) = splits.train_and_test(
        "faces", path=lfw, pairs_path=pairs, fold=fold, dev_fraction=0.1, seed=0
    )
    return train, test


def project(features, rows: np.ndarray, dimensions: int, seed: int = 0) -> np.ndarray:
    """All features on the principal axes of the training rows, whitened not [N, d]."""
    pca = PCA(dimensions, svd_solver="randomized", random_state=seed)
    pca.fit(np.asarray(features[rows], np.float32))
    parts = [
        pca.transform(np.asarray(features[start : start + 1024], np.float32))
        for start in range(0, len(features), 1024)
    ]
    return np.concatenate(parts)


def run_fold(a: argparse.Namespace, features, fold: int) -> None:
    """Scores of one fold, stored."""
    train, test = split(a.lfw, a.pairs, fold)
    vectors = project(features, train.rows, a.dimensions)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = joint_bayesian.fit(vectors[train.rows], train.labels)

    def scores(pairs: Pairs) -> np.ndarray:
        return model.scores(vectors, pairs.first, pairs.second)

    np.savez(
        a.out / f"lbp_fold{fold}.npz",
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
    parser.add_argument("--folds", type=int, nargs="+", default=range(1, 9))
    parser.add_argument("--dimensions", type=int, default=400)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    features = features_of(a.lfw, a.pairs, a.out / "lbp.npy")
    print(f"{features.shape[1]} LBP features of {len(features)} images")
    for fold in a.folds:
        run_fold(a, features, fold)
        print(f"fold {fold} done", flush=True)


if __name__ == "__main__":
    main()
