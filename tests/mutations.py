"""Bytes flipped, cut out, put in and overwritten, as hypothesis draws them."""

import contextlib
import struct
import tracemalloc

from hypothesis import strategies as st

MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "cut", "insert", "word"]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, mutations) -> bytes:
    out = bytearray(data)
    for place, kind, value in mutations:
        at = int(place * len(out))
        if kind == "flip" and at < len(out):
            out[at] = value & 255
        elif kind == "cut":
            del out[at : at + value % 64]
        elif kind == "insert":
            out[at:at] = struct.pack("<I", value)
        elif kind == "word":
            out[at & ~3 : (at & ~3) + 4] = struct.pack("<I", value)
    return bytes(out)


@contextlib.contextmanager
def at_most(megabytes: int):
    """Fails if Python and NumPy hold more than that at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes << 20
