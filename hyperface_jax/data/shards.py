"""Writes one shard of a prepared dataset: whole, or not at all.

A shard is an array_record file of the records that passed, and a part file beside it
(labels, rows, hashes, sizes, rejections). The part is renamed into place last, so a
shard is done if and only if its part exists; a kill leaves a .tmp file at most. Both
are on the disk before they get their names: a machine that goes down leaves no shard
of the right length that holds something else.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter  # pyright: ignore[reportMissingModuleSource, reportAttributeAccessIssue]
from PIL import Image

from hyperface_jax.data.decode import FORMATS, MAX_PIXELS, BadImageError, decode_rgb
from hyperface_jax.data.face_crops import Aligner
from hyperface_jax.data.records import (
    BadRecordError,
    Record,
    RecordSource,
    UnreadableFileError,
)
from hyperface_jax.data.shard_source import serialise, stored_text

# One record a group: random access reads no neighbours. JPEG does not shrink further,
# and without compression reading is a copy.
WRITER_OPTIONS = "group_size:1,uncompressed"
_CHUNK = 256  # records in memory at a time


@dataclass(frozen=True)
class ShardTask:
    """One shard's work; small enough to be sent to another process.

    Attributes:
      path: of the finished shard.
      part: of its part file.
      source: the records of this shard only.
      first_row: index of the first of them in the whole set.
      source_labels: int32 [n], the label that each record must carry.
      labels: int32 [n], the label to store.
      verify: decode every image.
      aligner: or None.
    """

    path: str
    part: str
    source: RecordSource
    first_row: int
    source_labels: np.ndarray
    labels: np.ndarray
    verify: bool = False
    aligner: Aligner | None = None


@dataclass(frozen=True)
class Part:
    """What is known of a finished shard.

    Attributes:
      rows: int64 [k], index in the whole set of each record kept.
      labels: int32 [k].
      hashes: uint64 [k, 2], of the payloads as they came.
      sizes: uint16 [k, 2], height and width.
      num_bytes: of the serialised records.
      rejected: (row, id, reason) of those left out.
      file_bytes: size of the shard on disk.
      ids: of each record kept, as it reads in the shard; none in parts of a version
        that did not note them.
    """

    rows: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    sizes: np.ndarray
    num_bytes: int
    rejected: list[tuple[int, str, str]]
    file_bytes: int
    ids: list[str]


def image_size(image: bytes) -> tuple[int, int]:
    """Height and width from the header, without decoding.

    Raises:
      BadImageError: the bytes do not begin like an image.
    """
    if not image:
        raise BadImageError("0 bytes")
    try:
        if image[:2] == b"\xff\xd8":
            height, width = map(int, simplejpeg.decode_jpeg_header(image)[:2])
        else:
            with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
                width, height = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadImageError(f"{len(image)} bytes that are no image") from None
    if not 0 < height * width <= MAX_PIXELS:
        raise BadImageError(f"an image of {height} x {width} pixels")
    return height, width


def check_record(task: ShardTask, k: int, record: Record) -> tuple[bytes, str]:
    """Image and id of record k of a task.

    Raises:
      BadRecordError: it must not be stored.
    """
    if isinstance(record, BadRecordError):
        raise record
    found, expected = int(record["label"]), int(task.source_labels[k])
    if found != expected:
        raise BadRecordError(f"label is {found}, expected {expected}")
    if task.verify:
        decode_rgb(record["image"])
    return record["image"], record["id"]


def examples(task: ShardTask, rejected: list[tuple[int, str, str]]) -> Iterator[tuple]:
    """(k, image, label, id, hash, size) of the records that pass; fills `rejected`.

    Raises:
      UnreadableFileError: a file is there and cannot be read.
    """
    for start in range(0, len(task.source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(task.source)))
        for k, record in zip(rows, task.source.__getitems__(rows), strict=True):
            try:
                image, id_ = check_record(task, k, record)
                digest = hashlib.blake2b(image, digest_size=16).digest()
                if task.aligner is not None:
                    image = task.aligner(image, id_)
                size = image_size(image)
            except UnreadableFileError:
                raise  # an image that is there is not left out
            except BadRecordError as error:
                name = "" if isinstance(record, BadRecordError) else record["id"]
                rejected.append((task.first_row + k, name, str(error)))
                continue
            yield k, image, int(task.labels[k]), id_, digest, size


def write_shard(task: ShardTask) -> int:
    """Writes a shard and its part; returns the number of records looked at."""
    temporary = Path(f"{task.path}.tmp")
    try:
        return _write(task, temporary)
    except UnreadableFileError as error:
        raise OSError(f"{error}; the same command goes on from here") from None
    except RuntimeError as error:  # array_record's, of a full disk for example
        why = " ".join(str(error).split())[:200]
        raise OSError(f"{task.path}: cannot be written ({why})") from None


def _write(task: ShardTask, temporary: Path) -> int:
    rejected: list[tuple[int, str, str]] = []
    rows, labels, hashes, sizes, ids, num_bytes = [], [], [], [], [], 0
    writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
    try:
        for k, image, label, id_, digest, size in examples(task, rejected):
            data = serialise(image, label, id_)
            writer.write(data)
            num_bytes += len(data)
            rows.append(task.first_row + k)
            labels.append(label)
            hashes.append(digest)
            sizes.append(size)
            ids.append(stored_text(id_))
    finally:
        # Raises where the disk is full: nothing is renamed then.
        writer.close()
    part = Part(
        rows=np.array(rows, np.int64),
        labels=np.array(labels, np.int32),
        hashes=np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2),
        sizes=np.array(sizes, np.uint16).reshape(-1, 2),
        num_bytes=num_bytes,
        rejected=rejected,
        file_bytes=temporary.stat().st_size,
        ids=ids,
    )
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, task.path)
    _write_part(Path(task.part), part)
    return len(task.source)


def _write_part(path: Path, part: Part) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    facts = json.dumps([part.num_bytes, part.file_bytes, part.rejected, part.ids])
    with temporary.open("wb") as file:
        np.savez(
            file,
            rows=part.rows,
            labels=part.labels,
            hashes=part.hashes,
            sizes=part.sizes,
            facts=np.frombuffer(facts.encode(), np.uint8),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_part(path: Path) -> Part:
    """Inverse of what `write_shard` leaves beside a shard."""
    with np.load(path) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        num_bytes, file_bytes, rejected = facts[:3]
        return Part(
            rows=arrays["rows"],
            labels=arrays["labels"],
            hashes=arrays["hashes"],
            sizes=arrays["sizes"],
            num_bytes=num_bytes,
            rejected=[tuple(item) for item in rejected],
            file_bytes=file_bytes,
            ids=facts[3] if len(facts) > 3 else [],
        )


def is_done(path: Path, part: Path) -> bool:
    """True for a shard that was finished and is as long as it was then."""
    if not (part.exists() and path.exists()):
        return False
    try:
        return read_part(part).file_bytes == path.stat().st_size
    except Exception:  # a damaged file may fail anyhow
        return False  # cut off when the machine went down
