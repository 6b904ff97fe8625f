"""`python -m hyperface_jax.embed`: what it writes, goes on with and refuses."""

import errno
import json
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from etils import epath
from networks import call, images, made, write_images
from test_train import small_config

from hyperface_jax import (
    audit,
    command_line,
    embed,
    evaluate,
    model,
    search,
    workdir,
)
from hyperface_jax.data import name_lists
from hyperface_jax.evaluation import embedding_files, forward, parquet, stored
from hyperface_jax.training import train


def test_embeddings_of_two_networks_are_not_compared(tmp_path):
    write_images(tmp_path / "faces")
    source = ("--source", tmp_path / "faces", "--out")
    for name, order in (("a", "RGB"), ("b", "BGR")):
        model.save(made(color_order=order), tmp_path / name)
        for kind in (".npz", ".parquet", ""):
            call(embed, tmp_path / name, *source, tmp_path / f"e_{name}{kind}")
    call(embed, tmp_path / "a", *source, tmp_path / "plain.npz", "--no_flip")

    def found(gallery, probes):
        files = ("--gallery", tmp_path / gallery, "--probes", tmp_path / probes)
        return call(search, *files, "--top", 1, "--out", tmp_path / "f.tsv")

    for kind in (".npz", ".parquet", ""):
        same = found("e_a.npz", f"e_a{kind}")
        assert same.rows[:, 0].tolist() == list(range(5))
        with pytest.raises(ValueError, match=r"e_b.*: made by network .*e_a"):
            found("e_a.npz", f"e_b{kind}")
    with pytest.raises(ValueError, match="mirror image left out"):
        found("e_a.npz", "plain.npz")
    # A file of `embed` is read, not taken for a folder to go on with.
    faces = toy.write_folder(tmp_path / "people", people=3, images=2)
    out = tmp_path / "people.npz"
    call(embed, tmp_path / "a", "--source", faces, "--out", out)
    more = ("--source", faces, "--threshold", 0.9, "--embeddings", out)
    where = ("--out", tmp_path / "audit")
    call(audit, *more, *where, "--workdir", tmp_path / "a")
    assert (tmp_path / "audit" / "outliers.tsv").exists()
    with pytest.raises(ValueError, match=r"people.npz: made by network .*the model by"):
        call(audit, *more, *where, "--workdir", tmp_path / "b")
    # Distractors, too, before anything is embedded.
    crowd = ("--set", faces, "--distractors", tmp_path / "e_b.npz")
    crowd += ("--protocols", "distractors", "--out", tmp_path / "report")
    for source in (("--embeddings", out), ("--workdir", tmp_path / "a")):
        p = evaluate.parser().parse_args([*map(str, (*crowd, *source))])
        with pytest.raises(ValueError, match=r"distractors: made by .*people"):
            evaluate.evaluate_files(p)
    assert not (tmp_path / "report" / "embeddings").exists()
    config = small_config(tmp_path, eval__distractors=str(tmp_path / "e_b.npz"))
    with pytest.raises(ValueError, match=r"e_b.npz: made by network .* training will"):
        train.train_and_evaluate(config, tmp_path / "run")
    config = small_config(tmp_path, eval__groups=str(tmp_path / "nobody.txt"))
    with pytest.raises(ValueError, match=r"nobody\.txt: no such file"):
        train.train_and_evaluate(config, tmp_path / "run")  # not when it has trained


def test_a_full_disk_is_one_line_and_no_bus_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", full)
    folder = tmp_path / "store"
    with pytest.raises(OSError, match=r"No space left on device, 0.0 MB needed"):
        stored.EmbeddingStore.create(
            folder, ["a"], views=1, dimension=8, images="", weights=""
        )
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", cannot)
    stored.EmbeddingStore.create(
        folder, ["a"], views=1, dimension=8, images="", weights=""
    )
    assert folder.exists()


def test_a_store_that_is_stopped_while_it_is_made_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "_reserve", stop)
    with pytest.raises(KeyboardInterrupt):
        stored.EmbeddingStore.create(
            tmp_path / "store", ["a"], views=1, dimension=8, images="", weights=""
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path):
    """The system's own error is "[Errno 28] No space left on device"."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half():
        with workdir.whole_file(epath.Path(path)) as file:
            file.write("half")
            full()

    path = Path(tmp_path / "found.tsv")
    with pytest.raises(OSError, match=r"space left on device: '.*found.tsv'") as error:
        half()
    assert command_line.text_of(error.value) == f"{path}: no space left on device"
    Path(f"{path}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"space left on device: '.*found.tsv'"):
        name_lists.write_names(path, [("a", "b")])

    def rows():
        yield ("a", "b")
        (tmp_path / "source.npz").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"source\.npz"):  # not found.tsv
        name_lists.write_names(path, rows())
    assert not any(tmp_path.iterdir())


def test_embeddings_of_a_folder_and_of_listed_paths(tmp_path):
    first = made()
    model.save(first, tmp_path / "m")
    folder = write_images(tmp_path / "faces" / "deep")
    out = call(
        embed,
        tmp_path / "m",
        "--source",
        tmp_path / "faces",
        "--out",
        tmp_path / "e.npz",
    )
    found = embedding_files.open_embeddings(out)
    assert found.ids == tuple(f"deep/{k}" for k in range(5))
    want = first.embed(images(5)) + first.embed(images(5)[:, :, ::-1])
    np.testing.assert_allclose(found.views[:, 0], want, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "e.npz.parts").exists()
    lines = [f"{folder / '3.png'}\n", "\n", f"{tmp_path / 'gone.png'}\n"]
    out = call(
        embed,
        tmp_path / "m",
        *("--source", "-", "--out", tmp_path / "e.parquet"),
        lines=lines,
    )
    ids, embeddings, facts = parquet.read_parquet(out)
    assert ids == (str(folder / "3.png"), str(tmp_path / "gone.png"))
    np.testing.assert_allclose(embeddings[0], want[3], rtol=1e-4, atol=1e-5)
    assert not embeddings[1].any()
    assert facts["model"] == first.fingerprint


def test_an_embedding_run_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    model.save(made(), tmp_path / "m")
    write_images(tmp_path / "faces", count=5)
    create = stored.EmbeddingStore.create

    def in_small_parts(*arguments, **settings):
        return create(*arguments, part_images=2, **settings)

    monkeypatch.setattr(stored.EmbeddingStore, "create", in_small_parts)
    source, out = tmp_path / "faces", tmp_path / "e.npz"
    arguments = (tmp_path / "m", "--source", source, "--out", out)
    write = stored.EmbeddingStore.write

    def killed(self, number, *more):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, *more)

    monkeypatch.setattr(stored.EmbeddingStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        call(embed, *arguments)
    assert not (tmp_path / "e.npz").exists()
    numbers = []

    def counted(self, number, *more):
        numbers.append(number)
        write(self, number, *more)

    monkeypatch.setattr(stored.EmbeddingStore, "write", counted)
    out = call(embed, *arguments)
    assert numbers == [1, 2]
    assert embedding_files.open_embeddings(out).views.shape == (5, 1, 8)


def test_one_bar_counts_the_images_of_all_parts(tmp_path, monkeypatch, capsys):
    model.save(made(), tmp_path / "m")
    write_images(tmp_path / "faces", count=81)
    create = stored.EmbeddingStore.create
    monkeypatch.setattr(
        stored.EmbeddingStore,
        "create",
        lambda *arguments, **settings: create(*arguments, part_images=32, **settings),
    )
    source, out = tmp_path / "faces", tmp_path / "e.npz"
    call(embed, tmp_path / "m", "--source", source, "--out", out, "--batch_size", 4)
    bars = capsys.readouterr().err.split("\r")
    totals = {re.search(r"\d+/(\d+)", bar)[1] for bar in bars if "embedding:" in bar}
    assert totals == {"81"}
    assert "81/81" in bars[-1]


def test_damaged_images_are_left_out_wherever_they_stand(tmp_path):
    model.save(made(), tmp_path / "m")
    faces = write_images(tmp_path / "faces", count=2)
    (faces / "+.png").write_bytes(b"none")  # the first by name
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e.npz")
    found = embedding_files.open_embeddings(call(embed, *where))
    assert found.ids == ("+", "0", "1")
    assert found.views.any(axis=(1, 2)).tolist() == [False, True, True]
    assert list(found.unreadable) == [0]
    assert "not an image" in found.unreadable[0]
    out = call(embed, *where[:-1], tmp_path / "e.parquet")
    again = embedding_files.open_embeddings(out)
    assert again.unreadable == found.unreadable
    assert again.network == found.network
    for name in ("0.png", "1.png"):
        (faces / name).write_bytes(b"none")
    (tmp_path / "e.npz").unlink()
    with pytest.raises(ValueError, match="none of 3 images can be read"):
        call(embed, *where)
    assert not (tmp_path / "e.npz").exists()
    notes = tmp_path / "e" / "notes.txt"
    for _ in range(2):  # what else is in the folder of a store stays
        with pytest.raises(ValueError, match="none of 3 images can be read"):
            call(embed, *where[:-1], tmp_path / "e")
        notes.write_text("mine")
    assert not list((tmp_path / "e" / stored.DONE).iterdir())
    write_images(faces)  # they are back, and the same command sees them
    assert embedding_files.open_embeddings(call(embed, *where)).views[1].any()


def test_a_folder_of_embeddings_is_mended_or_refused(tmp_path):
    model.save(made(), tmp_path / "m")
    faces = write_images(tmp_path / "faces", count=3)
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e")
    want = np.array(embedding_files.open_embeddings(call(embed, *where)).views)
    done = tmp_path / "e" / "done" / "00000.json"
    for text in ("", "[1]", "null", "{"):  # the machine went down
        done.write_text(text)
        found = embedding_files.open_embeddings(call(embed, *where)).views
        np.testing.assert_array_equal(found, want)
    array = tmp_path / "e" / "embeddings.npy"
    array.write_bytes(array.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"e/embeddings.npy: damaged"):
        call(embed, *where)
    array.write_bytes(b"")
    done.unlink()
    with pytest.raises(ValueError, match=r"e/embeddings.npy: damaged"):
        call(embed, *where)
    meta = tmp_path / "e" / "meta.json"
    facts = json.loads(meta.read_text())
    for broken in (None, facts | {"part_images": 0}, facts | {"rows": "3"}):
        meta.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="e: no embeddings in it"):
            call(embed, *where)
    with pytest.raises(ValueError, match="faces: holds other files, expected a new"):
        call(embed, *where[:-1], faces)
    (faces / os.fsdecode(b"\xff.png")).write_bytes((faces / "0.png").read_bytes())
    with pytest.raises(ValueError, match="is no UTF-8, which Parquet needs"):
        call(embed, *where[:-1], tmp_path / "e.parquet")
    assert call(embed, *where[:-1], tmp_path / "e.npz").exists()


def test_a_network_that_gives_nan_is_said(tmp_path, monkeypatch):
    model.save(made(), tmp_path / "m")
    monkeypatch.setattr(
        forward, "normalize", lambda images: jnp.full(images.shape, jnp.nan)
    )
    faces = write_images(tmp_path / "faces", count=3)
    where = (tmp_path / "m", "--source", faces, "--out", tmp_path / "e.npz")
    with pytest.raises(ValueError, match="NaN or infinity in 3 of 3 embeddings"):
        call(embed, *where)
    assert not (tmp_path / "e.npz").exists()


def test_images_that_are_no_crops_are_refused(tmp_path):
    model.save(made(), tmp_path / "m")
    write_images(tmp_path / "faces", size=48)
    source, out = tmp_path / "faces", tmp_path / "e.npz"
    arguments = (tmp_path / "m", "--source", source, "--out", out)
    with pytest.raises(
        ValueError, match=r"0: is 48x48, expected an aligned crop of 32x"
    ):
        call(embed, *arguments)
    out = call(embed, *arguments, "--resize", "--no_flip")
    assert embedding_files.open_embeddings(out).views.any()
    (tmp_path / "none").mkdir()
    (tmp_path / "taken.npz").mkdir()
    for name, found in (("e.npy", "e.npy'"), ("taken.npz", r"taken.npz' \(a folder\)")):
        with pytest.raises(
            ValueError, match=f"{found}, expected a file ending in .npz"
        ):
            call(embed, *arguments[:-1], tmp_path / name)
    with pytest.raises(ValueError, match="no images in it, at any depth"):
        call(embed, tmp_path / "m", "--source", tmp_path / "none", "--out", "x.npz")
    with pytest.raises(ValueError, match="standard input: no path in it"):
        call(embed, tmp_path / "m", "--source", "-", "--out", "x.npz", lines=["\n"])
