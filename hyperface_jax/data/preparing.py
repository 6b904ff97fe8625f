"""Turns a FaceSet into a prepared dataset: parallel, resumable, and whole or absent.

Work happens in `<version>.incomplete/` beside the final folder: shards, their parts and
a plan. Started again, finished shards are kept; a plan of another source or with other
options is refused. At the end the lists are written, the parts go, and one rename makes
the dataset visible. TFDS's own preparation writes to a random folder and starts anew.
"""

import contextlib
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hyperface_jax.data import shards
from hyperface_jax.data.face_crops import Aligner
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.records import NOT_THERE

log = logging.getLogger(__name__)

VERSION = "1.0.0"
SPLIT = "train"
_PARTS = "parts"
_PLAN = "plan.json"
_MOST_MISSING = 0.1  # of all: above, the source has gone, and not a few of its files


@dataclass(frozen=True)
class Options:
    """How a dataset is prepared.

    Attributes:
      verify: decode every image and reject those that fail.
      images_per_shard: the last shard may have fewer.
      workers: processes; 0 writes in this one.
      aligner: cuts faces out by landmarks, or None.
      origin: where the source is: one that was stopped goes on with the same only.
    """

    verify: bool = False
    images_per_shard: int = 16384
    workers: int = 0
    aligner: Aligner | None = None
    origin: str = ""


@dataclass(frozen=True)
class Written:
    """Finished shards, before the lists are written.

    Attributes:
      folder: the incomplete folder.
      final: where it is to be.
      part_paths: of all shards in order.
      rejected: (id, reason) of everything left out.
      how: what was done to the images, for the fingerprint; "" where nothing was.
    """

    folder: Path
    final: Path
    part_paths: list[Path]
    rejected: list[tuple[str, str]]
    how: str = ""

    def parts(self) -> Iterator[shards.Part]:
        """What is known of each shard; one at a time, so that memory stays flat."""
        return map(shards.read_part, self.part_paths)


def write_shards(
    faces: FaceSet, final: Path, *, name: str, options: Options
) -> Written:
    """Writes all shards that are not there yet.

    Args:
      faces: what to store, in this order.
      final: folder of the finished dataset; must not exist.
      name: of the dataset, the prefix of the files.
      options: see there.

    Raises:
      ValueError: another preparation is under way there, nothing passed, or the source
        is not there any more.
      OSError: a file cannot be read or written.
    """
    folder = final.with_name(f"{final.name}.incomplete")
    how = options.aligner.fingerprint if options.aligner else ""
    count = max(-(-len(faces) // options.images_per_shard), 1)
    _claim(folder, faces, name, options)
    kind = f"{name}-{SPLIT}.array_record"  # TFDS's names
    paths = [folder / f"{kind}-{k:05d}-of-{count:05d}" for k in range(count)]
    part_paths = [folder / _PARTS / f"{k:05d}.npz" for k in range(count)]
    todo = [k for k in range(count) if not shards.is_done(paths[k], part_paths[k])]
    with tqdm(total=len(faces), unit="image", desc=f"preparing {name}") as bar:
        finished = (count - len(todo)) * options.images_per_shard
        if finished:
            log.info("%d of %d shards are there already", count - len(todo), count)
            bar.update(min(finished, len(faces)))
        tasks = (
            shard_task(faces, k, options, str(paths[k]), str(part_paths[k]))
            for k in todo
        )
        for images in _run(tasks, options.workers):
            bar.update(images)
    written = Written(folder, final, part_paths, list(faces.rejected.items()), how)
    rejected, kept, gone = written.rejected, 0, []
    for path, part in zip(part_paths, written.parts(), strict=True):
        rejected += [_named(faces, *item) for item in part.rejected]
        kept += len(part.rows)
        missing = [why for *_, why in part.rejected if why.endswith(NOT_THERE)]
        gone += [(path, why) for why in missing]
    if not kept:
        shutil.rmtree(folder)
        raise ValueError(
            f"{faces.name}: none of {len(faces)} images can be used, the first: "
            f"{rejected[0]}"
        )
    if len(gone) > _MOST_MISSING * len(faces):
        for path in {path for path, _ in gone}:
            path.unlink()  # to be written again
        raise ValueError(
            f"{faces.name}: {len(gone)} of {len(faces)} files are not there, the "
            f"first: {gone[0][1]}; the same command goes on when they are"
        )
    return written


def _claim(folder: Path, faces: FaceSet, name: str, options: Options) -> None:
    """Makes the folder, or sees that it holds the same preparation; removes .tmp."""
    plan = {
        "name": name,
        "source": faces.fingerprint,
        "verify": options.verify,
        "images_per_shard": options.images_per_shard,
        "aligner": repr(options.aligner),
        "origin": options.origin,
    }
    path = folder / _PLAN
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise ValueError(
                f"{path} is damaged: delete {folder} to start again"
            ) from None
        if found != json.loads(json.dumps(plan)):
            different = [key for key in plan if found.get(key) != plan[key]]
            raise ValueError(
                f"{folder} holds the beginning of another preparation (other "
                f"{', '.join(different)}): finish that one or delete the folder"
            )
    for stale in [*folder.glob("*.tmp"), *(folder / _PARTS).glob("*.tmp")]:
        stale.unlink()
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PLAN}.tmp")
    temporary.write_text(json.dumps(plan))
    os.replace(temporary, path)


def shard_task(
    faces: FaceSet, index: int, options: Options, path: str = "", part: str = ""
) -> shards.ShardTask:
    """The work of shard `index`; without paths only to iterate over its examples."""
    start = index * options.images_per_shard
    rows = faces.rows[start : start + options.images_per_shard]
    source = faces.source.take(rows)
    return shards.ShardTask(
        path=path,
        part=part,
        source=source,
        first_row=start,
        source_labels=faces.source_labels[rows],
        labels=faces.labels[start : start + options.images_per_shard],
        verify=options.verify,
        aligner=options.aligner.only(source) if options.aligner else None,
    )


def shard_tasks(faces: FaceSet, options: Options) -> list[shards.ShardTask]:
    """All shards, to iterate over their examples."""
    count = max(-(-len(faces) // options.images_per_shard), 1)
    return [shard_task(faces, k, options) for k in range(count)]


def _named(faces: FaceSet, row: int, id_: str, reason: str) -> tuple[str, str]:
    """A record that cannot be read has no id: its row stands for it."""
    return (id_ or f"#{int(faces.rows[row])}", reason)


def _run(tasks: Iterator[shards.ShardTask], workers: int) -> Iterator[int]:
    """Images looked at, as shards are finished; few tasks are in memory at a time."""
    if workers < 1:
        yield from map(shards.write_shard, tasks)
        return
    # Spawn: a fork of a process in which JAX or BLAS has threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)
    )
    try:
        with pool:
            pending: set[Any] = set()
            for task in tasks:
                pending.add(pool.submit(shards.write_shard, task))
                if len(pending) > workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed, perhaps for want of memory: use fewer "
            "workers; the same command goes on from here"
        ) from None


def _follow_parent(parent: int) -> None:
    """A worker whose parent was killed would wait for ever, or go on writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Keeps a second process from writing to the same dataset.

    The lock is on the incomplete folder itself: it leaves no file, and ends with the
    process whatever happens to it.

    Raises:
      ValueError: another process has it.
    """
    folder = final.with_name(f"{final.name}.incomplete")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process prepares {final} right now") from None
        if not folder.exists() or os.stat(folder).st_ino != os.fstat(handle).st_ino:
            raise ValueError(f"another process has just prepared {final}")
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing was begun


def publish(written: Written) -> None:
    """Gives the folder its final name; then removes what only preparation needs."""
    with contextlib.suppress(FileNotFoundError):
        written.final.rmdir()  # an empty folder that somebody made is no obstacle
    os.replace(written.folder, written.final)
    tidy(written.final)


def tidy(final: Path) -> None:
    """Also after a kill between the two steps of `publish`."""
    shutil.rmtree(final / _PARTS, ignore_errors=True)
    (final / _PLAN).unlink(missing_ok=True)
