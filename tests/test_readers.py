"""Other software's files: RecordIO, lists, .bin. Well-formed, damaged, and hostile."""

import functools
import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import record_files
import toy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hyperface_jax.data import (
    bin_set,
    datasets,
    decode,
    edits,
    face_set,
    image_list,
    insightface,
    loose_images,
    name_lists,
    orders,
    pipeline,
    preparing,
    recordio,
    safe_pickle,
    sources,
    splits,
)
from hyperface_jax.data.records import BadRecordError

LAYOUTS = ("insightface", "array_label", "no_header", "split_record")


# --- RecordIO -------------------------------------------------------------------------


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
        tracemalloc.start()
        try:
            read_all(Path(name))
        except ValueError as error:
            if name not in str(error):
                raise
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 32 << 20


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


# --- several sets as one --------------------------------------------------------------


def test_several_paths_train_on_all_with_label_offsets(tmp_path):
    rec = record_files.write_insightface(tmp_path / "rec", people=3, images=2)
    folder = toy.write_folder(tmp_path / "folder", people=2, images=3)
    faces = sources.open_paths(f"{rec},{folder}")
    assert (len(faces), faces.num_classes) == (12, 5)
    np.testing.assert_array_equal(faces.labels, [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4])
    assert faces.identities == ("0/0", "0/1", "0/2", "1/Person_00", "1/Person_01")
    batch = pipeline.BatchReader(faces, image_size=32, threads=2)([11, 0, 6])
    assert batch["weight"].tolist() == [1, 1, 1]
    assert batch["label"].tolist() == [4, 0, 3]
    part = faces.source.take(np.array([1, 7, 11]))
    assert [r["label"] for r in part.__getitems__([0, 1, 2])] == [0, 3, 4]
    with pytest.raises(ValueError, match="pairs_path is given with 2 paths"):
        sources.open_paths((str(rec), str(folder)), pairs_path="x")
    with pytest.raises(ValueError, match=r"nothing: not found, expected a folder"):
        sources.open_paths(str(tmp_path / "nothing"))


# --- lists ----------------------------------------------------------------------------

LINES = {
    "im2rec": "0\t{label}.000000\t{path}",
    "face2rec": "1\t{path}\t{label}\t10\t20\t90\t100",
    "cvlface": "7\t{path}\t{label}",
    "magface": "{path} 0 {label} 0",
    "named": "{path} {label}",
    "bare": "{path}",
}


@pytest.mark.parametrize("kind", LINES)
def test_lists_of_all_peers(tmp_path, kind):
    toy.write_folder(tmp_path, people=3, images=2)
    paths = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))
    lines = [LINES[kind].format(path=p, label=k // 2) for k, p in enumerate(paths)]
    path = tmp_path / "train.lst"
    path.write_text("\n".join(reversed(lines)) + "\n\n")
    faces = sources.open_path(str(path))
    assert faces.num_classes == 3
    np.testing.assert_array_equal(faces.labels, [2, 2, 1, 1, 0, 0])
    assert faces.identities[0] == ("Person_00" if kind == "bare" else "0")
    assert faces.read([5])[0]["image"] == (tmp_path / paths[0]).read_bytes()
    elsewhere = tmp_path / "lists" / "train.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text(path.read_text())
    moved = sources.open_path(str(elsewhere), list_root=str(tmp_path))
    assert moved.read([0])[0]["label"] == 2
    missing = sources.open_path(str(elsewhere)).read([0])[0]
    assert isinstance(missing, BadRecordError)


def test_exclusions_of_two_sources_go_by_source(tmp_path):
    """Keys repeat in every .rec: 1/3 is record 3 of the second."""
    for name in ("a", "b"):
        record_files.write_insightface(tmp_path / name, people=2, images=2, size=16)
    both = sources.open_paths((str(tmp_path / "a"), str(tmp_path / "b")))
    kept = edits.exclude(both, {"image": {"1/3"}})
    assert [r["id"] for r in kept.read(range(7))] == [
        *(f"0/{k}" for k in (1, 2, 3, 4)),
        *(f"1/{k}" for k in (1, 2, 4)),
    ]


def test_lists_of_several_files_are_one_list(tmp_path):
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("identity\tPerson_00\n")
    found = edits.read_all_exclusions([tmp_path / "a.tsv", tmp_path / "b.tsv"])
    assert found == {"identity": {"Person_00"}, "image": set()}


def test_large_labels_and_bad_lines_of_im2rec(tmp_path):
    path = tmp_path / "a.lst"
    path.write_text("0\t9007199254740992\ta.jpg\n1\t9007199254740993\tb.jpg\n")
    assert image_list.open_list(path).num_classes == 2
    path.write_text("0\t1\tp/a.jpg\n1\t-1\tp/b.jpg\n")
    with pytest.raises(ValueError, match="line 2: found"):
        image_list.open_list(path)
    path.write_bytes("\ufeff0\t1\tp/a.jpg\n".encode())
    assert image_list.open_list(path).num_classes == 1


def test_files_that_are_not_what_they_seem(tmp_path):
    folder = toy.write_folder(tmp_path / "people", people=2, images=2)
    os.mkfifo(folder / "Person_00" / "pipe.jpg")
    (folder / "Person_00" / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "Person_01" / "Person_01_0001.png").write_bytes(b"%!PS-Adobe-3.0 EPSF")
    faces = sources.open_path(str(folder))
    reader = pipeline.BatchReader(faces, image_size=32, threads=1)
    weights = reader(range(len(faces)))["weight"]
    assert (len(faces), int(weights.sum())) == (6, 4)  # no pipe; link and EPS are bad
    bomb = toy.jpeg(toy.person_image(0, 0))
    at = bomb.index(b"\xff\xc0") + 5
    bomb = bomb[:at] + struct.pack(">HH", 65500, 65500) + bomb[at + 4 :]
    for padding in (0, 1 << 24):  # however much of it there is
        with pytest.raises(BadRecordError, match="an image of 65500 x 65500 pixels"):
            decode.decode_image(bomb + bytes(padding), 32)
    # What only looks at sizes opens no other formats either, and believes no header.
    assert decode.size_of(toy.jpeg(toy.person_image(0, 0))) == (32, 32)
    for data in (bomb, b"%!PS-Adobe-3.0 EPSF", b""):
        with pytest.raises(BadRecordError):
            decode.check_size(data, 32)


def test_tars_with_links_and_tars_that_are_cut_off(tmp_path):
    folder = toy.write_folder(tmp_path / "people", people=2, images=2)
    os.link(
        folder / "Person_00" / "Person_00_0001.jpg",
        folder / "Person_01" / "Person_01_0009.jpg",
    )
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, arcname="people")
    faces = sources.open_path(str(tmp_path / "a.tar"))
    reader = pipeline.BatchReader(faces, image_size=32, threads=1)
    assert reader(range(len(faces)))["weight"].tolist() == [1] * 5
    whole = (tmp_path / "a.tar").read_bytes()
    for data in (whole.rstrip(b"\0"), whole + bytes(20480)):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(ValueError, match="not a readable tar"):
            sources.open_path(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(ValueError, match="or several were joined"):
        sources.open_path(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for root in ("one", "two"):
            archive.add(folder / "Person_00", arcname=f"{root}/Person_00")
    with pytest.raises(ValueError, match=r"one/.* and two/.*_000\d.jpg have one"):
        sources.open_path(str(tmp_path / "b.tar"))


@pytest.mark.parametrize("blocks", [1, 2, 20, 64, 126, 512, 2048])
def test_tars_of_any_blocking(tmp_path, blocks):
    folder = toy.write_folder(tmp_path / "people", people=2, images=2)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname="people")
    data = path.read_bytes().rstrip(b"\0")
    end = -(-len(data) // 512) * 512 + 1024
    path.write_bytes(data.ljust(-(-end // (512 * blocks)) * 512 * blocks, b"\0"))
    assert len(sources.open_path(str(path))) == 4


def test_of_two_members_with_one_path_the_last_counts(tmp_path):
    """As `tar -u` leaves them."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number in (0, 1):
            data = toy.jpeg(toy.person_image(number, 0))
            info = tarfile.TarInfo("P/1.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (record,) = sources.open_path(str(path)).read([0])
    assert record["image"] == toy.jpeg(toy.person_image(1, 0))


def test_a_tar_whose_end_was_never_written_is_no_smaller_set(tmp_path):
    """A file that was made large first and then filled: its end is zeros."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for k in range(6):
            info = tarfile.TarInfo(f"P{k % 2}/{k}.bmp")
            info.size = 11_000  # more than a record of the tar
            archive.addfile(info, io.BytesIO(rng.bytes(info.size)))
    whole = path.read_bytes()
    for at in range(0, len(whole), 509):
        path.write_bytes(whole[:at] + bytes(len(whole) - at))
        refusal = toy.refusal(lambda: sources.open_path(str(path)))
        if refusal:
            assert "not a readable tar" in refusal
        else:  # only inside the last image
            assert len(sources.open_path(str(path))) == 6


def test_numbers_sort_as_numbers_and_blanks_in_names_survive(tmp_path):
    path = tmp_path / "a.lst"
    path.write_text("0\t10\ta b.jpg\n1\t9\tc.jpg\n")
    assert image_list.open_list(path).identities == ("9", "10")
    assert image_list.parse_list(path)[0].path == "a b.jpg"
    huge = "9" * 5000
    path.write_text(f"a.jpg {huge}\nb.jpg 012\nc.jpg 10\nd.jpg Ann\n")
    assert image_list.open_list(path).identities == ("10", "012", huge, "Ann")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p/a.jpg\t3\n", ("p/a.jpg", "3")),
        ("p/a.jpg  3\n", ("p/a.jpg", "3")),
        ("p q/a b.jpg 3\n", ("p q/a b.jpg", "3")),
        ("p q/a b.jpg 0  3 0\n", ("p q/a b.jpg", "3")),
        ("p q/a b.jpg\n", ("p q/a b.jpg", "p q")),
    ],
)
def test_columns_of_lists_that_hands_wrote(tmp_path, text, expected):
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert image_list.parse_list(path) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line found"),
        ("a.jpg 1\nb.jpg 1 2\n", "line 2: found 'b.jpg 1 2', which fits none"),
        ("a.jpg\n", "line 1: found 'a.jpg', which fits none"),
        ("a.tga 1\n", "line 1: found 'a.tga 1'"),
    ],
)
def test_bad_lists_name_the_line(tmp_path, text, message):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.txt") as error:
        image_list.open_list(path)
    assert message in str(error.value)


# --- .bin -----------------------------------------------------------------------------


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
            tracemalloc.start()
            with pytest.raises(ValueError, match=rf"x\.bin.*{message}"):
                bin_set.read_bin(path)
            assert tracemalloc.get_traced_memory()[1] < 1 << 26
            tracemalloc.stop()
    assert safe_pickle._encode.__defaults__ == before


@pytest.mark.parametrize("kind", ["list", "folder", "tar", "bin", "loose"])
def test_other_images_under_the_same_names_are_another_set(tmp_path, kind):
    """Equal names, and equal lengths: bitmaps have no others."""

    def made(place, seed):
        root = tmp_path / place / "faces"
        for person in ("A", "B"):
            (root / person).mkdir(parents=True)
            for number in (1, 2):
                noise = np.random.default_rng([seed, number]).integers(
                    0, 256, (8, 8, 3)
                )
                image = Image.fromarray(noise.astype(np.uint8))
                image.save(root / person / f"{number}.bmp")
        files = sorted(root.glob("*/*.bmp"))
        if kind == "list":
            lines = [f"{f.relative_to(root)} {f.parent.name}\n" for f in files]
            (root / "list.txt").write_text("".join(lines))
            return sources.open_path(str(root / "list.txt"))
        if kind == "tar":
            with tarfile.open(root.with_suffix(".tar"), "w") as archive:
                archive.add(root, arcname="faces")
            return sources.open_path(str(root.with_suffix(".tar")))
        if kind == "bin":
            images = [file.read_bytes() for file in files]
            path = root.with_suffix(".bin")
            path.write_bytes(pickle.dumps((images, [True, False])))
            return bin_set.open_bin(path).faces
        if kind == "loose":
            return loose_images.open_any(str(root))
        return sources.open_path(str(root))

    first, same, other = (made(f"{k}", seed) for k, seed in enumerate((1, 1, 2)))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_links_to_folders_are_followed_once(tmp_path):
    toy.write_folder(tmp_path / "elsewhere", people=1, images=3)
    root = toy.write_folder(tmp_path / "faces", people=1, images=2)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    found = loose_images.open_any(str(root)).source.ids
    assert len(found) == 5
    assert "Person_00/Person_00_0001" in found


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
    tracemalloc.start()
    try:
        safe_pickle.load_pickle(mutate(data, mutations))
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


# --- choices about a training set -----------------------------------------------------


@pytest.fixture
def faces(tmp_path):
    return insightface.open_insightface(
        record_files.write_insightface(tmp_path / "f", people=6, images=10, size=16)
    )


@settings(max_examples=200, deadline=None)
@example([["\ud800", "a\\ud800", "\udfff\t"]])
@given(st.lists(st.lists(st.text(st.characters()), min_size=1, max_size=3), max_size=5))
def test_any_name_survives_a_list(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.tsv"
        name_lists.write_names(path, rows)
        assert name_lists.read_names(path) == rows
    assert name_lists.escape("Ana_Guevara/Ana Guevara.jpg") == (
        "Ana_Guevara/Ana Guevara.jpg"
    )


def test_names_that_break_lists_and_utf8(tmp_path):
    source = toy.write_folder(tmp_path / "faces", people=2, images=1)
    image = (source / "Person_00" / "Person_00_0001.jpg").read_bytes()
    odd = ["a\tb.jpg", "a\nb.jpg", "caf\udce9.jpg"]
    for name in odd:
        (source / "Person_01" / name).write_bytes(image)
    (source / "Person_01" / "bad\t.jpg").write_bytes(b"")
    faces = sources.open_path(str(source))
    folder = tmp_path / "out"
    options = preparing.Options(verify=True)
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    copy = sources.open_path(str(folder))
    assert (len(copy), copy.num_classes) == (5, 2)
    listed = edits.read_exclusions(folder / "duplicates.tsv")["image"]
    assert "Person_01/a\tb" in listed
    assert "Person_01/a\nb" in listed
    kept = edits.exclude(faces, {"image": listed})
    assert len(kept) < len(faces)


def test_exclusions(faces, tmp_path):
    path = tmp_path / "leave_out.tsv"
    path.write_text("# seen in the test set\nidentity\t2\toverlap\nimage\t1\tblurred\n")
    kept = edits.exclude(faces, edits.read_exclusions(path))
    assert (len(kept), kept.num_classes) == (49, 5)
    assert kept.identities == ("0", "1", "3", "4", "5")
    assert kept.read([0])[0]["id"] == "2"
    assert kept.fingerprint != faces.fingerprint
    for text, message in (
        ("identity\tnobody\n", "no identity 'nobody' to exclude"),
        ("image\t999\n", "no image '999' to exclude"),
        ("person\t1\n", "line 1: found 'person"),
        ("".join(f"identity\t{k}\n" for k in range(6)), "nothing is left"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            edits.exclude(faces, edits.read_exclusions(path))


def test_exclusions_leave_the_test_people_alone(tmp_path):
    folder = toy.write_folder(tmp_path / "people")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    (tmp_path / "out.tsv").write_text("identity\tPerson_01\nidentity\tPerson_09\n")
    options = dict(path=str(folder), pairs_path=str(pairs), fold=1, dev_fraction=0.0)
    whole, _ = splits.train_and_test("faces", **options)
    train, (test,) = splits.train_and_test(
        "faces", exclude=str(tmp_path / "out.tsv"), **options
    )
    assert set(whole.identities) - set(train.identities) == {"Person_09"}
    rows = np.union1d(test.pairs.first, test.pairs.second)
    assert (test.faces.label_of_row()[rows] >= 0).all()


def test_at_most_keeps_k_of_each(faces):
    kept = edits.at_most(faces, 4, seed=0)
    assert np.bincount(kept.labels).tolist() == [4] * 6
    assert edits.at_most(faces, 0, seed=0) is faces
    again, other = (edits.at_most(faces, 4, seed=s).rows.tolist() for s in (0, 1))
    assert kept.rows.tolist() == again != other


def test_at_least_leaves_out_people_with_few_images(tmp_path):
    folder = toy.write_folder(tmp_path / "people", people=4, images=3)
    (folder / "Person_01" / "Person_01_0001.jpg").unlink()
    faces = sources.open_path(str(folder))
    kept = edits.at_least(faces, 3)
    assert kept.identities == ("Person_00", "Person_02", "Person_03")
    assert kept.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert kept.read([3])[0]["id"] == "Person_02/Person_02_0001"
    assert edits.at_least(faces, 1) is faces
    with pytest.raises(ValueError, match=r"data\.min_images is 4, but nobody"):
        edits.at_least(faces, 4)


def test_label_noise_and_split_identities_change_labels_only(faces):
    noisy = edits.add_label_noise(faces, 0.5, seed=0)
    changed = (noisy.labels != faces.labels).mean()
    assert 0.2 < changed < 0.6
    reader = pipeline.BatchReader(noisy, image_size=16, threads=1)
    assert reader(range(60))["weight"].all()  # noise on purpose is no bad record
    cut = edits.split_identities(faces, 1.0, seed=0)
    assert cut.num_classes == 12
    assert (np.bincount(cut.labels) > 0).all()
    for person in range(6):
        halves = set(cut.labels[faces.labels == person])
        assert halves == {person, 6 + person}
    assert edits.split_identities(faces, 0.0, seed=0) is faces


@pytest.mark.parametrize("sampler", ["sqrt", "identity"])
def test_samplers_draw_people_by_a_power_of_their_images(sampler):
    labels = np.repeat([0, 1, 2], [4, 16, 64])
    power = orders.SAMPLERS[sampler]
    indices = orders.batch_indices(labels, batch_size=21, seed=0, sampler=sampler)
    drawn = np.concatenate([indices[k] for k in range(400)])  # 100 epochs
    share = np.bincount(labels[drawn]) / len(drawn)
    expected = np.array([4.0, 16, 64]) ** power
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.01)
    counts = np.bincount(drawn, minlength=84)
    ideal = 100 * edits.sampling_weights(labels, power)
    assert (np.abs(counts - ideal) < 40).all()
    again = orders.batch_indices(labels, batch_size=21, seed=0, sampler=sampler)
    np.testing.assert_array_equal(again[399], indices[399])
    np.testing.assert_array_equal(again[0], indices[0])


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
