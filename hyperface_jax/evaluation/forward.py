"""Images -> embeddings, jitted and in batches of one fixed size."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from hyperface_jax import hosts, resample, sharding
from hyperface_jax.augment import normalize
from hyperface_jax.backbones import Backbone
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pipeline import BatchReader
from hyperface_jax.evaluation.stored import EmbeddingStore

_GATHERED_BYTES = 1 << 26

EmbedFn = Callable[[Any, Any, jax.Array], jax.Array]
ViewsFn = Callable[[jax.Array], jax.Array]
"""uint8 images [B, H, W, 3] -> [B, V, D]."""


def make_embed_fn(
    backbone: Backbone, *, flip: bool = True, jitter: float = 0.0
) -> EmbedFn:
    """(params, batch_stats, uint8 [B, H, W, 3]) -> float32 [B, V, D], not normalised.

    Args:
      backbone: from `backbones.create_backbone`.
      flip: V = 2, also of the mirror image. InsightFace and OpenSphere sum the raw
        embeddings of both; template protocols have a switch for it.
      jitter: adds to each view the embeddings of six copies, shifted by this share of
        the side in four directions and zoomed by twice that in and out: seven times
        the work. No published protocol does it.
    """

    def embed(params, batch_stats, images):
        copies = [images, *_jittered(images, jitter)] if jitter else [images]

        def of(flipped: bool) -> jax.Array:
            found = [
                backbone.apply(
                    *(params, batch_stats),
                    normalize(copy[:, :, ::-1] if flipped else copy),
                    train=False,
                )[0]
                for copy in copies
            ]
            return sum(found[1:], start=found[0])

        return jnp.stack([of(False), of(True)] if flip else [of(False)], axis=1)

    return jax.jit(embed)


def _jittered(images: jax.Array, jitter: float) -> list[jax.Array]:
    """Shifted and zoomed copies [B, H, W, 3], float32 in 0..255; edges repeat."""
    size = images.shape[1]
    centre, move = (size - 1) / 2, jitter * size
    at = jnp.arange(size) - centre
    y, x = jnp.meshgrid(at, at, indexing="ij")

    def warped(zoom: float, dy: float, dx: float) -> jax.Array:
        where = y / zoom + centre + dy, x / zoom + centre + dx
        return jax.vmap(lambda image: resample.bilinear(image, *where))(
            images.astype(jnp.float32)
        )

    shifts = [(move, 0.0), (-move, 0.0), (0.0, move), (0.0, -move)]
    zooms = [1 + 2 * jitter, 1 - 2 * jitter]
    return [
        *(warped(1.0, dy, dx) for dy, dx in shifts),
        *(warped(zoom, 0.0, 0.0) for zoom in zooms),
    ]


def embed_rows(
    embed: ViewsFn,
    faces: FaceSet,
    rows: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    threads: int,
    mesh: Mesh,
    exact: bool = False,
    position: np.ndarray | None = None,
    bar: tqdm | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Embeds rows of a set's source.

    Args:
      embed: uint8 images [B, H, W, 3] -> [B, V, D].
      faces: the set; `rows` are rows of its source.
      rows: int [n], at least one.
      image_size: H = W.
      batch_size: a multiple of the devices of the mesh.
      threads: for decoding.
      mesh: images are split over all its devices.
      exact: images of another size count as unreadable; else they are resampled.
      position: `position_of(faces)`, where it is known.
      bar: of more images than these, to be moved; None shows one of these.

    Returns:
      float32 [n, V, D]; an image that cannot be read has the embedding 0. And row ->
      reason of those images.
    """
    sharding.check_divisible("eval.batch_size", batch_size, mesh)
    position = position_of(faces) if position is None else position
    reader = BatchReader(faces, image_size=image_size, threads=threads, exact=exact)
    parts, readable = [], []
    with _bar(len(rows), batch_size) if bar is None else nullcontext(bar) as shown:
        for batch in _padded_batches(reader, position[rows], batch_size):
            images = sharding.put_batch(mesh, {"image": batch["image"]})["image"]
            views = jax.device_put(embed(images), sharding.batch_sharding(mesh))
            weight = batch["weight"]
            parts.append(sharding.own_rows(views) * weight[:, None, None])
            readable.append(weight > 0)
            shown.update(min(batch_size, len(rows) - batch_size * (len(parts) - 1)))
    bad = dict(reader.bad_records)
    for row in rows[~_of_all_hosts(readable)[: len(rows)]]:
        bad.setdefault(int(row), "unreadable; another host's log says why")
    return _of_all_hosts(parts)[: len(rows)], bad


def _bar(images: int, batch_size: int) -> tqdm:
    """Progress with rate and time left; of few batches, or on other hosts, nothing."""
    quiet = images < 20 * batch_size or not hosts.is_first()
    return tqdm(total=images, desc="embedding", unit="image", disable=quiet)


def position_of(faces: FaceSet) -> np.ndarray:
    """[rows of the source] -> example of the set, or -1."""
    position = np.full(len(faces.source), -1)
    position[faces.rows] = np.arange(len(faces))
    return position


def _of_all_hosts(parts: list[np.ndarray]) -> np.ndarray:
    """Each host's rows of every batch -> the rows of all batches in order."""
    # Some batches at a time: gathering puts them on every device, beside the run.
    at_once = max(_GATHERED_BYTES // (parts[0].nbytes * jax.process_count()), 1)
    rows = []
    for start in range(0, len(parts), at_once):
        found = hosts.gather(np.stack(parts[start : start + at_once]))
        # [hosts, batches, rows of a host, ...]
        rows.append(np.moveaxis(found, 0, 1).reshape(-1, *found.shape[3:]))
    return np.concatenate(rows)


def embed_to_store(
    store: EmbeddingStore,
    embed: ViewsFn,
    faces: FaceSet,
    rows: np.ndarray,
    *,
    part: int = 0,
    parts: int = 1,
    **options: Any,
) -> None:
    """Embeds what a store lacks, part by part.

    Args:
      store: of these rows.
      embed: uint8 images [B, H, W, 3] -> [B, V, D].
      faces: the set.
      rows: int [N], rows of its source in the order of the store.
      part: of this process, from 0.
      parts: number of processes that share the work.
      **options: see `embed_rows`.

    Raises:
      ValueError: the network gives NaN or infinity.
    """
    missing = list(store.missing(part, parts))
    if not missing:
        return
    options |= {"position": position_of(faces)}
    options["bar"] = _bar(sum(len(span) for _, span in missing), options["batch_size"])
    for number, span in missing:
        wanted = rows[span.start : span.stop]
        views, bad = embed_rows(embed, faces, wanted, **options)
        finite = np.isfinite(views).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"{faces.name}: NaN or infinity in {np.count_nonzero(~finite)} of "
                f"{len(wanted)} embeddings, the first of row {wanted[~finite][0]}: the "
                "network is broken"
            )
        place = {int(row): span.start + k for k, row in enumerate(wanted)}
        store.write(number, span, views, {place[row]: why for row, why in bad.items()})
    options["bar"].close()


def _padded_batches(
    reader: BatchReader, indices: np.ndarray, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of this host in batches of one size, decoded ahead.

    The last batch is filled with its last image.
    """
    count = -(-len(indices) // batch_size)
    padded = np.full(count * batch_size, indices[-1])
    padded[: len(indices)] = indices
    parts = padded.reshape(count, jax.process_count(), -1)[:, jax.process_index()]
    batches = grain.MapDataset.source(parts.tolist()).map(reader)
    return iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        )
    )
