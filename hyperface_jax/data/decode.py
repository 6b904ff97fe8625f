"""Image bytes -> uint8 RGB of a fixed size."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from hyperface_jax.data.records import BadRecordError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
"""What Pillow may try: its EPS reader, for one, starts another program."""

MAX_PIXELS = 1 << 26
"""67 million. A header of 1 kB can promise 4 billion."""


class BadImageError(BadRecordError):
    """The bytes are not an image that can be read; the message says why."""


def decode_image(data: bytes | np.ndarray, size: int) -> np.ndarray:
    """Decodes JPEG, PNG or whatever Pillow reads to RGB.

    Grey, palette and CMYK images become RGB. Another size is resampled (area-averaging
    bilinear; the aspect ratio is not kept).

    Args:
      data: file contents; pixels uint8 [H, W, 3] are only resampled.
      size: side of the result in pixels.

    Returns:
      uint8 [size, size, 3].

    Raises:
      BadImageError: the bytes cannot be decoded.
    """
    image = data if isinstance(data, np.ndarray) else decode_rgb(data)
    if image.shape[:2] != (size, size):
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    return image


def decode_into(data: bytes | np.ndarray, out: np.ndarray) -> None:
    """`decode_image` into an array: saves a copy where a JPEG has the right size.

    Args:
      data: as `decode_image`.
      out: uint8 [size, size, 3], contiguous; 0 where the image cannot be decoded.

    Raises:
      BadImageError: the bytes cannot be decoded.
    """
    if isinstance(data, bytes) and data[:2] == b"\xff\xd8":
        # ValueError: another colour space, or damaged. The size is asked for first, for
        # simplejpeg 1.9 keeps 4 kB for ever whenever a buffer is too small.
        with contextlib.suppress(ValueError):
            if tuple(simplejpeg.decode_jpeg_header(data)[:2]) == out.shape[:2]:
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return
    out[:] = 0
    out[:] = decode_image(data, len(out))


def check_size(data: bytes | np.ndarray, size: int) -> None:
    """Refuses an image that is no crop of the given size; reads its head only.

    Raises:
      BadImageError: it has another size, or is no image.
    """
    height, width = size_of(data)
    if (height, width) != (size, size):
        raise BadImageError(
            f"is {width}x{height}, expected an aligned crop of {size}x{size} "
            "(prepare --landmarks aligns; --resize only scales)"
        )


def size_of(data: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) of an image, from its head.

    Raises:
      BadImageError: it is no image.
    """
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    with _pillow(data) as image:
        return image.height, image.width


def decode_rgb(data: bytes) -> np.ndarray:
    """Decodes to uint8 RGB [H, W, 3] of the image's own size.

    Raises:
      BadImageError: the bytes cannot be decoded.
    """
    if len(data) == 0:
        raise BadImageError("0 bytes")
    if data[:2] == b"\xff\xd8":
        try:
            _check_pixels(*map(int, simplejpeg.decode_jpeg_header(data)[:2]))
            # Releases the GIL and takes less than half of Pillow's time.
            return simplejpeg.decode_jpeg(data, "RGB")
        except BadImageError:
            raise
        except ValueError as error:
            first = error
        if _rejects_colour_space(first):
            return _decode_with_pillow(data)
        raise BadImageError(f"corrupt JPEG of {len(data)} bytes ({first})")
    return _decode_with_pillow(data)


def _check_pixels(height: int, width: int) -> None:
    if int(height) * int(width) > MAX_PIXELS:
        raise BadImageError(f"an image of {height} x {width} pixels")


def _rejects_colour_space(error: ValueError) -> bool:
    """True where the file may be sound but its colour space is CMYK or YCCK."""
    return "colorspace" in str(error).lower() or "color" in str(error).lower()


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with _pillow(data) as image:
        _check_pixels(image.height, image.width)
        if image.mode[0] in "IF":
            return _grey_of_16_bits(np.asarray(image), image.mode)
        return np.asarray(image.convert("RGB"))


def _grey_of_16_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """The high byte of each; Pillow's own conversion would clip them to white."""
    if mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError(f"pixels of mode {mode}, expected 8 or 16 bits a channel")
    return np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=2)


@contextlib.contextmanager
def _pillow(data: bytes) -> Iterator[Image.Image]:
    """An image of one of the `FORMATS`; all that is wrong is a BadImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except BadImageError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("<")[0].strip()
        raise BadImageError(f"not an image, {len(data)} bytes ({reason})") from None
