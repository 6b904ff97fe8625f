"""Prepared folders: made, opened, and compared batch by batch."""

import numpy as np

from hyperface_jax import prepare
from hyperface_jax.data import datasets, orders, pipeline


def run(*arguments):
    prepare.prepare(prepare.parser().parse_args([*map(str, arguments)]))


def opened(root, name="faces", config="default"):
    return datasets.open_dataset(name, config=config, data_dir=str(root))["train"]


def same_batches(a, b, size=32):
    for seed in (0, 1):
        found = []
        for faces in (a, b):
            reader = pipeline.BatchReader(faces, image_size=size, threads=2)
            indices = orders.batch_indices(faces.labels, batch_size=7, seed=seed)
            found.append([reader(indices[k].tolist()) for k in range(6)])
        for x, y in zip(*found, strict=True):
            for key in ("image", "label", "weight"):
                np.testing.assert_array_equal(x[key], y[key])
