"""Embeddings in folders and files: written in parts, read from anywhere."""

import functools

import numpy as np
import pytest
import toy
from mutations import at_most

from hyperface_jax.data import sources
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.evaluation import (
    embedded,
    embedding_files,
    parquet,
    stored,
)


def test_parts_are_written_once_in_any_order_by_several_processes(tmp_path, rng):
    views = rng.normal(size=(25, 2, 4)).astype(np.float32)
    ids = [f"image {k}" for k in range(25)]
    same = dict(views=2, dimension=4, images="a", weights="b", part_images=10)

    def work(part, parts):
        store = stored.EmbeddingStore.create(tmp_path / "e", ids, **same)
        written = []
        for number, rows in store.missing(part, parts):
            bad = {12: "0 bytes"} if number == 1 else {}
            store.write(number, rows, views[rows.start : rows.stop], bad)
            written.append(number)
        return store, written

    store, first = work(1, 2)
    assert first == [1]
    with pytest.raises(ValueError, match="2 parts are not computed yet"):
        store.read()
    assert work(0, 2)[1] == [0, 2]
    assert work(0, 1)[1] == []
    found = embedding_files.open_embeddings(tmp_path / "e")
    np.testing.assert_array_equal(found.views, views)
    assert found.ids == tuple(ids)
    assert found.unreadable == {12: "0 bytes"}
    with pytest.raises(ValueError, match="holds embeddings with other weights; give"):
        stored.EmbeddingStore.create(tmp_path / "e", ids, **(same | {"weights": "c"}))


def test_embeddings_of_others(tmp_path, rng):
    array = rng.normal(size=(6, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    assert embedding_files.open_embeddings(tmp_path / "a.npy").views.shape == (6, 1, 4)
    assert embedding_files.open_embeddings(tmp_path / "a.npy").ids is None
    (tmp_path / "a.txt").write_text("".join(f"{k}\n" for k in "abcdef"))
    assert embedding_files.open_embeddings(tmp_path / "a.npy").ids == tuple("abcdef")
    np.savez(tmp_path / "b.npz", embeddings=array, ids=np.array(list("abcdef")))
    assert embedding_files.open_embeddings(tmp_path / "b.npz").ids == tuple("abcdef")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"no"), "not a .npy or .npz"),
        (lambda p: np.save(p, np.zeros((2, 2), int)), "expected floats"),
        (lambda p: np.save(p, np.zeros(3)), "expected floats"),
        (lambda p: p.mkdir(), "no embeddings in it"),
        (lambda p: np.save(p, np.array([{}], object)), "not a .npy or .npz"),
        (lambda p: np.save(p, np.zeros((4, 0))), "expected 1 or 2 views of 1 number"),
        (lambda p: np.save(p, np.zeros((4, 3, 2))), "expected 1 or 2 views"),
    ],
)
def test_files_that_are_no_embeddings(tmp_path, write, message):
    path = tmp_path / "x.npy"
    write(path)
    with pytest.raises(ValueError, match=r"x\.npy") as error:
        embedding_files.open_embeddings(path)
    assert message in str(error.value)


def test_two_processes_may_begin_at_once(tmp_path, monkeypatch):
    same = dict(views=1, dimension=4, images="a", weights="b", part_images=2)
    ids = [str(k) for k in range(4)]
    rename = stored.Path.rename

    def late(self, target):
        monkeypatch.setattr(stored.Path, "rename", rename)
        other = stored.EmbeddingStore.create(target, ids, **same)
        other.write(0, range(2), np.ones((2, 1, 4)), {})
        return rename(self, target)

    monkeypatch.setattr(stored.Path, "rename", late)
    store = stored.EmbeddingStore.create(tmp_path / "e", ids, **same)
    store.write(1, range(2, 4), np.ones((2, 1, 4)), {})
    assert (store.read().views == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("meta.json", "{}"),
        ("meta.json", "[]"),
        ("embeddings.npy", ""),
        ("done/00000.json", "[1]"),
        ("done/00000.json", '{"99": "x"'),
    ],
)
def test_damaged_stores_are_one_line(tmp_path, file, text):
    folder = tmp_path / "e"
    store = stored.EmbeddingStore.create(
        folder, ["a", "b"], views=1, dimension=4, images="a", weights="b"
    )
    store.write(0, range(2), np.ones((2, 1, 4)), {})
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=str(folder)):
        embedding_files.open_embeddings(folder)


@pytest.mark.parametrize("dtype", [">f4", "f8", "f2", np.longdouble])
def test_floats_of_any_kind_are_read(tmp_path, rng, dtype):
    views = rng.normal(size=(5, 8)).astype(dtype)
    np.save(tmp_path / "e.npy", views)
    found = embedding_files.open_embeddings(tmp_path / "e.npy").views
    assert found.dtype.isnative
    np.testing.assert_allclose(found[:, 0], views)


def test_mutated_files_of_embeddings_are_read_or_refused(tmp_path, rng):
    views = rng.normal(size=(5, 8)).astype(np.float32)
    for write, name in ((np.savez, "a.npz"), (np.savez_compressed, "b.npz")):
        write(tmp_path / name, embeddings=views, ids=list("abcde"))
    np.save(tmp_path / "c.npy", views)
    for name in ("a.npz", "b.npz", "c.npy"):
        data = (tmp_path / name).read_bytes()
        path = tmp_path / f"x{name}"
        for at in range(0, len(data), 7):
            flipped = data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :]
            for damaged in (flipped, data[:at]):
                path.write_bytes(damaged)
                refusal = toy.refusal(
                    functools.partial(embedding_files.open_embeddings, path)
                )
                assert not refusal or str(path) in refusal


def test_what_others_call_unreadable_is_theirs(tmp_path, rng):
    views = rng.normal(size=(5, 8)).astype(np.float32)
    np.savez(tmp_path / "e.npz", embeddings=views, unreadable=np.array([3]))
    assert embedding_files.open_embeddings(tmp_path / "e.npz").unreadable == {}


@pytest.mark.parametrize("kind", [".npz", ".parquet"])
def test_sums_are_written_as_they_are_read(tmp_path, rng, monkeypatch, kind):
    """All at once they were 102 GB for 50 million images, after days of embedding."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(parquet, "ROWS", 1000)
    np.save(tmp_path / "views.npy", rng.normal(size=(25_000, 2, 64)).astype(np.float32))
    views = np.load(tmp_path / "views.npy", mmap_mode="r")
    ids = tuple(f"{k}.jpg" for k in range(len(views)))
    found = stored.Stored(views, ids, {3: "gone"})
    about = {"model": "m", "mirror_image_added": "True"}
    path = tmp_path / f"e{kind}"
    with at_most(megabytes=4):  # the ids; all sums would be 6.4 MB
        embedding_files.write_embeddings(path, found, about)
    again = embedding_files.open_embeddings(path)
    np.testing.assert_array_equal(again.views[:, 0], views.sum(axis=1))
    assert again.ids == ids
    assert again.unreadable == {3: "gone"}
    assert again.summed


def test_a_small_set_of_a_large_store_reads_its_own_rows(tmp_path, rng):
    """Sums of all rows were 86 GB, for 6 000 pairs among 42 million images."""
    faces = sources.open_path(str(toy.write_folder(tmp_path / "f", people=5, images=2)))
    others = tuple(f"other_{k}" for k in range(500))
    ids = (*others[:250], *faces.source.ids[::-1], *others[250:])
    views = rng.normal(size=(510, 2, 8)).astype(np.float32)
    first, second = np.array([0, 2]), np.array([1, 9])
    test = EvaluationSet(
        name="small",
        faces=faces,
        pairs=Pairs(first, second, np.array([True, False]), np.zeros(2, int)),
    )
    known = stored.Stored(views, ids, {251: "gone", 3: "not of this set"})
    found = embedded.from_stored(test, known, embedded.Options())
    assert len(found.views) == 4
    place = [ids.index(faces.source.ids[row]) for row in (0, 1, 2, 9)]
    np.testing.assert_allclose(found.of(np.array([0, 1, 2, 9])), views.sum(1)[place])
    assert (found.position >= 0).sum() == 4
    assert found.unreadable == {}
