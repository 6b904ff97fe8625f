"""How hard synth_faces is for methods that are not a network.

    python benchmarks/difficulty.py

On the verification pairs of unseen people: k-fold accuracy of the cosine of raw
pixels, and of PCA + LDA fitted on the training people (scikit-learn, an extra of the
tests). The pairs, folds and metric are those of the default run.
"""

import argparse

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hyperface_jax.data import datasets
from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.evaluation import similarity, verification


def pixels(faces: FaceSet, size: int) -> np.ndarray:
    records = faces.read(range(len(faces)))
    images = [decode_image(record["image"], size) for record in records]
    return np.stack(images).reshape(len(images), -1).astype(np.float32) / 255


def accuracy(features: np.ndarray, test: FaceSet) -> float:
    pairs = test.pairs
    scores = similarity.pair_scores(
        features.astype(np.float64), pairs.first, pairs.second
    )
    return verification.kfold_accuracy(scores, pairs.is_genuine, pairs.fold).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="laptop")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--components", type=int, default=150)
    arguments = parser.parse_args()
    found = datasets.open_dataset("synth_faces", config=arguments.config)
    train, test = found["train"], found["test"]
    x, z = pixels(train, arguments.size), pixels(test, arguments.size)
    print(f"raw pixels          {accuracy(z, test):.4f}")
    print(f"raw pixels, centred {accuracy(z - x.mean(0), test):.4f}")
    pca = PCA(arguments.components, random_state=0).fit(x)
    lda = LinearDiscriminantAnalysis().fit(pca.transform(x), train.labels)
    projected = lda.transform(pca.transform(z))
    print(f"PCA + LDA           {accuracy(projected, test):.4f}")


if __name__ == "__main__":
    main()
