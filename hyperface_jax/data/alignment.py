"""Face alignment: five points of a face -> the crop that recognition networks expect.

The points are, in this order, the left eye, the right eye, the nose tip and the left
and right corner of the mouth, where left and right are those of the image, not of the
person. Pixels are (x, y); the centre of the first pixel is (0, 0), as in OpenCV.

OpenCV (`pip install 'hyperface_jax[align]'`) is needed to cut faces out and to find
them; reading points and computing transforms needs NumPy only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hyperface_jax.data.landmarks import BadLandmarksError as BadLandmarksError
from hyperface_jax.data.landmarks import five_of_68 as five_of_68
from hyperface_jax.data.landmarks import read_landmarks as read_landmarks

TEMPLATE_112 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Where the five points are in a crop of 112 x 112: InsightFace's."""

MIN_FIT = 0.4
"""Least `face_fit` that `align` takes. A frontal face has 1, a full profile about .8, a
frontal face with left and right swapped about .2."""


def template(height: int, width: int) -> np.ndarray:
    """Where the five points are in a crop of this size.

    112k x 112k (k a whole number): InsightFace's points times k. 112k x 96k: the same,
    8k further left (SphereFace's crop). 128k x 128k: InsightFace's points of 112, moved
    8 to the right, times k.

    Returns:
      float64 [5, 2].

    Raises:
      ValueError: any other size.
    """
    if height > 0 and height % 112 == 0:
        scale = height // 112
        if width == height:
            return TEMPLATE_112 * scale
        if width == 96 * scale:
            return (TEMPLATE_112 - np.array([8, 0])) * scale
    if height > 0 and height % 128 == 0 and width == height:
        return (TEMPLATE_112 + np.array([8, 0])) * (height // 128)
    raise ValueError(
        f"no alignment template for {height} x {width}, expected height x width of "
        "112k x 112k, 112k x 96k or 128k x 128k"
    )


def similarity_transform(landmarks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, scale and shift that bring landmarks closest to a target.

    The least-squares solution of Umeyama (PAMI 1991), never a reflection. In the plane
    it is one complex number: with both sets centred and read as x + iy,
    a = <landmarks, target> / |landmarks|² rotates and scales.

    Mean and variance of float32 landmarks are float32, as in scikit-image: so matrices
    and crops equal InsightFace's to the last bit. Anything else is float64.

    Args:
      landmarks: [..., 5, 2] (any number of points).
      target: [5, 2], such as a `template`.

    Returns:
      float64 [..., 2, 3]; M @ (x, y, 1) is the point in the target's frame.

    Raises:
      BadLandmarksError: points that are not finite, that coincide, or that leave the
        rotation open.
    """
    mean, centred, product = _product(landmarks, target)
    variance = centred.var(axis=-2).sum(axis=-1)
    if (variance <= 1e-12 * (mean**2).sum(axis=-1)).any():
        raise BadLandmarksError("landmarks coincide: no face")
    if (face_fit(landmarks, target) < 1e-9).any():
        raise BadLandmarksError("landmarks fit the template in no direction better")
    a = product * (1 / variance) / centred.shape[-2]
    shift = _complex(np.mean(target, axis=0)) - a * _complex(mean)
    first = np.stack([a.real, -a.imag, shift.real], axis=-1)
    second = np.stack([a.imag, a.real, shift.imag], axis=-1)
    return np.stack([first, second], axis=-2)


def face_fit(landmarks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How like the target the points are, in [0, 1]; 1: up to a similarity the same.

    The correlation of both centred sets after the best rotation. 0 for points that
    coincide. Ours.

    Args:
      landmarks: [..., 5, 2].
      target: [5, 2].
    """
    _, centred, product = _product(landmarks, target)
    spread = (np.abs(_complex(centred)) ** 2).sum(axis=-1)
    lengths = np.sqrt(spread * np.var(target, axis=0).sum() * len(target))
    return np.abs(product) / np.where(lengths > 0, lengths, 1)


def _complex(points: np.ndarray) -> np.ndarray:
    return points[..., 0].astype(np.float64) + 1j * points[..., 1]


def _product(
    landmarks: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [..., 2], centred landmarks, and their inner product with the target's."""
    points = np.asarray(landmarks)
    if points.dtype != np.float32:
        points = points.astype(np.float64)
    if points.shape[-2:] != target.shape:
        raise BadLandmarksError(
            f"landmarks have shape {list(points.shape)}, expected {list(target.shape)}"
        )
    # A NaN compares false.
    if not (np.abs(points) < 1e9).all():
        raise BadLandmarksError("landmarks are NaN or beyond 1e9")
    mean = points.mean(axis=-2)
    centred = points - mean[..., None, :]
    aim = _complex(target - target.mean(axis=0))
    return mean, centred, (_complex(centred).conj() * aim).sum(axis=-1)


def align(
    image: np.ndarray,
    landmarks: np.ndarray,
    size: tuple[int, int] = (112, 112),
    *,
    min_fit: float = MIN_FIT,
) -> np.ndarray:
    """Cuts a face out so that its points come to lie on the template.

    Bilinear, black beyond the image: InsightFace's `norm_crop`. Nothing is smoothed
    first: a face much larger than `size` is sampled with gaps.

    Args:
      image: uint8 [H, W, 3].
      landmarks: [5, 2].
      size: (height, width), see `template`.
      min_fit: least `face_fit` of the points. 0 takes whatever InsightFace takes: for a
        protocol that must lose no image.

    Returns:
      uint8 [height, width, 3].

    Raises:
      BadLandmarksError: the points make no face.
      ValueError: another image or size.
    """
    cv2 = _cv2()
    _check_image(image)
    target = template(*size)
    matrix = similarity_transform(landmarks, target)
    if matrix.ndim != 2:
        raise BadLandmarksError(f"found {len(matrix)} sets of landmarks, expected one")
    found = float(face_fit(landmarks, target))
    if found < min_fit:
        raise BadLandmarksError(
            f"landmarks fit a face with {found:.2f}, expected at least {min_fit:g}: "
            "left and right may be swapped"
        )
    return cv2.warpAffine(
        np.ascontiguousarray(image),
        matrix,
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


class YuNetDetector:
    """Finds the five points of the main face of an image with OpenCV's YuNet.

    The main face is InsightFace's: the one with the largest w · h - 2 d², where d is
    the distance in pixels of its box's centre from the image's centre. So the largest
    wins, unless it is far off; of equals, the first.
    YuNet names points by the person's side and begins with the right eye. That eye is
    the left one in the image, so its order is already ours: nothing is exchanged.
    One thread at a time; it cannot be sent to another process.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        min_score: float = 0.6,
        max_side: int = 640,
        create: Callable[..., Any] | None = None,
    ):
        """Loads the model.

        Args:
          model_path: face_detection_yunet_*.onnx of github.com/opencv/opencv_zoo.
          min_score: faces with a lower score of the detector are not faces.
          max_side: a larger image is shrunk to this for the search.
          create: stands in for `cv2.FaceDetectorYN.create`, for tests.

        Raises:
          ValueError: no such file, or not a model that OpenCV can read.
        """
        self._cv2 = _cv2()
        self._max_side = max_side
        if not Path(model_path).is_file():
            raise ValueError(
                f"YuNet model {model_path}: not found, expected "
                "face_detection_yunet_2023mar.onnx of github.com/opencv/opencv_zoo"
            )
        try:
            self._net = (create or self._cv2.FaceDetectorYN.create)(
                str(model_path), "", (320, 320), min_score
            )
        except self._cv2.error as error:
            reason = str(error).split("error:")[-1].strip().splitlines()[0]
            raise ValueError(f"YuNet model {model_path}: {reason}") from None

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """Points of the main face.

        Args:
          image: uint8 RGB [H, W, 3].

        Returns:
          float64 [5, 2] in pixels of the image; None where no face is found.
        """
        _check_image(image)
        height, width = image.shape[:2]
        scale = min(1.0, self._max_side / max(height, width))
        small = (max(round(width * scale), 1), max(round(height * scale), 1))
        bgr = np.ascontiguousarray(image[..., ::-1])
        if scale < 1:
            bgr = self._cv2.resize(bgr, small, interpolation=self._cv2.INTER_AREA)
        self._net.setInputSize(small)
        faces = self._net.detect(bgr)[1]
        if faces is None or not len(faces):
            return None
        # [faces, 15]: x, y, w, h of the box, five points, score.
        faces = np.asarray(faces, np.float64)
        offset = faces[:, :2] + faces[:, 2:4] / 2 - np.array(small) / 2
        merit = faces[:, 2:4].prod(axis=1) - 2 * (offset**2).sum(axis=1)
        points = faces[np.argmax(merit), 4:14].reshape(5, 2)
        # Pixel centres: the small image's (-.5, -.5) is the large one's, too.
        return (points + 0.5) * (np.array([width, height]) / small) - 0.5


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]"
        )
    if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) < 32768:
        raise ValueError(
            f"image is {image.shape[0]} x {image.shape[1]}, expected sides from 1 to "
            "32767 (OpenCV's limit)"
        )


def _cv2() -> Any:
    """OpenCV, or one line on how to get it."""
    try:
        import cv2
    except ImportError:
        raise ImportError(
            "alignment needs OpenCV: pip install 'hyperface_jax[align]'"
        ) from None
    return cv2
