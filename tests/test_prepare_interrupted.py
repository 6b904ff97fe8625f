"""`prepare` that is killed, stopped, or loses its source or disk half-way."""

import os
import signal
import subprocess
import sys
import time

import pytest
import record_files
import toy
from preparations import opened, run, same_batches

from hyperface_jax.data import (
    datasets,
    describing,
    image_files,
    prepared,
    preparing,
    shards,
    sources,
)


def test_finished_shards_are_kept_and_rubbish_is_removed(tmp_path, monkeypatch):
    source = record_files.write_insightface(tmp_path / "source", people=10)
    faces = sources.open_path(str(source))
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    options = preparing.Options(images_per_shard=8)
    write, written = shards.write_shard, []

    def stops_after_two(task):
        if len(written) == 2:
            (folder.with_name("1.0.0.incomplete") / "x.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(task.path)
        return write(task)

    monkeypatch.setattr(shards, "write_shard", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        datasets.convert(faces, folder, name="faces", source="x", options=options)
    assert not folder.exists()
    other = preparing.Options(images_per_shard=9)
    with pytest.raises(ValueError, match=r"another preparation \(other images_per_sh"):
        datasets.convert(faces, folder, name="faces", source="x", options=other)
    again = []
    monkeypatch.setattr(
        shards, "write_shard", lambda task: again.append(task.path) or write(task)
    )
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    assert len(again) == 3
    assert not set(again) & set(written)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.incomplete"))
    same_batches(faces, opened(tmp_path))


def test_a_shard_that_changed_since_is_written_again(tmp_path, monkeypatch):
    source = toy.write_folder(tmp_path / "source", people=4)
    faces = sources.open_path(str(source))
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    options = preparing.Options(images_per_shard=8)
    with monkeypatch.context() as m:
        m.setattr(describing, "describe", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            datasets.convert(faces, folder, name="faces", source="x", options=options)
    shard = next(folder.with_name("1.0.0.incomplete").glob("*-00000-of-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    same_batches(faces, opened(tmp_path))


def test_a_second_process_is_refused_and_a_damaged_part_is_written_again(tmp_path):
    source = toy.write_folder(tmp_path / "source", people=4)
    faces = sources.open_path(str(source))
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    options = preparing.Options(images_per_shard=8)
    with (
        preparing.locked(folder),
        pytest.raises(ValueError, match="another process prepares"),
    ):
        datasets.convert(faces, folder, name="faces", source="x", options=options)
    assert not folder.with_name("1.0.0.incomplete").exists()
    written = preparing.write_shards(faces, folder, name="faces", options=options)
    written.part_paths[0].write_bytes(b"PK cut")
    written.part_paths[1].write_bytes(b"")
    moved = preparing.Options(images_per_shard=8, origin="elsewhere")
    with pytest.raises(ValueError, match=r"another preparation \(other origin\)"):
        datasets.convert(faces, folder, name="faces", source="x", options=moved)
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    same_batches(faces, opened(tmp_path))


def test_a_full_disk_and_a_killed_worker_are_one_line(tmp_path, monkeypatch):
    source = toy.write_folder(tmp_path / "source", people=4)
    faces = sources.open_path(str(source))
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))

    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device")

        def close(self):
            pass

    with monkeypatch.context() as m:
        m.setattr(shards, "ArrayRecordWriter", Full)
        with pytest.raises(OSError, match=r"cannot be written .*No space left"):
            datasets.convert(
                faces, folder, name="faces", source="x", options=preparing.Options()
            )
    with pytest.raises(ValueError, match="a worker process was killed"):
        list(preparing._run(iter([Deadly()]), 1))


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), FileNotFoundError(2, os.strerror(2))]
)
def test_a_source_that_goes_away_is_not_a_smaller_set(tmp_path, monkeypatch, error):
    source = toy.write_folder(tmp_path / "source", people=16)
    real, reads = image_files.FolderReader.__call__, []

    def read(self, row):
        reads.append(row)
        if len(reads) > 72:  # the fingerprint, one shard, and a little
            raise error
        return real(self, row)

    arguments = ("--source", source, "--data_dir", tmp_path, "--images_per_shard", 6)
    with monkeypatch.context() as m:
        m.setattr(image_files.FolderReader, "__call__", read)
        with pytest.raises((OSError, ValueError), match=r"the same command goes on"):
            run(*arguments, "--workers", 0)
    run(*arguments, "--workers", 0)
    same_batches(sources.open_path(str(source)), opened(tmp_path))


class Deadly:
    """A task that kills the worker that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_lost_shard_of_a_prepared_folder_is_an_error(tmp_path):
    source = toy.write_folder(tmp_path / "source", people=4)
    run("--source", source, "--data_dir", tmp_path, "--images_per_shard", 8)
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    other, shard = sorted(folder.glob("*.array_record*"))
    (folder / prepared.LABELS).unlink()
    shard.write_bytes(other.read_bytes()[:100])
    with pytest.raises(ValueError, match="0 records found, expected 8"):
        opened(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kill_minus_nine_and_resume(tmp_path):
    source = record_files.write_insightface(
        tmp_path / "source", people=60, images=20, size=64
    )
    command = [sys.executable, "-m", "hyperface_jax.prepare", "--source", str(source)]
    command += ["--data_dir", str(tmp_path), "--images_per_shard", "16", "--verify"]
    command += ["--workers", "2"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    folder = datasets.writable_folder_of("faces", "default", str(tmp_path))
    incomplete = folder.with_name("1.0.0.incomplete")
    deadline = time.monotonic() + 120
    while len(list(incomplete.glob("parts/*.npz"))) < 5:
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1.5)  # workers notice that their parent is gone
    done = {p: p.stat().st_mtime_ns for p in incomplete.glob("parts/*.npz")}
    assert not folder.exists()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(done)} of 75 shards are there already" in second.stderr
    assert not incomplete.exists()
    assert not list(folder.rglob("*.tmp"))
    same_batches(sources.open_path(str(source)), opened(tmp_path))
