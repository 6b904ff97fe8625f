"""TFDS builder `synth_faces`: rendered faces of people who do not exist.

Every image is drawn by `hyperface_jax.data.synth` from a seed; it depicts nobody.
An identity is a 3-D shape and an albedo; an image adds pose, light, expression,
crop jitter, glasses or an occluder, blur, noise and JPEG, whose parameters stay in the
record as ground truth (`conditions`, in the order of
`synth.conditions.CONDITION_NAMES`).
"""

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from hyperface_jax.data import pairs
from hyperface_jax.data.synth import conditions, people


@dataclasses.dataclass(kw_only=True)
class SynthFacesConfig(tfds.core.BuilderConfig):
    """Size of the set.

    Attributes:
      train_identities: people to train on.
      train_images: images of each.
      test_identities: other people, for evaluation.
      test_images: images of each.
      folds: folds of the verification pairs.
      pairs_per_fold: genuine pairs a fold, and as many impostor pairs.
      image_size: side in pixels.
      seed: everything follows from it.
    """

    train_identities: int = 400
    train_images: int = 16
    test_identities: int = 120
    test_images: int = 12
    folds: int = 10
    pairs_per_fold: int = 300
    image_size: int = 64
    seed: int = 2022


CONFIGS = {
    "laptop": SynthFacesConfig(
        name="laptop", description="trains in minutes on 2 cores"
    ),
    "tiny": SynthFacesConfig(
        name="tiny",
        description="for tests",
        train_identities=24,
        train_images=6,
        test_identities=10,
        test_images=6,
        folds=2,
        pairs_per_fold=40,
        image_size=32,
    ),
    "large": SynthFacesConfig(
        name="large",
        description="112 pixels, for a GPU",
        train_identities=4000,
        train_images=40,
        test_identities=400,
        image_size=112,
    ),
}


class SynthFaces(tfds.core.GeneratorBasedBuilder):
    """Procedural faces with train and test splits of different people."""

    VERSION = tfds.core.Version("1.0.0")
    LICENCE = "Apache-2.0 (rendered by hyperface_jax)"
    BUILDER_CONFIGS: ClassVar = list(CONFIGS.values())

    @property
    def _config(self) -> SynthFacesConfig:
        assert isinstance(self.builder_config, SynthFacesConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._config.image_size
        count = len(conditions.CONDITION_NAMES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="jpeg"
                    ),
                    "label": np.int64,
                    "id": tfds.features.Text(),
                    "conditions": tfds.features.Tensor(
                        shape=(count,), dtype=np.float32
                    ),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Keeps a person's images together and makes the pairs plain row numbers.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        c = self._config
        assert self.info.metadata is not None
        self.info.metadata.update(metadata(c))
        return {
            "train": self._generate_examples(0, c.train_identities, c.train_images),
            "test": self._generate_examples(
                c.train_identities, c.test_identities, c.test_images
            ),
        }

    def _generate_examples(
        self, first: int, identities: int, images: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        c = self._config
        tasks = [(c.seed, first + i, images, c.image_size) for i in range(identities)]
        workers = min(os.cpu_count() or 1, max(identities // 8, 1))
        # Spawn: a fork of a process in which JAX has threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            drawn = pool.map(people.draw_person, tasks, chunksize=4)
            try:
                for label, person in enumerate(drawn):
                    name = f"{first + label:06d}"
                    for i, (jpeg, vector) in enumerate(person):
                        yield (
                            label * images + i,
                            {
                                "image": jpeg,
                                "label": label,
                                "id": f"{name}/{name}_{i:04d}",
                                "conditions": vector,
                            },
                        )
            except BrokenProcessPool:
                raise ValueError(
                    "synth_faces: a worker process died while drawing. A script that "
                    'prepares it needs `if __name__ == "__main__":` around its code'
                ) from None


def read_conditions(config: str, data_dir: str, split: str) -> np.ndarray:
    """Ground truth of every image of a prepared split, in the order of its records.

    Args:
      config: a name of `CONFIGS`; "" is laptop.
      data_dir: where the set was prepared.
      split: "train" or "test".

    Returns:
      float32 [N, K], columns in the order of `conditions.CONDITION_NAMES`.
    """
    builder: Any = SynthFaces(
        config=CONFIGS[config or "laptop"],
        data_dir=os.path.expanduser(data_dir),
        file_format="array_record",
    )
    # JPEG stays JPEG: decoding takes longer than all the rest.
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(split, decoders=decoders)
    return np.stack([records[k]["conditions"] for k in range(len(records))])


def metadata(config: SynthFacesConfig) -> dict[str, Any]:
    """People, image counts, pairs, gallery and probes: see `prepared.open_split`."""
    c = config
    labels = np.repeat(np.arange(c.test_identities), c.test_images)
    verification = pairs.random_pairs(
        labels,
        folds=c.folds,
        per_fold=c.pairs_per_fold,
        rng=np.random.default_rng([c.seed, 1]),
    )
    position = np.tile(np.arange(c.test_images), c.test_identities)
    names = [f"{i:06d}" for i in range(c.train_identities + c.test_identities)]
    return {
        "source": f"rendered, seed {c.seed}",
        "splits": {
            "train": {
                "identities": names[: c.train_identities],
                "counts": [c.train_images] * c.train_identities,
            },
            "test": {
                "identities": names[c.train_identities :],
                "counts": [c.test_images] * c.test_identities,
                "pairs": verification.to_json(),
                "gallery": np.flatnonzero(position == 0).tolist(),
                "probes": np.flatnonzero((position > 0) & (position <= 5)).tolist(),
            },
        },
    }
