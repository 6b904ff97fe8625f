"""A network with its weights, as protocols and commands see it: images to embeddings.

The same object embeds the test sets of a training run, of a finished run and of a
converted model, in memory or into a folder that a killed command goes on with.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hyperface_jax import sharding
from hyperface_jax.backbones import Backbone
from hyperface_jax.data import decode
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.records import BadRecordError, ids_of
from hyperface_jax.evaluation.embedded import (
    Embedded,
    Options,
    check_crowd,
    check_pooling,
    from_stored,
    needed_rows,
)
from hyperface_jax.evaluation.embedding_files import open_embeddings
from hyperface_jax.evaluation.forward import (
    ViewsFn,
    embed_rows,
    embed_to_store,
    make_embed_fn,
)
from hyperface_jax.evaluation.stored import (
    EmbeddingStore,
    check_same_network,
    network_name,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embedder:
    """What embeds, and how.

    Attributes:
      views: uint8 RGB images [B, H, W, 3] -> float32 [B, V, D], not normalised.
      flip: V = 2, the second view is that of the mirror image.
      jitter: see `forward.make_embed_fn`.
      dimension: D.
      fingerprint: of network and weights; called where it is needed, for it reads them.
      image_size: H = W.
      batch_size: images at a time, a multiple of the devices.
      threads: that decode.
      mesh: images are split over all its devices.
      exact: images of another size have no embedding; else they are scaled.
    """

    views: ViewsFn
    flip: bool
    jitter: float
    dimension: int
    fingerprint: Callable[[], str]
    image_size: int
    batch_size: int
    threads: int
    mesh: Mesh
    exact: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What of it a score or a threshold depends on, for results.json."""
        return {
            "weights": self.fingerprint(),
            "mirror_image_added": self.flip,
            "jitter": self.jitter,
        }

    @property
    def network(self) -> str:
        """See `Stored.network`."""
        return network_name(self.fingerprint(), self.flip)

    def embed(self, test: EvaluationSet, options: Options) -> Embedded:
        """Embeds what the protocols of a set need, in memory.

        Raises:
          ValueError: the distractors were made by another network, or templates need
            mirror images that this one does not embed.
        """
        self._check(test, options)
        rows = needed_rows(test)
        views, unreadable = embed_rows(self.views, test.faces, rows, **self._how)
        position = np.full(len(test.faces.source), -1)
        position[rows] = np.arange(len(rows))
        return Embedded(test, views, position, unreadable, options)

    def embed_kept(
        self, test: EvaluationSet, folder: Path, options: Options
    ) -> Embedded:
        """Likewise, with a folder that keeps what was computed, or a file of `embed`.

        Raises:
          ValueError: it holds embeddings of other images or another network.
        """
        self._check(test, options)
        if folder.is_file():
            found = open_embeddings(folder)
            check_same_network(self.network, found.network, ("the model", str(folder)))
            return from_stored(test, found, options)
        store = self.store(test.faces, needed_rows(test), folder)
        return from_stored(test, store.read(), options)

    def store(
        self,
        faces: FaceSet,
        rows: np.ndarray,
        folder: Path,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> EmbeddingStore:
        """Computes what is missing of the embeddings in a folder.

        Args:
          faces: the images.
          rows: int [n], of its source.
          folder: to go on with, or to begin.
          part: of this process, from 0.
          parts: number of processes that share the work.

        Raises:
          ValueError: the folder holds embeddings of other images or another network.
        """
        names = {row: id_ for id_, row in ids_of(faces.source).items()}
        images = f"{faces.fingerprint}, {self.image_size} pixels"
        images += f", jitter {self.jitter:g}" if self.jitter else ""
        store = EmbeddingStore.create(
            folder,
            [names.get(int(row), f"#{row}") for row in rows],
            views=2 if self.flip else 1,
            dimension=self.dimension,
            images=images if self.exact else f"{images}, scaled",
            weights=self.fingerprint(),
        )
        if next(store.missing(part, parts), None) and not self.exact:
            self.warn_if_scaled(faces)
        embed_to_store(
            store, self.views, faces, rows, part=part, parts=parts, **self._how
        )
        return store

    def warn_if_scaled(self, faces: FaceSet) -> None:
        """Says once that the images of a set are no crops of the network's size."""
        found = first_size(faces)
        if found is not None and found != (self.image_size, self.image_size):
            log.warning(
                "%s: images are scaled from %dx%d to %d pixels; faces that are not "
                "aligned as the network's were have worse scores",
                *(faces.name, found[1], found[0], self.image_size),
            )

    def _check(self, test: EvaluationSet, options: Options) -> None:
        check_pooling(test, options.pooling, self.flip)
        if options.distractors is not None:  # else the fingerprint costs a while
            check_crowd(options, self.network, test.name)

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "mesh": self.mesh,
            "exact": self.exact,
        }


def of_network(
    backbone: Backbone,
    params: Any,
    batch_stats: Any,
    *,
    fingerprint: Callable[[], str],
    image_size: int,
    flip: bool = True,
    batch_size: int = 256,
    threads: int = 2,
    exact: bool = False,
) -> Embedder:
    """An embedder on all devices.

    Args:
      backbone: from `backbones.create_backbone`.
      params: its parameters.
      batch_stats: its running statistics.
      fingerprint: see `Embedder`.
      image_size: H = W.
      flip: also the mirror image.
      batch_size: images at a time; rounded up to a multiple of the devices.
      threads: that decode.
      exact: see `Embedder`.
    """
    mesh = sharding.make_mesh(1)
    run = make_embed_fn(backbone, flip=flip)
    placed = jax.device_put((params, batch_stats), sharding.replicated(mesh))
    return Embedder(
        views=functools.partial(run, *placed),
        flip=flip,
        jitter=0.0,
        dimension=backbone.embedding_dim,
        fingerprint=fingerprint,
        image_size=image_size,
        batch_size=-(-batch_size // mesh.size) * mesh.size,
        threads=threads,
        mesh=mesh,
        exact=exact,
    )


def first_size(faces: FaceSet) -> tuple[int, int] | None:
    """(H, W) of a set's first image; None where it cannot be read."""
    (record,) = faces.read([0])
    if isinstance(record, BadRecordError):
        return None
    try:
        return decode.size_of(record["image"])
    except BadRecordError:
        return None
