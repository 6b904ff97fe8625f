"""Folders, tars and lists of images, and several of them as one set."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import record_files
import toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hyperface_jax.data import (
    bin_set,
    decode,
    edits,
    image_list,
    image_names,
    loose_images,
    pipeline,
    sources,
)
from hyperface_jax.data.records import BadRecordError


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


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    toy.write_folder(tmp_path / "faces", people=3)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("Person_01"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="Person_01"):
        loose_images.open_any(str(tmp_path / "faces"))


def test_links_to_folders_are_followed_once(tmp_path):
    toy.write_folder(tmp_path / "elsewhere", people=1, images=3)
    root = toy.write_folder(tmp_path / "faces", people=1, images=2)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    found = loose_images.open_any(str(root)).source.ids
    assert len(found) == 5
    assert "Person_00/Person_00_0001" in found


NAMES = st.text("ab-. _0é", min_size=1, max_size=3)


@given(st.sets(st.tuples(NAMES, NAMES), max_size=20))
def test_persons_are_sorted_one_by_one_into_the_same_order(names):
    """One sort of 42 million keeps every other thread waiting for minutes."""
    assert image_names.by_person(names) == sorted(names)


def test_loose_images_come_in_the_order_of_their_paths(tmp_path):
    for name in ("a/b/1", "a-b/1", "a/b-c/1", "a b/2", "a/1", "A/1", "a.b/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = loose_images.open_any(str(tmp_path), []).source.ids
    paths = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    assert list(found) == [p.with_suffix("").as_posix() for p in paths]
