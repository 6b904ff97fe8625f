"""Cuts faces out of images: points from a file or a detector, then alignment."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import simplejpeg
from etils import epath

from hyperface_jax.data import alignment, landmarks
from hyperface_jax.data.decode import decode_rgb
from hyperface_jax.data.face_set import fingerprint_of
from hyperface_jax.data.image_names import SUFFIXES
from hyperface_jax.data.records import BadRecordError, RecordSource


class LandmarkFinder(Protocol):
    """Finds five points; may be sent to another process."""

    @property
    def file(self) -> str:
        """Path of the file that the points follow from."""
        ...

    def only(self, ids: Sequence[str]) -> "LandmarkFinder":
        """The same for images with these ids, to be sent to another process."""
        ...

    def __call__(self, image: np.ndarray, id_: str) -> np.ndarray:
        """Points [5, 2] (x, y) in an image uint8 [H, W, 3].

        Raises:
          BadRecordError: there are none.
        """
        ...


@functools.lru_cache(maxsize=2)
def _landmarks(path: str) -> dict[str, np.ndarray]:
    """Read once a process."""
    return landmarks.read_landmarks(path)


@dataclass(frozen=True)
class ListedLandmarks:
    """Points from a file, by image id.

    Attributes:
      path: see `landmarks.read_landmarks`.
      points: of some images; None: the file is read once in each process.
    """

    path: str
    points: Mapping[str, np.ndarray] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def file(self) -> str:
        """The points."""
        return self.path

    def only(self, ids: Sequence[str]) -> "ListedLandmarks":
        """With the points of these ids: those of 42 million are 19 GB a process."""
        known = self._known()
        names = (name for id_ in ids for name in _names(id_))
        return ListedLandmarks(self.path, {n: known[n] for n in names if n in known})

    def __call__(self, image: np.ndarray, id_: str) -> np.ndarray:
        """The points that the file has for this id, with or without its suffix."""
        known = self._known()
        for name in _names(id_):
            if name in known:
                return known[name]
        raise BadRecordError(f"no landmarks in {self.path}")

    def _known(self) -> Mapping[str, np.ndarray]:
        return _landmarks(self.path) if self.points is None else self.points


def _names(id_: str) -> Iterator[str]:
    """What a file may call an image."""
    yield id_
    yield from (f"{id_}{suffix}" for suffix in SUFFIXES)


@functools.lru_cache(maxsize=2)
def _detector(path: str) -> Any:
    return alignment.YuNetDetector(path)


@dataclass(frozen=True)
class DetectedLandmarks:
    """Points found by OpenCV's YuNet.

    Attributes:
      model: path of its weights.
    """

    model: str

    @property
    def file(self) -> str:
        """The detector's weights."""
        return self.model

    def only(self, ids: Sequence[str]) -> "DetectedLandmarks":
        """Itself: it looks at the image."""
        return self

    def __call__(self, image: np.ndarray, id_: str) -> np.ndarray:
        """The points of the face that the detector's rule chooses."""
        points = _detector(self.model)(image)
        if points is None:
            raise BadRecordError("no face found")
        return points


@dataclass(frozen=True)
class Aligner:
    """How faces are cut out before they are stored.

    Attributes:
      find: the points of an image.
      size: (height, width) of the result.
      quality: of the JPEG that is written.
    """

    find: LandmarkFinder
    size: tuple[int, int]
    quality: int = 95

    @property
    def fingerprint(self) -> str:
        """Of everything that the aligned faces depend on besides the images."""
        content = epath.Path(self.find.file).read_bytes()
        kind = type(self.find).__name__
        return fingerprint_of(kind, content, self.size, self.quality)

    def only(self, source: RecordSource) -> "Aligner":
        """The same for the images of a source, small enough for another process."""
        ids: Sequence[str] | None = getattr(source, "ids", None)
        return self if ids is None else replace(self, find=self.find.only(ids))

    def __call__(self, image: bytes, id_: str) -> bytes:
        """The aligned face as JPEG.

        Raises:
          BadRecordError: no landmarks, or they do not make a face.
        """
        pixels = decode_rgb(image)
        try:
            face = alignment.align(pixels, self.find(pixels, id_), self.size)
        except ValueError as error:  # bad points, or a side beyond OpenCV's 32767
            raise BadRecordError(str(error)) from None
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(face), self.quality, colorsubsampling="444"
        )
