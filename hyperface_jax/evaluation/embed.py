"""Images -> embeddings, jitted and in batches of one fixed size."""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from hyperface_jax import sharding
from hyperface_jax.augment import normalize
from hyperface_jax.backbones import Backbone
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pipeline import BatchReader

EmbedFn = Callable[[Any, Any, jax.Array], jax.Array]


def make_embed_fn(backbone: Backbone, *, flip: bool = True) -> EmbedFn:
    """(params, batch_stats, uint8 [B, H, W, 3]) -> float32 [B, D], not normalised.

    Args:
      backbone: from `backbones.create_backbone`.
      flip: add the embedding of the mirror image (InsightFace and OpenSphere sum the
        raw embeddings of both).
    """

    def embed(params, batch_stats, images):
        images = normalize(images)
        embeddings, _ = backbone.apply(params, batch_stats, images, train=False)
        if flip:
            mirrored, _ = backbone.apply(
                params, batch_stats, images[:, :, ::-1], train=False
            )
            embeddings = embeddings + mirrored
        return embeddings

    return jax.jit(embed)


def embed_rows(
    embed: Callable[[jax.Array], jax.Array],
    faces: FaceSet,
    rows: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    threads: int,
    mesh: Mesh,
) -> tuple[np.ndarray, dict[int, str]]:
    """Embeds rows of a set's source.

    Args:
      embed: uint8 images [B, H, W, 3] -> [B, D].
      faces: the set; `rows` are rows of its source.
      rows: int [n].
      image_size: H = W.
      batch_size: a multiple of the devices of the mesh.
      threads: for decoding.
      mesh: images are split over all its devices.

    Returns:
      float32 [n, D]; an image that cannot be read has the embedding 0. And row ->
      reason of those images.
    """
    sharding.check_divisible("eval.batch_size", batch_size, mesh)
    position = np.full(len(faces.source), -1)
    position[faces.rows] = np.arange(len(faces))
    reader = BatchReader(faces, image_size=image_size, threads=threads)
    parts = []
    for batch in _padded_batches(reader, position[rows], batch_size):
        images = sharding.put_batch(mesh, {"image": batch["image"]})["image"]
        parts.append(np.asarray(embed(images)) * batch["weight"][:, None])
    return np.concatenate(parts)[: len(rows)], reader.bad_records


def _padded_batches(
    reader: BatchReader, indices: np.ndarray, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size, decoded ahead; the last is filled with its first image."""
    count = -(-len(indices) // batch_size)
    padded = np.full(count * batch_size, indices[-1])
    padded[: len(indices)] = indices
    batches = grain.MapDataset.source(padded.reshape(count, -1).tolist()).map(reader)
    return iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        )
    )
