"""`python -m hyperface_jax.prepare`: what goes in comes out."""

import importlib.util
import json
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import record_files
import tensorflow_datasets as tfds
import toy
from preparations import opened, run, same_batches

from hyperface_jax import prepare
from hyperface_jax.data import (
    builders,
    dataset_card,
    datasets,
    edits,
    insightface,
    pipeline,
    prepared,
    preparing,
    shards,
    sources,
)
from hyperface_jax.data.records import BadRecordError, ids_of
from hyperface_jax.data.shard_source import ShardSource

SOURCES = {
    "recordio": lambda p: record_files.write_insightface(p),
    "array labels": lambda p: record_files.write_insightface(p, array_label=True),
    "folder": lambda p: toy.write_folder(p, people=5),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_examples_in_the_same_order_as_the_source(tmp_path, kind, workers):
    source = SOURCES[kind](tmp_path / "source")
    faces = sources.open_path(str(source))
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path / "out"))
    options = preparing.Options(images_per_shard=8, workers=workers)
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    copy = opened(tmp_path / "out")
    assert copy.fingerprint == faces.fingerprint  # a run may go on with the copy
    assert copy.identities == faces.identities
    same_batches(faces, copy)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(
        [f"faces-train.array_record-{k:05d}-of-00003" for k in range(3)]
        + ["card.md", "dataset_info.json", "duplicates.tsv", "features.json"]
        + ["identities.txt", "labels.npy", "metadata.json", "rejected.tsv"]
        + ["ids.txt"]
    )
    assert copy.source.ids == [r["id"] for r in copy.read(range(len(copy)))]
    part = copy.source.take(np.array([3, 9])).take(np.array([1]))
    assert part.__getitems__([0])[0]["id"] == faces.read([9])[0]["id"]


def test_real_files_of_another_writer_survive_conversion(shared, tmp_path):
    source = shared("data/recordio/insightface")
    run("--source", source, "--name", "ms1m", "--data_dir", tmp_path, "--verify")
    same_batches(insightface.open_insightface(source), opened(tmp_path, "ms1m"), 112)


def test_tfds_users_can_read_it(tmp_path):
    source = record_files.write_insightface(tmp_path / "source")
    run("--source", source, "--name", "ms1m", "--data_dir", tmp_path)
    data = tfds.builder("ms1m", config="default", data_dir=tmp_path).as_data_source()
    assert len(data["train"]) == 20
    record = data["train"][6]
    assert record["label"] == 1
    assert record["id"] == b"7"
    assert record["image"].shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"no path to prepare it from"):
        builders.Glint360k(
            config=builders.FacesConfig(name="x"), data_dir=tmp_path
        ).download_and_prepare()


def test_a_builder_of_tfds_prepares_it_too(tmp_path):
    source = record_files.write_insightface(tmp_path / "source")
    config = builders.FacesConfig(name="c", path=str(source), images_per_shard=8)
    builder = builders.Vggface2(
        config=config, data_dir=tmp_path, file_format="array_record"
    )
    builder.download_and_prepare()
    same_batches(sources.open_path(str(source)), prepared.open_split(builder, "train"))


def test_apache_beam_writes_the_same(tmp_path):
    pytest.importorskip("apache_beam")
    source = record_files.write_insightface(tmp_path / "source")
    run(
        *("--source", source, "--name", "glint360k", "--data_dir", tmp_path),
        *("--beam_runner", "DirectRunner", "--images_per_shard", 8),
    )
    copy = opened(tmp_path, "glint360k")
    same_batches(sources.open_path(str(source)), copy)


def break_images(folder):
    """Two bad images of person 1, all images of person 2, one duplicate each way."""
    (folder / "Person_01" / "Person_01_0002.jpg").write_bytes(b"")
    (folder / "Person_01" / "Person_01_0003.jpg").write_bytes(b"GIF?")
    for k in range(1, 5):
        (folder / "Person_02" / f"Person_02_{k:04d}.jpg").write_bytes(b"\xff\xd8 no")
    within = (folder / "Person_03" / "Person_03_0001.jpg").read_bytes()
    (folder / "Person_03" / "Person_03_0004.jpg").write_bytes(within)
    (folder / "Person_04" / "Person_04_0002.jpg").write_bytes(
        (folder / "Person_00" / "Person_00_0003.jpg").read_bytes()
    )
    return folder


def test_rejections_duplicates_and_card(tmp_path):
    source = break_images(toy.write_folder(tmp_path / "source", people=5))
    run(
        *("--source", source, "--data_dir", tmp_path, "--verify"),
        *("--images_per_shard", 3, "--license", "research only"),
    )
    faces = opened(tmp_path)
    assert (len(faces), faces.num_classes) == (14, 4)
    assert faces.identities == ("Person_00", "Person_01", "Person_03", "Person_04")
    reader = pipeline.BatchReader(faces, image_size=32, threads=1)
    assert reader(range(14))["weight"].all()
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    rejected = dict(
        line.split("\t") for line in (folder / "rejected.tsv").read_text().splitlines()
    )
    assert len(rejected) == 6
    assert rejected["Person_01/Person_01_0002"] == "0 bytes"
    listed = (folder / dataset_card.DUPLICATES).read_text().splitlines()
    assert listed == [
        "image\tPerson_00/Person_00_0003\tsame bytes under Person_00, Person_04",
        "image\tPerson_04/Person_04_0002\tsame bytes under Person_00, Person_04",
        "image\tPerson_03/Person_03_0004\tsame bytes as Person_03/Person_03_0001",
    ]
    card = (folder / "card.md").read_text()
    for line in (
        "- Licence: research only",
        "- Identities: 4",
        "- Rejected records: 6 ",
        "- Exact duplicates: 2 images in 2 groups, 1 of them across identities",
        "| 2–4 | 4 | 14 |",
        "| 32 x 32 | 14 |",
    ):
        assert line in card
    # What was found is a list that prepare takes.
    run(
        *("--source", source, "--data_dir", tmp_path, "--config", "clean"),
        *("--exclude", folder / dataset_card.DUPLICATES),
    )
    assert len(opened(tmp_path, config="clean")) == 11
    assert opened(tmp_path, config="clean").licence == ""
    assert faces.licence == "research only"  # goes into the card of a model
    # From a prepared set another one can be prepared.
    run("--source", folder, "--data_dir", tmp_path, "--config", "again")
    same_batches(faces, opened(tmp_path, config="again"))


def test_pairs_follow_their_images_through_rejections(tmp_path):
    source = toy.write_folder(tmp_path / "source")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    (source / "Person_00" / "Person_00_0003.jpg").write_bytes(b"")  # in no pair
    run("--source", source, "--data_dir", tmp_path, "--pairs", pairs)
    faces = opened(tmp_path)
    ids = [r["id"] for r in faces.source.__getitems__(faces.pairs.first.tolist())]
    assert ids[1] == "Person_01/Person_01_0001"
    (source / "Person_01" / "Person_01_0001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image .* it was rejected, 0 bytes"):
        run("--source", source, "--data_dir", tmp_path / "b", "--pairs", pairs)


def test_beam_says_what_it_leaves_out(tmp_path, caplog):
    pytest.importorskip("apache_beam")
    source = break_images(toy.write_folder(tmp_path / "source", people=5))
    images = len(sources.open_path(str(source)))
    beam = ("--data_dir", tmp_path, "--beam_runner", "DirectRunner")
    run("--source", source, *beam)
    assert f"6 of {images} images are left out" in caplog.text
    for path in source.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"none of {images} images can be used"):
        run("--source", source, "--config", "empty", *beam)
    assert not datasets.writable_folder_of("faces", "empty", str(tmp_path)).exists()


def test_beam_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    source = toy.write_folder(tmp_path / "source", people=2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs Apache Beam: pip install .*\[beam\]"):
        run("--source", source, "--data_dir", tmp_path, "--beam_runner", "DirectRunner")


def test_beam_refuses_what_it_would_ignore(tmp_path):
    source = toy.write_folder(tmp_path / "source", people=2)
    for option in ("--exclude=x.tsv", "--pairs=README.md", "--licence=MIT"):
        name = option.partition("=")[0]
        with pytest.raises(ValueError, match=f"{name} is .* with --beam_runner"):
            run(
                *("--source", source, "--data_dir", tmp_path),
                *("--beam_runner", "DirectRunner", option),
            )


def test_pairs_of_other_images_are_noticed_before_the_work(tmp_path):
    source = toy.write_folder(tmp_path / "source")
    pairs = tmp_path / "pairs.txt"
    pairs.write_text(toy.write_pairs(pairs).read_text().replace("Person_00", "Nobody"))
    with pytest.raises(ValueError, match="Nobody"):
        run("--source", source, "--data_dir", tmp_path / "b", "--pairs", pairs)
    assert not (tmp_path / "b").exists()


def test_a_prepared_set_without_its_facts_does_not_train_on_tested_people(tmp_path):
    source = toy.write_folder(tmp_path / "source")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    run(
        *("--source", source, "--data_dir", tmp_path, "--pairs", pairs),
        *("--licence", "© somebody"),
    )
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    card = folder / prepared.CARD
    card.write_bytes(card.read_text().encode("latin-1", "replace"))
    assert "somebody" in prepared.open_folder(folder).licence
    facts = json.loads((folder / "metadata.json").read_text())

    def fails(message):
        with pytest.raises(ValueError, match=message) as error:
            prepared.open_folder(folder)
        assert str(folder) in str(error.value)

    pairs = facts["splits"]["train"]["pairs"]
    for rows in ([99999], [-1], "x", None):
        facts["splits"]["train"]["pairs"] = pairs | {"first": rows}
        (folder / "metadata.json").write_text(json.dumps(facts))
        fails("metadata.json")
    facts["splits"]["train"]["pairs"] = pairs | {"first": [99999] * len(pairs["first"])}
    (folder / "metadata.json").write_text(json.dumps(facts))
    fails("has rows .* to 99999 for tests")
    (folder / "metadata.json").unlink()
    fails("no facts about its splits in metadata.json")
    np.save(folder / prepared.LABELS, np.zeros(48))
    (folder / "metadata.json").write_text(json.dumps(facts | {"splits": {"train": {}}}))
    fails("labels.npy: float64")


def test_a_prepared_set_prepared_again_keeps_its_tests(tmp_path):
    source = toy.write_folder(tmp_path / "source")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    run("--source", source, "--data_dir", tmp_path, "--pairs", pairs)
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    out = tmp_path / "out.tsv"
    out.write_text("image\tPerson_00/Person_00_0003\n")  # in no pair
    run(
        *("--source", folder, "--data_dir", tmp_path, "--config", "again"),
        *("--exclude", out),
    )

    def named(faces):
        each = (faces.pairs.first.tolist(), faces.pairs.second.tolist())
        return [[r["id"] for r in faces.source.__getitems__(rows)] for rows in each]

    first, again = opened(tmp_path), opened(tmp_path, config="again")
    assert len(again) == len(first) - 1
    assert named(again) == named(first)
    np.testing.assert_array_equal(again.pairs.fold, first.pairs.fold)
    out.write_text("image\tPerson_00/Person_00_0001\n")
    with pytest.raises(ValueError, match="1 of the images that its test pairs"):
        run(
            *("--source", folder, "--data_dir", tmp_path, "--config", "third"),
            *("--exclude", out),
        )


def test_more_shards_than_the_system_opens_at_first(tmp_path):
    faces = toy.write_folder(tmp_path / "source", people=40, images=2, size=16)
    run("--source", faces, "--data_dir", tmp_path, "--images_per_shard", 1)
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, limits[1]))
        opened_set = prepared.open_folder(folder)
        assert len(opened_set.read(range(80))) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    code = (
        "import resource, sys; "
        "from hyperface_jax.data import shard_source as s; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
        "s._allow_open_files(100)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "100 shards are to be open at once, the system allows 64" in done.stderr


def test_alignment_while_preparing(tmp_path):
    pytest.importorskip("cv2")
    from hyperface_jax.data import alignment

    source = toy.write_folder(tmp_path / "source", people=2, images=2, size=128)
    points = alignment.template(112, 112) + 8
    lines = [
        f"Person_0{p}/Person_0{p}_000{i}.jpg "
        + " ".join(f"{v}" for v in points.ravel())
        for p, i in ((0, 1), (0, 2), (1, 1))
    ]
    (tmp_path / "points.txt").write_text("\n".join(lines))
    run(
        *("--source", source, "--data_dir", tmp_path),
        *("--landmarks", tmp_path / "points.txt", "--size", "112x112"),
    )
    faces = opened(tmp_path)
    assert len(faces) == 3
    reader = pipeline.BatchReader(faces, image_size=112, threads=1)
    original = pipeline.BatchReader(
        sources.open_path(str(source)), image_size=128, threads=1
    )
    # The points are the template's, moved by 8 pixels: so is the picture.
    moved = original([0])["image"][0, 8:120, 8:120].astype(int)
    assert np.abs(reader([0])["image"][0].astype(int) - moved).mean() < 4
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    assert "no landmarks in" in (folder / "rejected.tsv").read_text()
    # The copy holds other images: embeddings of one are none of the other.
    lines.append(
        lines[0].replace("Person_00/Person_00_0001", "Person_01/Person_01_0002")
    )
    plain = sources.open_path(str(source)).fingerprint
    found = {plain}
    for name, size in (("a", "112x112"), ("b", "112x96")):
        (tmp_path / "points.txt").write_text("\n".join(lines))
        run(
            *("--source", source, "--data_dir", tmp_path, "--config", name),
            *("--landmarks", tmp_path / "points.txt", "--size", size),
        )
        found.add(opened(tmp_path, config=name).fingerprint)
    assert len(found) == 3


def test_a_shard_takes_its_own_landmarks_along(tmp_path, monkeypatch):
    """All of them in each of 64 processes were 1.2 TB for 42 million images."""
    pytest.importorskip("cv2")
    from hyperface_jax.data import alignment, face_crops

    source = toy.write_folder(tmp_path / "source", people=50, images=2, size=112)
    points = " ".join(f"{v}" for v in alignment.template(112, 112).ravel())
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.jpg"))
    lines = [f"{name} {points}" for name in names]
    (tmp_path / "points.txt").write_text("\n".join(lines))
    aligner = face_crops.Aligner(
        face_crops.ListedLandmarks(str(tmp_path / "points.txt")), (112, 112)
    )
    options = preparing.Options(images_per_shard=4, aligner=aligner)
    task = preparing.shard_task(sources.open_path(str(source)), 1, options)
    monkeypatch.setattr(face_crops, "_landmarks", None)  # no other process reads it
    task = pickle.loads(pickle.dumps(task))
    assert list(task.aligner.find.points) == names[4:8]
    assert len(list(shards.examples(task, []))) == 4
    assert repr(task.aligner) == repr(aligner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "{tmp}/nothing"], "nothing: not found"),
        (["--source", "{tmp}/a", "--landmarks", "x", "--detector", "yunet"], "both"),
        (["--source", "{tmp}/a", "--detector", "yunet"], "needs --detector_model"),
        (["--source", "{tmp}/a", "--images_per_shard", "0"], "must be positive"),
        (["--source", "{tmp}/a", "--config", "../../x"], "expected a plain name"),
        (["--source", "{tmp}/a", "--source", "{tmp}/a", "--pairs", "x"], "2 sources"),
        (["--source", "{tmp}/a", "--exclude", "{tmp}/no"], "not a readable text file"),
        (["--source", "{tmp}/a", "--landmarks", "x", "--size", "7"], "--size is '7'"),
    ],
)
def test_wrong_arguments_end_with_one_line(tmp_path, capsys, arguments, message):
    toy.write_folder(tmp_path / "a", people=2, images=1)
    filled = [a.format(tmp=tmp_path) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        prepare.main([*filled, "--data_dir", str(tmp_path)])
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "faces").exists()


def test_an_existing_dataset_is_not_overwritten(tmp_path):
    source = toy.write_folder(tmp_path / "a", people=2, images=2)
    run("--source", source, "--data_dir", tmp_path)
    with pytest.raises(ValueError, match=r"1\.0\.0 exists already; delete it"):
        run("--source", source, "--data_dir", tmp_path)


def test_a_damaged_shard_is_one_bad_record_and_not_the_end(tmp_path):
    source = record_files.write_insightface(tmp_path / "source")
    run("--source", source, "--data_dir", tmp_path)
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    (shard,) = folder.glob("*.array_record*")
    data = bytearray(shard.read_bytes())
    middle = data.index(toy.jpeg(toy.person_image(2, 1))) + 100
    data[middle : middle + 40] = b"\0" * 40
    shard.write_bytes(data)
    faces = opened(tmp_path)
    assert isinstance(faces.read([9])[0], BadRecordError)  # shards have checksums
    reader = pipeline.BatchReader(faces, image_size=32, threads=1)
    assert np.flatnonzero(reader(range(20))["weight"] == 0).tolist() == [9]


def test_a_dataset_that_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match=r"hyperface_jax.prepare .* --name ms1m"):
        opened(tmp_path, "ms1m", "v3")


def test_ids_of_a_prepared_set_are_known_without_its_images(tmp_path, monkeypatch):
    """Exclusion lists read every image of WebFace42M at each start, 300 GB."""
    source = toy.write_folder(tmp_path / "source", people=4, images=3)
    (source / "Person_00" / "a\tb\udcff.jpg").write_bytes(
        (source / "Person_00" / "Person_00_0001.jpg").read_bytes()
    )
    (source / "Person_01" / "Person_01_0002.jpg").write_bytes(b"none")
    run("--source", source, "--data_dir", tmp_path, "--images_per_shard", 4)
    faces = opened(tmp_path)
    ids = [r["id"] for r in faces.read(range(len(faces)))]
    assert len(ids) == 12
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    with monkeypatch.context() as m:
        m.setattr(ShardSource, "__getitems__", None)
        known = opened(tmp_path)
        assert list(ids_of(known.source)) == ids
        part = known.source.take(np.array([5, 11]))
        assert len(edits.exclude(known, {"image": {ids[3]}})) == 11
    assert [r["id"] for r in part.__getitems__([0, 1])] == [ids[5], ids[11]]
    near = known.source.take(np.arange(4, 7))  # one of its four is rejected
    assert near._source._files == known.source._files[1:2]
    assert near.ids == ids[4:7]
    assert near.take(np.array([2])).ids == ids[6:7]
    assert pickle.loads(pickle.dumps(near)).ids is None  # it takes no list along
    assert [r["id"] for r in near.__getitems__([2, 0])] == [ids[6], ids[4]]
    whole = (folder / "ids.txt").read_text()
    (folder / "ids.txt").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"ids.txt: \d+ ids for 12 records"):
        ids_of(opened(tmp_path).source)
    (folder / "ids.txt").unlink()
    assert list(ids_of(opened(tmp_path).source)) == ids


def test_exclusions_of_a_prepared_set_go_by_name(tmp_path):
    source = toy.write_folder(tmp_path / "source", people=4, images=2)
    run("--source", source, "--data_dir", tmp_path)
    kept = edits.exclude(opened(tmp_path), {"image": {"Person_02/Person_02_0001"}})
    assert len(kept) == 7
