"""Pairs, builders and the pipeline, on real files."""

import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
import toy
from hypothesis import given
from hypothesis import strategies as st
from mutations import at_most

from hyperface_jax.data import (
    datasets,
    orders,
    pairs,
    pipeline,
    prepared,
    splits,
    synth_faces,
)
from hyperface_jax.data.decode import decode_image
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.synth import conditions

# --- pairs ----------------------------------------------------------------------------

ROWS = {f"P{p}/P{p}_{i:04d}": 4 * p + i - 1 for p in range(4) for i in range(1, 5)}
GOOD = "2\t1\nP0\t1\t2\nP0\t1\tP1\t2\nP2\t1\t3\nP2\t4\tP3\t1\n"


def test_lfw_pairs(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(GOOD)
    found = pairs.read_lfw_pairs(path, ROWS)
    np.testing.assert_array_equal(found.first, [0, 0, 8, 11])
    np.testing.assert_array_equal(found.second, [1, 5, 10, 12])
    np.testing.assert_array_equal(found.is_genuine, [True, False, True, False])
    np.testing.assert_array_equal(found.fold, [0, 0, 1, 1])
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert len(pairs.read_lfw_pairs(path, ROWS)) == 4
    path.write_bytes(b"2\t1\n\xff")
    with pytest.raises(ValueError, match=r"pairs file .*pairs.txt: not UTF-8"):
        pairs.read_lfw_pairs(path, ROWS)
    again = pairs.Pairs.from_json(found.to_json())
    np.testing.assert_array_equal(again.is_genuine, found.is_genuine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: found '', expected 'folds per_fold'"),
        ("ten\t1\n", "line 1: found 'ten"),
        (GOOD.replace("2\t1\n", "3\t1\n", 1), "4 pairs found, expected 2 x 3 folds"),
        (GOOD.replace("P2\t1\t3", "P2\t1\t9"), "line 4: no image P2/P2_0009"),
        (GOOD.replace("P2\t1\t3", "P2\t1\tx"), "line 4: image number is 'x'"),
        (GOOD.replace("P2\t1\t3", f"P2\t1\t{'9' * 5000}"), "line 4: image number is"),
        (GOOD.replace("2\t1\n", f"2\t{'9' * 5000}\n", 1), "line 1: found '2"),
        (GOOD.replace("P2\t1\t3", "P2\t1"), "line 4: 2 fields found"),
        (GOOD.replace("P0\t1\t2\n", "P0\t1\tP3\t2\n"), "line 2: expected genuine"),
        (GOOD.replace("P0\t1\tP1\t2", "P0\t1\tP0\t2"), "line 3: P0 twice, expected"),
        (GOOD.replace("P0\t1\t2", "P0\t1\t1"), "line 2: compares an image with itself"),
        (GOOD.replace("P2\t1\t3", "\n\nP2\t1\tx"), "line 6: image number is"),
    ],
)
def test_bad_pairs_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"pairs file .*pairs.txt") as error:
        pairs.read_lfw_pairs(path, ROWS)
    assert message in str(error.value)


def test_random_pairs_have_disjoint_people(rng):
    labels = np.repeat(np.arange(20), 5)
    found = pairs.random_pairs(labels, folds=4, per_fold=30, rng=rng)
    assert len(found) == 4 * 2 * 30
    same = labels[found.first] == labels[found.second]
    np.testing.assert_array_equal(same, found.is_genuine)
    people = [
        set(labels[found.first[found.fold == k]])
        | set(labels[found.second[found.fold == k]])
        for k in range(4)
    ]
    assert sum(map(len, people)) == len(set.union(*people))
    unique = {tuple(sorted(p)) for p in zip(found.first, found.second, strict=True)}
    assert len(unique) == len(found)


# --- builders -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def synth(tmp_path_factory):
    """A prepared `synth_faces/tiny`."""
    folder = tmp_path_factory.mktemp("tfds")
    return datasets.open_dataset("synth_faces", config="tiny", data_dir=str(folder))


def test_synth_faces_has_disjoint_people_and_ground_truth(synth):
    train, test = synth["train"], synth["test"]
    assert (len(train), train.num_classes) == (144, 24)
    assert (len(test), test.num_classes) == (60, 10)
    assert not set(train.identities) & set(test.identities)
    record = train.read([7])[0]
    assert record["id"] == "000001/000001_0001"
    assert decode_image(record["image"], 32).std() > 10
    same = test.labels[test.pairs.first] == test.labels[test.pairs.second]
    np.testing.assert_array_equal(same, test.pairs.is_genuine)
    np.testing.assert_array_equal(test.labels[test.gallery], np.arange(10))
    assert not set(test.gallery) & set(test.probes)


def test_synth_faces_is_deterministic(synth, tmp_path):
    root = tmp_path / "again"
    again = datasets.open_dataset("synth_faces", config="tiny", data_dir=str(root))
    first, second = synth["train"], again["train"]
    assert first.fingerprint == second.fingerprint
    for row in (0, 50, 143):
        assert first.read([row])[0]["image"] == second.read([row])[0]["image"]
    folder = next(root.glob("synth_faces/tiny/*"))
    record = tfds.builder_from_directory(str(folder)).as_data_source("train")[0]
    assert record["conditions"].dtype == np.float32
    assert record["image"].shape == (32, 32, 3)


def test_conditions_are_read_from_a_home_folder(tmp_path, monkeypatch):
    """What notebook 04 asks of a run with the default data directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    found = datasets.open_dataset("synth_faces", config="tiny")
    assert datasets.default_data_dir() == str(tmp_path / "tensorflow_datasets")
    for folder in (datasets.default_data_dir(), "~/tensorflow_datasets"):
        truth = synth_faces.read_conditions("tiny", folder, "test")
        assert truth.shape == (len(found["test"]), len(conditions.CONDITION_NAMES))


def test_prepared_data_may_be_in_a_bucket_and_is_written_elsewhere():
    where = ("ms1m", "", "gs://faces/tfds")
    assert str(datasets.folder_of(*where)).startswith("gs://faces/tfds/ms1m/default/")
    with pytest.raises(ValueError, match="a dataset is written to a local"):
        datasets.writable_folder_of(*where)


def as_tar(folder, path):
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname="lfw")
    return path


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", ["face_folder", "faces"])  # converted, or as it is
def test_a_folder_splits_by_fold(tmp_path, kind, name):
    source = toy.write_folder(tmp_path / "faces")
    where = source if kind == "folder" else as_tar(source, tmp_path / "faces.tar")
    pairs_path = toy.write_pairs(tmp_path / "pairs.txt")
    options = dict(
        path=str(where), pairs_path=str(pairs_path), data_dir=str(tmp_path / "tfds")
    )
    train, (test,) = splits.train_and_test(name, fold=2, dev_fraction=0.25, **options)
    tested = {f"Person_{k:02d}" for k in range(4, 8)}
    assert not tested & set(train.identities)
    assert train.num_classes == 6
    assert set(train.labels) == set(range(6))
    assert len(test.pairs) == 8
    dev_people = {
        test.faces.identities[test.faces.labels[r]] for r in test.dev_pairs.first
    }
    assert not dev_people & (tested | set(train.identities))
    # A record of a selection is the image of the person that its label names.
    record = train.read([9])[0]
    person = train.identities[train.labels[9]]
    assert record["id"].startswith(person)
    with pytest.raises(ValueError, match=r"data.fold is 4, expected 1 to 3"):
        splits.train_and_test(name, fold=4, **options)
    with pytest.raises(ValueError, match=r"0 of 12 people .* 12 are in tested pairs"):
        splits.train_and_test(name, **options)


@given(labels=st.lists(st.integers(0, 6), max_size=30), seed=st.integers(0, 99))
def test_pairs_by_number_are_those_of_a_list_of_all(labels, seed):
    """Lists of all pairs are 45 GB for what MS1M holds out."""
    labels = np.asarray(labels, int)
    a, b = np.triu_indices(len(labels), k=1)
    same = labels[a] == labels[b]
    every = pairs._EveryPair(labels)
    assert (every.genuine, every.impostors) == (same.sum(), (~same).sum())
    rng = np.random.default_rng(seed)
    for genuine in (True, False):
        numbers = rng.permutation((same == genuine).sum())
        found = every.take(numbers, genuine=genuine)
        np.testing.assert_array_equal(found[0], a[same == genuine][numbers])
        np.testing.assert_array_equal(found[1], b[same == genuine][numbers])


def test_a_threshold_of_very_many_people_fits_in_memory():
    labels = np.repeat(np.arange(20_000, dtype=np.int32), 5)
    faces = FaceSet(
        name="many",
        source=toy.NoImages(len(labels)),
        rows=np.arange(len(labels)),
        labels=labels,
        source_labels=labels,
        identities=tuple(map(str, range(20_000))),
        fingerprint="",
        pairs=pairs.random_pairs(
            labels[:60], folds=2, per_fold=5, rng=np.random.default_rng(0)
        ),
    )
    with at_most(megabytes=60):  # 50 000 images: lists of pairs are 20 GB
        train, test = splits.by_people_of_pairs(faces, fold=1, dev_fraction=0.5)
    dev = test.dev_pairs
    assert 9_980 < train.num_classes < 10_000
    held_out = set(map(int, labels[np.unique([dev.first, dev.second])]))
    assert not held_out & {int(name) for name in train.identities}
    assert (dev.is_genuine == (labels[dev.first] == labels[dev.second])).all()
    assert dev.is_genuine.sum() == (~dev.is_genuine).sum() == 3000


def test_forgotten_pairs_leave_no_trap(tmp_path):
    """The copy of a folder is of its images; pairs are read each time."""
    source = toy.write_folder(tmp_path / "faces")
    options = dict(path=str(source), data_dir=str(tmp_path / "tfds"))
    with pytest.raises(ValueError, match=r"data.fold is 1, expected data.pairs_path"):
        splits.train_and_test("face_folder", fold=1, **options)
    assert not (tmp_path / "tfds").exists()
    without = datasets.open_dataset("face_folder", config="x", **options)["train"]
    options["pairs_path"] = str(toy.write_pairs(tmp_path / "pairs.txt"))
    found = datasets.open_dataset("face_folder", config="x", **options)["train"]
    assert (without.pairs, len(found.pairs)) == (None, 24)
    assert without.fingerprint == found.fingerprint
    assert found.name == "face_folder/x/1.0.0"


def test_bad_folders(tmp_path):
    def prepare(path, **options):
        datasets.open_dataset(
            "face_folder",
            config="x",
            path=str(path),
            data_dir=str(tmp_path / "tfds"),
            **options,
        )

    with pytest.raises(ValueError, match="missing: not found, expected a folder"):
        prepare(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images found"):
        prepare(tmp_path / "empty")
    (tmp_path / "bad.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"bad.tar: not a readable tar"):
        prepare(tmp_path / "bad.tar")
    (tmp_path / "rotten" / "A").mkdir(parents=True)
    (tmp_path / "rotten" / "A" / "A_0001.jpg").write_bytes(b"\xff\xd8 oh no")
    with pytest.raises(ValueError, match="none of 1 images can be used"):
        prepare(tmp_path / "rotten")
    with pytest.raises(ValueError, match=r"data.name is 'lfw', expected one of"):
        datasets.open_dataset("lfw", config="")
    with pytest.raises(
        ValueError, match=r"data.config is 'huge', expected one of laptop"
    ):
        datasets.open_dataset("synth_faces", config="huge")
    assert not list((tmp_path / "tfds").glob("face_folder/x/1.0.0"))


def test_unreadable_images_are_left_out_and_a_changed_folder_is_noticed(
    tmp_path, caplog
):
    source = toy.write_folder(tmp_path / "faces", people=3, images=2)
    (source / "Person_01" / "Person_01_0002.jpg").write_bytes(b"\xff\xd8 oh no")
    (source / "Lost").mkdir()
    (source / "Lost" / "Lost_0001.jpg").write_bytes(b"")
    options = dict(config="x", path=str(source), data_dir=str(tmp_path / "tfds"))
    with caplog.at_level("WARNING"):
        faces = datasets.open_dataset("face_folder", **options)["train"]
    assert (len(faces), faces.num_classes) == (5, 3)
    assert "1 of 4 identities have no image, left out (the first: Lost)" in caplog.text
    folder = tmp_path / "tfds" / "face_folder" / "x" / "1.0.0"
    rejected = (folder / prepared.REJECTED).read_text().splitlines()
    assert rejected[0] == "Lost/Lost_0001\t0 bytes"
    assert rejected[1].startswith("Person_01/Person_01_0002\tcorrupt JPEG")
    assert "- Identities: 3\n- Images: 5 " in (folder / prepared.CARD).read_text()
    (source / "Person_00" / "Person_00_0001.jpg").unlink()
    with pytest.raises(ValueError, match="its files differ from those in the"):
        datasets.open_dataset("face_folder", **options)


# --- pipeline -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(synth):
    return synth["train"]


def batches(faces, threads=2, **options):
    reader = pipeline.BatchReader(faces, image_size=32, threads=threads)
    order = dict(seed=options.pop("seed", 3))
    for key in ("process_index", "process_count"):
        if key in options:
            order[key] = options.pop(key)
    indices = orders.batch_indices(faces.labels, batch_size=32, **order)
    settings = dict(start_step=0, stop_step=12) | options
    return list(pipeline.train_batches(reader, indices, **settings))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for key in ("image", "label", "weight"):
            np.testing.assert_array_equal(x[key], y[key])


def test_batches_depend_on_seed_and_step_only(faces):
    whole = batches(faces)
    assert_same(whole, batches(faces, threads=1, prefetch=1))
    assert_same(whole[5:], batches(faces, start_step=5))
    other = batches(faces, seed=4)
    assert any(
        (a["label"] != b["label"]).any() for a, b in zip(whole, other, strict=True)
    )


def test_hosts_read_their_rows_of_the_same_global_batch(faces):
    whole = batches(faces)
    halves = [batches(faces, process_index=p, process_count=2) for p in (0, 1)]
    joined = [
        {key: np.concatenate([a[key], b[key]]) for key in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(whole, joined)
    with pytest.raises(
        ValueError, match="batch_size is 32, expected a multiple of the 3"
    ):
        batches(faces, process_count=3)


@pytest.mark.parametrize("sampler", orders.SAMPLERS)
def test_a_host_computes_its_own_rows_only(sampler):
    """Those of a batch of 16 384 took half a second a step on each of 64 hosts."""
    asked = []

    class Order:
        def __len__(self):
            return 1 << 40

        def __getitem__(self, place):
            asked.append(place)
            return place % 100

    rows = orders.HostRows(Order(), 16_384, range(256, 512))
    np.testing.assert_array_equal(rows[3] % 100, np.arange(49_408, 49_664) % 100)
    assert asked == list(range(3 * 16_384 + 256, 3 * 16_384 + 512))
    labels = np.repeat(np.arange(30), 5)
    order = dict(batch_size=24, seed=1, sampler=sampler)
    whole = orders.batch_indices(labels, **order)
    parts = [
        orders.batch_indices(labels, **order, process_index=k, process_count=4)
        for k in range(4)
    ]
    for step in (0, 6, 1000):
        np.testing.assert_array_equal(
            np.concatenate([part[step] for part in parts]), whole[step]
        )


def test_each_epoch_is_a_new_permutation(faces):
    indices = orders.batch_indices(np.zeros(144), batch_size=48, seed=0)
    epochs = [np.concatenate([indices[3 * e + k] for k in range(3)]) for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(144))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_a_bad_record_keeps_its_place_with_weight_zero(faces, caplog):
    class OneBad:
        def __len__(self):
            return len(faces.source)

        def __getitems__(self, rows):
            records = [dict(r) for r in faces.source.__getitems__(rows)]
            for row, record in zip(rows, records, strict=True):
                if row == 17:
                    record["image"] = record["image"][:100]
                if row == 20:
                    record["label"] = 99
            return records

    import dataclasses

    broken = dataclasses.replace(faces, source=OneBad())
    reader = pipeline.BatchReader(broken, image_size=32, threads=2)
    with caplog.at_level("WARNING"):
        first, second = reader([16, 17, 18]), reader([17])
    good = pipeline.BatchReader(faces, image_size=32, threads=2)([16, 17, 18])
    np.testing.assert_array_equal(first["weight"], [1, 0, 1])
    np.testing.assert_array_equal(first["label"], good["label"])
    np.testing.assert_array_equal(first["image"][[0, 2]], good["image"][[0, 2]])
    assert second["weight"] == [0]
    assert len(caplog.records) == 1
    assert "record 17 (000002/000002_0005): corrupt JPEG" in caplog.text
    assert list(reader.bad_records) == [17]
    assert reader([20])["weight"] == [0]
    assert reader.bad_records[20] == "label is 99, expected 3"
