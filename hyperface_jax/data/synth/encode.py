"""JPEG bytes of a rendered face."""

import numpy as np
import simplejpeg
from numpy.typing import NDArray


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG file of a uint8[h, w, 3] RGB image, 4:2:0, quality in 1..100."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image),
        quality=int(quality),
        colorspace="RGB",
        colorsubsampling="420",
    )
