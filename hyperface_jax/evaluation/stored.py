"""Embeddings in a folder: computed once, in parts, and read without a model.

    embeddings.npy   float32 [N, V, D]; V = 2 views of each image: as it is, mirrored
    ids.txt          id of each row, one a line
    meta.json        shape, part size, fingerprints of images and weights
    done/00003.json  part 3 is written; holds the rows that could not be read

Parts may be written by several processes and in any order; a part without its file in
done/ is computed again. Everything is on a local or mounted disk, because the array is
memory-mapped.
"""

import dataclasses
import errno
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperface_jax.data.name_lists import read_names, write_names

ARRAY, IDS, META, DONE = "embeddings.npy", "ids.txt", "meta.json", "done"
PART_IMAGES = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Embeddings to evaluate.

    Attributes:
      views: [N, V, D], not normalised; may be a memory map.
      ids: of the rows, or None where row i is image i of the set.
      unreadable: row -> reason; their embeddings are 0.
      network: fingerprint of what made them, and whether mirror images were added;
        "" where nothing says so.
      summed: the one view is the sum of an image and its mirror image.
    """

    views: np.ndarray
    ids: tuple[str, ...] | None = None
    unreadable: Mapping[int, str] = dataclasses.field(default_factory=dict)
    network: str = ""
    summed: bool = False

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """Sum of the views [N, D]; of a single view still a memory map."""
        one = self.views.shape[1] == 1
        return self.views[:, 0] if one else np.asarray(self.views).sum(axis=1)


def check_same_network(first: str, second: str, names: tuple[str, str]) -> None:
    """Refuses embeddings of two networks: their cosines mean nothing.

    Args:
      first: `Stored.network`.
      second: of another.
      names: of both, for the message.

    Raises:
      ValueError: both say what made them, and it is not the same.
    """
    if first and second and first != second:
        raise ValueError(f"{names[1]}: made by network {second}, {names[0]} by {first}")


def network_name(model: object, mirrored: object) -> str:
    """`Stored.network`."""
    added = "added" if str(mirrored) == "True" else "left out"
    return f"{model}, mirror image {added}" if model else ""


class EmbeddingStore:
    """Writes embeddings part by part, and reads them when all parts are there."""

    def __init__(self, folder: Path, meta: Mapping[str, int | str]):
        self._folder = folder
        self._meta: dict[str, Any] = dict(meta)

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingStore":
        """An existing folder.

        Raises:
          ValueError: it is none of ours.
        """
        try:
            meta = json.loads((folder / META).read_text())
            numbers = [meta[key] for key in ("rows", "views", "dimension")]
            if not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError(f"{META} has sizes {numbers}")
            if not (type(meta["part_images"]) is int and meta["part_images"] > 0):
                raise ValueError(f"{META} has parts of {meta['part_images']} images")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder}: no embeddings in it ({error})") from None
        return cls(folder, meta)

    @classmethod
    def create(
        cls,
        folder: Path,
        ids: Sequence[str],
        *,
        views: int,
        dimension: int,
        images: str,
        weights: str,
        part_images: int = PART_IMAGES,
    ) -> "EmbeddingStore":
        """Makes the folder, or goes on with one of the same images and weights.

        Args:
          folder: to write to.
          ids: of all rows.
          views: V.
          dimension: D.
          images: fingerprint of the set.
          weights: fingerprint of the network.
          part_images: rows of a part.

        Raises:
          ValueError: it holds embeddings of something else.
        """
        meta: dict[str, int | str] = {
            "rows": len(ids),
            "views": views,
            "dimension": dimension,
            "part_images": part_images,
            "images": images,
            "weights": weights,
        }
        if (folder / META).exists():
            store = cls.open(folder)
            del meta["part_images"]  # as it was begun
            different = [k for k in meta if store._meta.get(k) != meta[k]]
            if different:
                raise ValueError(
                    f"{folder} holds embeddings with other {', '.join(different)}; "
                    "give another folder or delete it"
                )
            return store
        # Made apart and renamed: another process may be about to do the same.
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            (made / DONE).mkdir()
            write_names(made / IDS, ([id_] for id_ in ids))
            np.lib.format.open_memmap(
                made / ARRAY,
                mode="w+",
                dtype=np.float32,
                shape=(len(ids), views, dimension),
            ).flush()
            _reserve(made / ARRAY)
            (made / META).write_text(json.dumps(meta, indent=1))
            made.chmod(0o755)
            made.rename(folder)
        except OSError:
            shutil.rmtree(made)
            is_ours = (folder / META).exists()
            if folder.is_dir() and any(folder.iterdir()) and not is_ours:
                raise ValueError(
                    f"{folder}: holds other files, expected a new or an empty folder"
                ) from None
            if not is_ours:
                raise
            return cls.create(
                folder,
                ids,
                views=views,
                dimension=dimension,
                images=images,
                weights=weights,
                part_images=part_images,
            )
        except BaseException:  # stopped: it may hold the space of all embeddings
            shutil.rmtree(made, ignore_errors=True)
            raise
        return cls(folder, meta)

    def missing(self, part: int = 0, parts: int = 1) -> Iterator[tuple[int, range]]:
        """Number and rows of the parts that are not written yet.

        Args:
          part: of this process, from 0.
          parts: number of processes that share the work.
        """
        rows, size = int(self._meta["rows"]), int(self._meta["part_images"])
        for number in range(part, -(-rows // size), parts):
            if self._lost(number) is None:
                yield number, range(number * size, min((number + 1) * size, rows))

    def write(
        self, number: int, rows: range, views: np.ndarray, unreadable: Mapping[int, str]
    ) -> None:
        """Stores one part; it counts from the moment its file in done/ exists."""
        where = self._folder / ARRAY
        try:
            array = np.load(where, mmap_mode="r+")
        except (EOFError, ValueError) as error:  # cut off by something else
            raise ValueError(f"{where}: damaged ({error!s:.160})") from None
        array[rows.start : rows.stop] = views
        array.flush()
        temporary = self._done(number).with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(json.dumps({str(k): v for k, v in unreadable.items()}))
            file.flush()
            os.fsync(file.fileno())  # a name without its content counts for nothing
        os.replace(temporary, self._done(number))

    def forget(self) -> None:
        """All parts are to be computed again."""
        for part in (self._folder / DONE).iterdir():
            part.unlink()

    def read(self) -> Stored:
        """All embeddings, memory-mapped.

        Raises:
          ValueError: parts are missing, or a file is damaged.
        """
        missing = sum(1 for _ in self.missing())
        if missing:
            raise ValueError(f"{self._folder}: {missing} parts are not computed yet")
        unreadable: dict[int, str] = {}
        for number in range(-(-self._meta["rows"] // self._meta["part_images"])):
            unreadable |= self._lost(number) or {}
        ids = tuple(row[0] for row in read_names(self._folder / IDS))
        where = self._folder / ARRAY
        try:
            views = np.load(where, mmap_mode="r")
        except Exception as error:  # a damaged header may fail anyhow
            raise ValueError(f"{where}: damaged ({error!s:.160})") from None
        shape = tuple(self._meta[key] for key in ("rows", "views", "dimension"))
        if views.shape != shape or len(ids) != len(views):
            raise ValueError(
                f"{where}: {list(views.shape)} and {len(ids)} ids, expected "
                f"{list(shape)}"
            )
        network = network_name(self._meta.get("weights"), views.shape[1] == 2)
        return Stored(views, ids, unreadable, network)

    def _lost(self, number: int) -> dict[int, str] | None:
        """Unreadable rows of a part; None where it is not done, or nobody can tell."""
        try:
            found = json.loads(self._done(number).read_text())
            return {int(row): str(why) for row, why in found.items()}
        except (OSError, ValueError, AttributeError, RecursionError):
            return None

    def _done(self, number: int) -> Path:
        return self._folder / DONE / f"{number:05d}.json"


def _reserve(path: Path) -> None:
    """Takes a file's space now: a full disk under a memory map kills the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return  # a file system that cannot do so
            why = f"{error.strerror}, {size / 1e6:.1f} MB needed"
            raise OSError(error.errno, why, str(path.parent)) from None
