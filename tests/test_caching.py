"""data.cache: copies on disk and in memory, and orders that no host count changes."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bucket
import numpy as np
import pytest
import record_files
import toy

from hyperface_jax.data import caching, datasets, insightface, orders, pipeline, sources
from hyperface_jax.data.records import UnreadableFileError


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """150 people x 10 in RecordIO: 1 500 images of 16 pixels."""
    folder = tmp_path_factory.mktemp("rec")
    record_files.write_insightface(folder, people=150, images=10, size=16)
    return insightface.open_insightface(folder)


# --- order ----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch"), [(1500, 16), (1500, 48), (5000, 2048)])
def test_lanes_are_whole_epochs_of_their_own_part(count, batch):
    lanes = orders.LaneBatches(count, batch, seed=3)
    steps = 3 * (count // batch + 2)
    drawn = np.stack([lanes[step] for step in range(steps)])
    assert drawn.shape == (steps, batch)
    rows = batch // lanes.lanes
    for lane in range(0, lanes.lanes, 7):
        mine = drawn[:, lane * rows : (lane + 1) * rows].ravel()
        size = lanes._edges[lane + 1] - lanes._edges[lane]
        for epoch in range(2):
            part = mine[epoch * size : (epoch + 1) * size]
            expected = np.arange(lanes._edges[lane], lanes._edges[lane + 1])
            np.testing.assert_array_equal(np.sort(part), expected)
    times = np.bincount(drawn.ravel(), minlength=count)
    assert times.min() >= 2
    assert (drawn[0] != orders.LaneBatches(count, batch, seed=4)[0]).any()
    again = orders.LaneBatches(count, batch, seed=3)
    np.testing.assert_array_equal(again[steps - 1], drawn[-1])  # no state


@pytest.mark.parametrize("hosts", [1, 2, 4, 16])
def test_a_host_needs_its_part_only_and_the_order_is_that_of_one_host(hosts):
    whole = orders.LaneBatches(1500, 32, seed=0)
    each = [
        orders.LaneBatches(1500, 32, seed=0, process_index=k, process_count=hosts)
        for k in range(hosts)
    ]
    parts = [lanes.examples_of_host() for lanes in each]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(1500))
    for step in (0, 7, 100):
        rows = [lanes[step] for lanes in each]
        np.testing.assert_array_equal(np.concatenate(rows), whole[step])
        for k in range(hosts):
            assert set(rows[k]) <= set(parts[k].tolist())


def test_hosts_that_do_not_divide_and_too_few_images():
    with pytest.raises(ValueError, match="3 hosts do not divide the 32 lanes"):
        orders.LaneBatches(1500, 32, seed=0, process_count=3)
    with pytest.raises(ValueError, match="20 images for 32 lanes of a batch of 32"):
        orders.LaneBatches(20, 32, seed=0)


# --- memory ---------------------------------------------------------------------------


class Counting:
    """A source that remembers what was read from it, in order."""

    def __init__(self, source):
        self.source, self.rows = source, []

    def __len__(self):
        return len(self.source)

    def __getitems__(self, rows):
        self.rows += list(rows)
        return self.source.__getitems__(rows)


@pytest.mark.parametrize("hosts", [1, 2])
def test_ram_reads_once_in_order_and_gives_the_same_batches(faces, hosts):
    whole = pipeline.BatchReader(faces, image_size=16, threads=2)
    for host in range(hosts):
        counting = Counting(faces.source)
        place = dict(process_index=host, process_count=hosts)
        indices = orders.batch_indices(
            faces.labels, batch_size=16, seed=1, by_lanes=True, **place
        )
        lanes = orders.LaneBatches(len(faces), 16, seed=1, **place)
        rows = faces.rows[lanes.examples_of_host()]
        cached = dataclasses.replace(
            faces, source=caching.RamSource(counting, np.sort(rows))
        )
        assert counting.rows == rows.tolist()  # its part, sequentially, once
        reader = pipeline.BatchReader(cached, image_size=16, threads=2)
        options = dict(start_step=5, stop_step=40)
        mine = pipeline.train_batches(reader, indices, **options)
        expected = pipeline.train_batches(whole, indices, **options)
        for a, b in zip(mine, expected, strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
        assert len(counting.rows) == len(rows)


def test_what_could_not_be_read_is_asked_for_again(faces):
    """A mount that stalls once must not cost an image in every epoch."""

    class Stalling(Counting):
        def __getitems__(self, rows):
            found = list(super().__getitems__(rows))
            return [
                UnreadableFileError("stalled") if row == 7 and stalls else record
                for row, record in zip(rows, found, strict=True)
            ]

    stalls, source = True, Stalling(faces.source)
    cached = caching.RamSource(source, np.arange(20))
    assert isinstance(cached.__getitems__([6, 7])[1], UnreadableFileError)
    stalls = False
    assert cached.__getitems__([6, 7])[1]["id"] == faces.read([7])[0]["id"]
    before = len(source.rows)
    assert cached.__getitems__([7])[0]["id"] == faces.read([7])[0]["id"]
    assert len(source.rows) == before  # it is kept now


def test_a_set_beyond_memory_is_refused_before_it_is_read(faces, monkeypatch):
    monkeypatch.setattr(caching, "available_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"data.cache=ram: about 0.0 GB for 1500 im"):
        caching.RamSource(faces.source, np.arange(1500))


# --- disk -----------------------------------------------------------------------------


def test_a_copy_on_disk_is_read_instead(tmp_path):
    source = record_files.write_insightface(tmp_path / "remote")
    options = dict(config="", path=str(source), copy_to=str(tmp_path / "cache"))
    copied = datasets.open_dataset("ms1m", **options)["train"]
    assert copied.fingerprint == sources.open_path(str(source)).fingerprint
    (source / "train.rec").rename(source / "gone")
    assert copied.read([3])[0]["id"] == "4"
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_copies_go_on_and_notice_other_contents(tmp_path, monkeypatch):
    source = toy.write_folder(tmp_path / "faces", people=2, images=2)
    cache = str(tmp_path / "cache")
    first = caching.copy_to_disk(str(source), cache)
    assert sources.open_path(first).num_classes == 2
    assert caching.copy_to_disk(str(source), cache) == first
    (Path(first) / caching.COMPLETE).unlink()
    full = type("Usage", (), {"free": 10})
    with monkeypatch.context() as m:  # what is there needs no space
        m.setattr(caching.shutil, "disk_usage", lambda _: full)
        assert caching.copy_to_disk(str(source), cache) == first
    (source / "Person_00" / "new.jpg").write_bytes(b"123")
    assert caching.copy_to_disk(str(source), cache) != first
    single = caching.copy_to_disk(str(source / "Person_00" / "new.jpg"), cache)
    assert Path(single).read_bytes() == b"123"
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: full)
    (source / "Person_00" / "more.jpg").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"data.cache=disk: .* but 0.0 GB are free"):
        caching.copy_to_disk(str(source), cache)
    images = tmp_path / "list.txt"
    images.write_text("Person_00/new.jpg\t0\n")
    with pytest.raises(ValueError, match=r"list.txt: a list of images, expected a fol"):
        caching.copy_to_disk(str(images), cache)
    with pytest.raises(ValueError, match="not found, expected something to copy"):
        caching.copy_to_disk(str(tmp_path / "nothing"), cache)


def test_of_several_processes_one_copies(tmp_path, monkeypatch):
    source = toy.write_folder(tmp_path / "faces", people=3, images=2)
    copied, copy = [], caching._copy

    def slowly(*arguments):
        copied.append(arguments)
        time.sleep(0.2)
        copy(*arguments)

    monkeypatch.setattr(caching, "_copy", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda _: caching.copy_to_disk(str(source), str(tmp_path / "cache")),
            range(4),
        )
        (folder,) = set(found)
    assert len(copied) == 1
    assert len(list(Path(folder).rglob("*.jpg"))) == 6


def test_links_to_nowhere_and_to_a_parent_are_not_followed(tmp_path):
    source = toy.write_folder(tmp_path / "faces", people=2, images=2)
    (source / "gone.jpg").symlink_to(tmp_path / "nothing")
    (source / "Person_00" / "up").symlink_to(source, target_is_directory=True)
    (source / "also").symlink_to(source / "Person_01", target_is_directory=True)
    found = Path(caching.copy_to_disk(str(source), str(tmp_path / "cache")))
    names = sorted(str(path.relative_to(found)) for path in found.rglob("*.jpg"))
    assert len(names) == 6
    assert sum(name.startswith("also/") for name in names) == 2


# --- buckets --------------------------------------------------------------------------


def records(faces):
    return [
        (r["label"], r["id"], bytes(r["image"])) for r in faces.read(range(len(faces)))
    ]


def test_folders_and_lists_are_read_from_a_bucket(tmp_path):
    bucket.mount()
    local = toy.write_folder(tmp_path / "people", people=3, images=2)
    (local / "all.txt").write_text("Person_00/Person_00_0001.jpg a\n")
    remote = bucket.upload(local, "s3://bucket/people")
    assert records(sources.open_path(remote)) == records(sources.open_path(str(local)))
    listed = sources.open_path(f"{remote}/all.txt")
    assert records(listed) == [
        (0, "Person_00/Person_00_0001.jpg", records(sources.open_path(remote))[0][2])
    ]


def test_what_a_library_cannot_read_in_a_bucket_is_copied_first(tmp_path):
    bucket.mount()
    local = record_files.write_insightface(tmp_path / "rec")
    remote = bucket.upload(local, "s3://bucket/rec")
    with pytest.raises(ValueError, match=r"s3://bucket/rec/train.rec.*data.cache=disk"):
        sources.open_path(remote)
    found = datasets.open_dataset(
        "ms1m", config="", path=remote, copy_to=str(tmp_path / "cache")
    )["train"]
    assert records(found) == records(insightface.open_insightface(local))
