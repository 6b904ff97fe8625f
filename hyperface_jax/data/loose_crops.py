"""Images that are aligned while they are read: IJB's loose crops."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from hyperface_jax.data import alignment
from hyperface_jax.data.decode import decode_rgb
from hyperface_jax.data.face_set import FaceSet, fingerprint_of, sample_of
from hyperface_jax.data.image_files import FolderReader
from hyperface_jax.data.records import BadRecordError, Record, file_error


class AlignedSource:
    """Files that are decoded and aligned in threads; `image` holds pixels.

    Args:
      reader: of the files.
      names: file names, which are the ids.
      landmarks: float [N, 5, 2].
      size: (height, width) of the faces.
      threads: to read and cut with.
    """

    def __init__(
        self,
        reader: FolderReader,
        names: Sequence[str],
        landmarks: np.ndarray,
        size: tuple[int, int] = (112, 112),
        *,
        threads: int = 8,
    ):
        self._reader = reader
        self._names = names
        self._landmarks = landmarks
        self._size = size
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pool": None}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def ids(self) -> Sequence[str]:
        """Name of each record."""
        return self._names

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records with aligned pixels uint8 [H, W, 3]."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="align")
        return list(self._pool.map(self._record, rows))

    def _record(self, row: int) -> Record:
        name = self._names[row]
        try:
            pixels = decode_rgb(self._reader(row))
            # A protocol may lose no image: whatever fit the points have is taken.
            points = self._landmarks[row]
            face = alignment.align(pixels, points, self._size, min_fit=0)
        except OSError as error:
            return file_error(name, error)
        except ValueError as error:
            return BadRecordError(f"{name}: {error}")
        return {"image": face, "label": int(row), "id": name}

    def take(self, rows: np.ndarray) -> "AlignedSource":
        """The given rows as a source of their own."""
        return AlignedSource(
            self._reader.take(rows),
            [self._names[int(row)] for row in rows],
            self._landmarks[rows],
            self._size,
            threads=self._threads,
        )


def open_loose_crops(
    folder: epath.PathLike, names: Sequence[str], landmarks: np.ndarray
) -> FaceSet:
    """Faces of a list of files, cut out by their landmarks.

    Args:
      folder: of the files.
      names: of the files [N].
      landmarks: five points of each in its pixels, [N, 5, 2].
    """
    rows = np.arange(len(names))
    reader = FolderReader(folder, names)
    return FaceSet(
        name=epath.Path(folder).parent.name,
        source=AlignedSource(reader, names, landmarks.astype(np.float32)),
        rows=rows,
        labels=rows.astype(np.int32),
        source_labels=rows.astype(np.int32),
        identities=tuple(names),
        fingerprint=fingerprint_of(
            "crops",
            list(names),
            np.rint(landmarks * 100),
            sample_of(reader, len(names)),
        ),
    )
