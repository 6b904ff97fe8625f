"""InsightFace's RecordIO: what is read, and what damage costs."""

import errno
import functools
import itertools
import json
import subprocess
import sys
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
    face_set,
    insightface,
    pipeline,
    recordio,
    sources,
)
from hyperface_jax.data.records import BadRecordError, UnreadableFileError

LAYOUTS = ("insightface", "array_label", "no_header", "split_record")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_mxnets_own_writer(shared, layout):
    folder = shared(f"data/recordio/{layout}")
    truth = json.loads((folder / "truth.json").read_text())
    faces = insightface.open_insightface(folder)
    records = faces.read(range(len(faces)))
    found = [[int(r["id"]), r["label"], len(r["image"])] for r in records]
    assert found == truth["records"]
    assert faces.num_classes == len(truth["identities"])
    np.testing.assert_array_equal(faces.labels, [label for _, label, _ in found])


@pytest.mark.parametrize("array_label", [False, True])
def test_our_fixtures_are_read_back(tmp_path, array_label):
    folder = record_files.write_insightface(tmp_path / "a", array_label=array_label)
    faces = insightface.open_insightface(folder)
    assert (len(faces), faces.num_classes) == (20, 5)
    np.testing.assert_array_equal(faces.labels, np.repeat(np.arange(5), 4))
    assert faces.read([6])[0]["image"] == toy.jpeg(toy.person_image(1, 2))
    assert faces.read([6])[0]["id"] == "7"
    assert faces.identities == ("0", "1", "2", "3", "4")


def test_magic_numbers_inside_a_payload_are_put_back(tmp_path, rng):
    for parts in itertools.product((b"", b"abcd", b"ab"), repeat=3):
        image = record_files.MAGIC.join(parts)
        record = record_files.image_payload(0, image)
        folder = record_files.write_records(tmp_path, [(0, record), (1, record)])
        file = recordio.RecordFile.open(folder / "train.rec", folder / "train.idx")
        assert file.read(0).image == image
        assert file.read(1).image == image


def test_key_ranges_beyond_float32_are_not_believed(tmp_path):
    """Two people whose border is an odd key above 2^24: float32 rounds it."""
    first = (1 << 24) - 5
    folder = record_files.write_insightface(
        tmp_path, people=3, images=5, first_key=first
    )
    rounded = np.float32(first + 10)
    assert rounded != first + 10 or np.float32(first + 5) == first + 5
    faces = insightface.open_insightface(folder)
    np.testing.assert_array_equal(faces.labels, np.repeat(np.arange(3), 5))
    assert faces.read([0])[0]["id"] == str(first)


def test_ranges_that_contradict_the_labels_are_not_believed(tmp_path):
    records = [
        (
            k,
            record_files.image_payload(
                [0, 1, 1, 0][k - 1], toy.jpeg(np.zeros((8, 8, 3), np.uint8))
            ),
        )
        for k in range(1, 5)
    ]
    records += [
        (5, record_files.image_payload([1, 3], b"")),
        (6, record_files.image_payload([3, 5], b"")),
    ]
    records.append((0, record_files.image_payload([5, 7], b"")))
    faces = insightface.open_insightface(record_files.write_records(tmp_path, records))
    np.testing.assert_array_equal(faces.labels, [0, 1, 1, 0])


def test_unusable_labels_are_rejected_and_the_rest_is_kept(tmp_path, caplog):
    labels = [0, 0.5, 1, float("nan"), -1, 3, 4e9, 1]
    image = toy.jpeg(toy.person_image(0, 0))
    records = [(k, record_files.image_payload(v, image)) for k, v in enumerate(labels)]
    faces = insightface.open_insightface(record_files.write_records(tmp_path, records))
    np.testing.assert_array_equal(faces.labels, [0, 1, 2, 1])  # nobody is 2
    assert faces.identities == ("0", "1", "3")
    assert sorted(faces.rejected) == ["1", "3", "4", "6"]
    assert "4 of 8 records have no usable label, left out (first key 1" in caplog.text
    assert faces.rejected["1"] == "label is 0.5, expected a whole number from 0"
    # The pipeline compares with what the record says.
    reader = pipeline.BatchReader(faces, image_size=32, threads=1)
    assert reader([0, 1, 2, 3])["weight"].tolist() == [1, 1, 1, 1]


def test_a_damaged_record_keeps_its_place_and_names_file_key_and_offset(tmp_path):
    folder = record_files.write_insightface(tmp_path)
    data = bytearray((folder / "train.rec").read_bytes())
    offset = int((folder / "train.idx").read_text().split("\n")[6].split("\t")[1])
    data[offset] ^= 1
    (folder / "train.rec").write_bytes(data)
    faces = insightface.open_insightface(folder)
    reader = pipeline.BatchReader(faces, image_size=32, threads=2)
    assert reader(range(5, 9))["weight"].tolist() == [1, 0, 1, 1]
    (reason,) = reader.bad_records.values()
    assert f"train.rec, record 7 at byte {offset}: magic is 0xced7230b" in reason


def test_a_bad_sector_is_one_bad_record(tmp_path, monkeypatch):
    folder = record_files.write_insightface(tmp_path)
    faces, read = insightface.open_insightface(folder), recordio.os.pread

    def pread(file, size, offset):
        if offset == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, size, offset)

    bad = int(faces.source._file._offsets[3])
    monkeypatch.setattr(recordio.os, "pread", pread)
    records = faces.read(range(6))
    assert [isinstance(r, UnreadableFileError) for r in records] == [
        k == 3 for k in range(6)
    ]
    assert "train.rec, record 3: Input/output error" in str(records[3])


def test_a_cut_off_file_and_an_index_of_another_file(tmp_path):
    folder = record_files.write_insightface(tmp_path / "a")
    data = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        ValueError, match=r"records of the index lie past its end .* cut"
    ):
        insightface.open_insightface(folder)
    (folder / "train.rec").write_bytes(b"\0" * 8 + data)
    with pytest.raises(ValueError, match="do not belong together"):
        insightface.open_insightface(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.idx", "", "no line 'key offset' found"),
        ("train.idx", "1\t0\n2\tx\n", "line 2: found '2"),
        ("train.idx", "1\t0\n2\t-4\n", "line 2: found '2"),
        ("train.idx", "1\t0\n2\t9223372036854775807\n", "line 2: found '2"),
        ("train.idx", f"1\t0\n{'9' * 5000}\t8\n", "line 2: found '999"),
        ("train.idx", "1\t0\n1\t40\n", "key 1 occurs more than once"),
        ("train.idx", "1\t0\n2\t0\n", "byte 0 is given as the place of two records"),
        ("property", "many\n", "expected 'classes,height,width'"),
        ("property", f"{'9' * 5000},32,32\n", "expected 'classes,height,width'"),
        ("property", "3,32,32\n", "3 classes, but there is a label 4"),
    ],
)
def test_bad_companions_of_a_rec_file(tmp_path, name, text, message):
    folder = record_files.write_insightface(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r".") as error:
        insightface.open_insightface(folder)
    assert message in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("lines", [1, 9, 20, 25])
def test_an_index_that_was_cut_off_is_no_smaller_set(tmp_path, lines):
    folder = record_files.write_insightface(tmp_path)
    index = (folder / "train.idx").read_text().splitlines(keepends=True)
    assert len(index) == 26
    (folder / "train.idx").write_text("".join(index[:lines]))
    with pytest.raises(ValueError, match=r"train.rec: goes on for [\d,]+ bytes after"):
        insightface.open_insightface(folder)


def test_a_missing_index(tmp_path):
    folder = record_files.write_insightface(tmp_path)
    (folder / "train.idx").unlink()
    with pytest.raises(ValueError, match=r"no train.idx, expected InsightFace's files"):
        sources.open_path(str(folder))


@functools.cache
def sound():
    """A good folder's files, to be mutated."""
    with tempfile.TemporaryDirectory() as folder:
        record_files.write_insightface(Path(folder), people=3, images=3, size=16)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@settings(max_examples=500, deadline=None)
@given(
    which=st.sampled_from(["train.rec", "train.idx", "property"]),
    mutations=MUTATIONS,
)
def test_mutated_recordio_is_read_or_refused(which, mutations):
    """No exception but ours, no hang, no memory beyond the file's own size."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in sound().items():
            data = mutate(data, mutations) if file == which else data
            (Path(name) / file).write_bytes(data)
        with at_most(32):
            try:
                read_all(Path(name))
            except ValueError as error:
                if name not in str(error):
                    raise


def read_all(folder):
    faces = insightface.open_insightface(folder)
    everything = range(len(faces))
    assert all(isinstance(r, dict | BadRecordError) for r in faces.read(everything))
    batch = pipeline.BatchReader(faces, image_size=16, threads=1)(everything)
    assert set(batch["weight"].tolist()) <= {0.0, 1.0}


def records_of(people=5, images=4):
    """(key, payload) of InsightFace's layout with array labels, header last."""
    found = [
        (
            1 + p * images + i,
            record_files.image_payload([p, 0.0], toy.jpeg(toy.person_image(p, i, 16))),
        )
        for p in range(people)
        for i in range(images)
    ]
    border = people * images + 1
    for p in range(people):
        span = [1 + p * images, 1 + (p + 1) * images]
        found.append((border + p, record_files.image_payload(span, b"")))
    found.append((0, record_files.image_payload([border, border + people], b"")))
    return found


@pytest.mark.parametrize("key", [1, 10, 13, 20])
def test_an_empty_image_is_one_rejection_and_loses_no_other(tmp_path, key):
    records = [
        (k, record_files.image_payload([(k - 1) // 4, 0.0], b"") if k == key else v)
        for k, v in records_of()
    ]
    faces = insightface.open_insightface(record_files.write_records(tmp_path, records))
    assert (len(faces), faces.num_classes) == (20, 5)
    reader = pipeline.BatchReader(faces, image_size=16, threads=1)
    assert np.flatnonzero(reader(range(20))["weight"] == 0).tolist() == [key - 1]


@pytest.mark.parametrize("key", [0, 21, 23, 25])
def test_a_damaged_header_or_identity_record_costs_no_image(tmp_path, key):
    records = [(k, b"abc" if k == key else v) for k, v in records_of()]
    folder = record_files.write_records(tmp_path, records)
    (folder / "property").write_text("5,16,16")
    faces = insightface.open_insightface(folder)
    reader = pipeline.BatchReader(faces, image_size=16, threads=1)
    assert reader(range(20))["weight"].all()
    assert faces.num_classes == 5
    assert len(faces) <= 21


def test_fingerprints_follow_content_and_not_the_path(tmp_path):
    a = insightface.open_insightface(record_files.write_insightface(tmp_path / "a"))
    b = insightface.open_insightface(record_files.write_insightface(tmp_path / "b"))
    c = insightface.open_insightface(
        record_files.write_insightface(tmp_path / "c", images=5)
    )
    assert a.fingerprint == b.fingerprint != c.fingerprint
    with (tmp_path / "b" / "train.rec").open("r+b") as file:
        at = file.read().index(b"\xff\xd8")  # an image, of the same length
        file.seek(at + 300)
        file.write(b"\x00\x01\x02")
    assert insightface.open_insightface(tmp_path / "b").fingerprint != a.fingerprint
    assert face_set.concatenate([a]) is a


@pytest.mark.parametrize(
    "reader",
    ["tar_files.TarReader(path, keys, keys)", "recordio.RecordFile(path, keys, keys)"],
)
def test_python_ends_without_a_word_while_a_file_is_open(reader, tmp_path):
    """The modules that closing needs are emptied before a script's own names."""
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    code = f"""
import jax  # without it the order is another
import numpy as np
from hyperface_jax.data import recordio, tar_files
path, keys = {str(path)!r}, np.zeros(1, int)
kept = {reader}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
