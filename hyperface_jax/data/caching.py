"""Copies of a source that is slow to read: on a local disk, or in memory."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from tqdm import tqdm

from hyperface_jax.data import image_list
from hyperface_jax.data.records import Record, RecordSource, UnreadableFileError

log = logging.getLogger(__name__)

CACHES = ("none", "disk", "ram")
COMPLETE = ".complete"
_RESERVE = 0.9  # of what is free may be filled


def default_cache_dir() -> str:
    """$HYPERFACE_CACHE_DIR or ~/.cache/hyperface_jax."""
    return os.environ.get("HYPERFACE_CACHE_DIR", "~/.cache/hyperface_jax")


def copy_to_disk(path: str, cache_dir: str = "") -> str:
    """Copies a file, or a folder with all that is in it, to a local disk once.

    The copy is found again by path, names and sizes; files that are there already in
    their full size are not copied again, so a copy that was stopped goes on. Of several
    processes one copies, and the others wait for it.

    Args:
      path: local, mounted, or in a bucket; what `etils.epath` reads.
      cache_dir: where copies are kept; default `default_cache_dir()`.

    Returns:
      The copy.

    Raises:
      ValueError: nothing at the path, or the disk is too small.
    """
    source = epath.Path(path)
    if not source.exists():
        raise ValueError(f"{path}: not found, expected something to copy")
    if not source.is_dir() and source.name.endswith(image_list.SUFFIXES):
        raise ValueError(
            f"{path}: a list of images, expected a folder, tar or .rec to copy "
            "(data.cache=disk)"
        )
    files = sorted(_files(source)) if source.is_dir() else [("", _size(source))]
    text = repr((str(path), files)).encode()
    name = f"{source.name}-{hashlib.sha256(text).hexdigest()[:12]}"
    folder = Path(cache_dir or default_cache_dir()).expanduser() / name
    target = folder if source.is_dir() else folder / source.name
    if (folder / COMPLETE).exists():
        return str(target)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # ends with the process
        if not (folder / COMPLETE).exists():
            _copy(source, folder, target, files)
    finally:
        os.close(handle)
    return str(target)


def _copy(
    source: epath.Path, folder: Path, target: Path, files: list[tuple[str, int]]
) -> None:
    """What is missing of the files (name, bytes), each whole or absent."""
    copies = {name: target / name if name else target for name, _ in files}
    todo = [
        (name, size)
        for name, size in files
        if not (copies[name].exists() and copies[name].stat().st_size == size)
    ]
    _check_space(folder, sum(size for _, size in todo))
    for name, _ in tqdm(todo, unit="file", desc=f"copying {source.name}"):
        copy = copies[name]
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f"{copy.name}.tmp")
        (source / name if name else source).copy(temporary, overwrite=True)
        os.replace(temporary, copy)
    (folder / COMPLETE).touch()


def _files(
    folder: epath.Path, prefix: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Names and sizes; no links to nowhere, nor to a folder that they are in."""
    above = (*above, os.path.realpath(folder))
    for entry in folder.iterdir():
        if entry.is_dir():
            if os.path.realpath(entry) not in above:
                yield from _files(entry, f"{prefix}{entry.name}/", above)
        elif entry.exists():
            yield f"{prefix}{entry.name}", _size(entry)


def _size(path: epath.Path) -> int:
    return int(path.stat().length)


def _check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > _RESERVE * free:
        raise ValueError(
            f"data.cache=disk: {wanted / 1e9:.1f} GB to copy to {folder}, but "
            f"{free / 1e9:.1f} GB are free"
        )


class RamSource:
    """A source of which some rows were read into memory, in order, once.

    A file that could not be read then is asked for again when it is wanted.

    Args:
      source: the slow one.
      rows: int [n], rising: what to keep.
    """

    def __init__(self, source: RecordSource, rows: np.ndarray):
        self._source = source
        self._place = np.full(len(source), -1)
        self._place[rows] = np.arange(len(rows))
        self._records: list[Record] = []
        for start in tqdm(
            range(0, len(rows), 1024), "reading into memory", disable=len(rows) < 50_000
        ):
            self._records += source.__getitems__(rows[start : start + 1024].tolist())
            if start == 0:
                self._check_memory(len(rows))

    def _check_memory(self, count: int) -> None:
        """Better now than when it is full."""
        seen = sum(len(r["image"]) for r in self._records if isinstance(r, dict))
        wanted = (seen / max(len(self._records), 1) + 400) * count
        free = available_memory()
        if free is not None and wanted > _RESERVE * free:
            raise ValueError(
                f"data.cache=ram: about {wanted / 1e9:.1f} GB for {count} images of "
                f"this host, but {free / 1e9:.1f} GB are free"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records from memory; others from the slow source."""
        places = self._place[list(rows)]
        if not (places >= 0).all():
            return list(self._source.__getitems__(list(rows)))
        for row, place in zip(rows, places, strict=True):
            if isinstance(self._records[place], UnreadableFileError):
                self._records[place] = self._source.__getitems__([row])[0]
        return [self._records[place] for place in places]

    def take(self, rows: np.ndarray) -> RecordSource:
        """The given rows of the slow source."""
        return self._source.take(rows)


def available_memory() -> int | None:
    """Bytes that can be filled without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
