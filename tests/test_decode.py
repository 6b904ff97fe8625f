"""Image bytes to pixels: every format, damage, and what is kept of it."""

import io
import resource
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hyperface_jax.data.decode import BadImageError, decode_image, decode_into


def test_sixteen_bits_a_pixel_keep_their_grey():
    """Pillow's own conversion clips everything above 255 to white."""
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    found = decode_image(file.getvalue(), 64)
    np.testing.assert_array_equal(found, np.repeat((ramp >> 8)[..., None], 3, 2))
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.float32)).save(file, "TIFF")
    with pytest.raises(BadImageError, match="expected 8 or 16 bits"):
        decode_image(file.getvalue(), 64)


def test_grey_cmyk_and_png_become_rgb():
    image = toy.person_image(0, 0)
    assert np.abs(decode_image(toy.jpeg(image), 32).astype(int) - image).mean() < 12
    grey = decode_image(toy.jpeg(image, mode="L"), 32)
    assert (grey[..., 0] == grey[..., 1]).all()
    cmyk = decode_image(toy.jpeg(image, mode="CMYK"), 32)
    assert np.abs(cmyk.astype(int) - image).mean() < 12
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    np.testing.assert_array_equal(decode_image(stream.getvalue(), 32), image)
    assert decode_image(toy.jpeg(image), 48).shape == (48, 48, 3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("side", [16, 32, 48])
def test_decoding_keeps_no_memory(side):
    """simplejpeg kept 4 kB of every image larger than asked for: 290 MB a training."""
    data = toy.jpeg(toy.person_image(0, 0))  # 32 x 32
    out = np.zeros((side, side, 3), np.uint8)

    def pages_after(calls: int) -> int:
        for _ in range(calls):
            decode_into(data, out)
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages_after(200)
    assert (pages_after(4000) - before) * resource.getpagesize() < 3e6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"hello world, not an image", "not an image"),
        (toy.jpeg(toy.person_image(0, 0))[:400], "corrupt JPEG"),
    ],
)
def test_bad_images_say_why(data, reason):
    with pytest.raises(BadImageError, match=reason):
        decode_image(data, 32)


@settings(max_examples=150, deadline=None)
@given(
    cut=st.integers(0, 900),
    flips=st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), max_size=8),
)
def test_mutated_jpeg_decodes_or_is_refused(cut, flips):
    data = bytearray(toy.jpeg(toy.person_image(0, 0)))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        image = decode_image(bytes(data[: max(len(data) - cut, 0)]), 32)
    except BadImageError:
        return
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
