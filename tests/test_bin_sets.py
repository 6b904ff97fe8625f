"""Verification sets in .bin files, which are pickles."""

import contextlib
import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import record_files
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, at_most, mutate

from hyperface_jax.data import (
    bin_set,
    pipeline,
    safe_pickle,
)


@pytest.mark.parametrize("name", ["lfw_py2", "lfw_py3", "lfw_ndarray"])
def test_bin_files_of_the_peers(shared, name):
    images, answers = bin_set.read_bin(shared(f"data/recordio/bin/{name}.bin"))
    assert (len(images), len(answers), answers.sum()) == (240, 120, 60)
    found = bin_set.open_bin(shared(f"data/recordio/bin/{name}.bin"))
    reader = pipeline.BatchReader(found.faces, image_size=112, threads=2)
    assert reader(range(240))["weight"].all()
    assert np.bincount(found.pairs.fold).tolist() == [12] * 10


@pytest.mark.parametrize("kind", ["py2", "py3", "ndarray"])
def test_bin_files(tmp_path, kind):
    path = record_files.write_bin(tmp_path / "agedb_30.bin", pairs=23, kind=kind)
    test = bin_set.open_bin(path)
    assert test.name == "agedb_30"
    assert test.pairs.is_genuine.tolist() == [k % 2 == 0 for k in range(23)]
    assert np.bincount(test.pairs.fold).tolist() == [3] * 3 + [2] * 7
    assert test.faces.read([4])[0]["image"] == toy.jpeg(toy.person_image(2, 4))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/hyperface_was_here",)


def test_no_pickle_is_told_longer_than_it_is():
    """Neither repr of a graph without end, nor a length that is a lie, nor defaults."""
    graph: tuple = ("a", "b")
    for _ in range(60):
        graph = (graph, graph)
    promised = b"\x80\x05\x96" + struct.pack("<Q", 2 << 30)
    text = b"X" + struct.pack("<I", 12) + b"__defaults__"
    default = b"c_codecs\nencode\n(N}" + text + b"(X\x04\x00\x00\x00utf8tstb."
    large = pickle.dumps(([b"a", b"b"], [1 << 40000]), 2)
    before = safe_pickle._encode.__defaults__
    for data, message in (
        (pickle.dumps(([b"a", b"b"], [graph]), 2), "answer 0 is a tuple"),
        (large, "answer 0 is a int"),
        (promised, "2147483648 bytes promised, 0 found"),
        (default, "damaged pickle"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.bin"
            path.write_bytes(data)
            refused = pytest.raises(ValueError, match=rf"x\.bin.*{message}")
            with at_most(64), refused:
                bin_set.read_bin(path)
    assert safe_pickle._encode.__defaults__ == before


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(tmp_path, protocol):
    image = np.frombuffer(toy.jpeg(toy.person_image(0, 0)), np.uint8)
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(([image, image], np.array([True])), protocol))
    images, answers = bin_set.read_bin(path)
    assert images == [image.tobytes()] * 2
    assert answers.tolist() == [True]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_anything_is_refused_unexecuted(tmp_path, protocol):
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(([b"x", b"y"], [Evil()]), protocol))
    with pytest.raises(
        ValueError, match=r"evil.bin: it names \w+.system, which is not"
    ):
        bin_set.read_bin(path)
    assert not os.path.exists("/tmp/hyperface_was_here")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], "found a list, expected"),
        (([b"a", b"b", b"c"], [True]), "3 images for 1 pairs"),
        (([], []), "0 images for 0 pairs"),
        (([b"a", 3], [True]), "image 1 is a int"),
        (([b"a", b"b"], [7]), "answer 0 is 7"),
        (([b"a", np.zeros(3)], [True]), "array of dtype 'f8'"),
        ((3, 4), "found a int, expected a list"),
    ],
)
def test_bins_of_another_shape(tmp_path, value, message):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(ValueError, match=r"a\.bin") as error:
        bin_set.read_bin(path)
    assert message in str(error.value)


SOUND_PICKLES = [pickle.dumps(([b"abc" * 9, b"de"], [True]), p) for p in range(5)] + [
    pickle.dumps(([np.arange(9, dtype=np.uint8)] * 2, np.array([True])), 2)
]


@settings(max_examples=1500, deadline=None)
@given(data=st.sampled_from(SOUND_PICKLES), mutations=MUTATIONS)
def test_mutated_pickles_are_read_or_refused(data, mutations):
    with at_most(8), contextlib.suppress(ValueError):
        safe_pickle.load_pickle(mutate(data, mutations))


def test_a_bin_that_is_cut_off_is_said_so(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(pickle.dumps(([b"abc", b"de"], [True]), 2)[:-4])
    with pytest.raises(ValueError, match=r"cut\.bin: damaged .*it ends too early"):
        bin_set.read_bin(path)


def test_a_bin_that_is_not_there_is_said_without_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"no\.bin: No such file or directory$"):
        bin_set.read_bin(tmp_path / "no.bin")
