"""MXNet's RecordIO: train.rec with train.idx, in pure Python.

A record is u32 magic, u32 (3 bits part, 29 bits length), payload, zeros to a multiple
of 4. The writer cuts a payload at every aligned occurrence of the magic number and
drops these 4 bytes; the reader puts them back. The payload of an image record is
MXNet's IRHeader (u32 flag, f32 label, u64 id, u64 id2; with flag > 0 that many f32
labels follow) and then the encoded image. Sources: dmlc-core recordio.h, mxnet
python/mxnet/recordio.py; all little-endian.
"""

import os
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hyperface_jax.data.record_index import read_index
from hyperface_jax.data.records import BadRecordError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_HEAD = struct.Struct("<II")
_IR_HEADER = struct.Struct("<IfQQ")
_FIRST_READ = 1 << 14  # bytes; nearly every face is smaller
MAX_PAYLOAD = 1 << 26
"""64 MiB. A larger record is damage, not a face."""

# Part of a record, in the upper 3 bits of its length.
_WHOLE, _START, _MIDDLE, _END = 0, 1, 2, 3


class RecordIOError(BadRecordError):
    """A record that breaks the format: file, key and byte offset are in the message."""


class Payload(NamedTuple):
    """Contents of a record.

    Attributes:
      flag: 0 for a scalar label, else the number of labels.
      labels: float32 [max(flag, 1)].
      image: encoded image; empty in header and identity records.
    """

    flag: int
    labels: np.ndarray
    image: bytes


class RecordFile:
    """Random access to the records of a .rec file through its .idx.

    Several threads may read at once. Pickling keeps paths and offsets and opens the
    file anew.

    Args:
      path: train.rec, on a local disk.
      keys: int [N].
      offsets: int64 [N], of each record's magic number.
    """

    def __init__(self, path: epath.PathLike, keys: np.ndarray, offsets: np.ndarray):
        self.path = os.fspath(path)
        self.keys = keys
        self._offsets = offsets
        self._file = open_local(self.path)
        self.size = os.fstat(self._file).st_size

    @classmethod
    def open(cls, rec: epath.PathLike, idx: epath.PathLike) -> "RecordFile":
        """Opens the file and its index; records come in the order of their keys."""
        keys, offsets = read_index(idx)
        if (np.diff(keys) <= 0).any():
            order = np.argsort(keys, kind="stable")
            keys, offsets = keys[order], offsets[order]
        if (same := np.flatnonzero(np.diff(keys) == 0)).size:
            raise ValueError(f"{idx}: key {keys[same[0]]} occurs more than once")
        _check_places(idx, offsets)
        if keys[-1] < 1 << 32:
            keys = keys.astype(np.uint32)  # half of the memory of 42 million of them
        return cls(rec, keys, offsets)

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = open_local(self.path)

    def __del__(self, close=os.close):  # when Python ends, `os` may be gone before us
        if (file := getattr(self, "_file", None)) is not None:
            close(file)

    def take(self, positions: np.ndarray | slice) -> "RecordFile":
        """The given records only; of a slice the memory is shared."""
        return RecordFile(self.path, self.keys[positions], self._offsets[positions])

    def past_end(self) -> int:
        """Number of records that the index places at or past the end of the file."""
        return int(np.count_nonzero(self._offsets + _HEAD.size > self.size))

    def after_last(self) -> int:
        """Bytes behind the last record of the index; 0 where that one is damaged."""
        position = int(np.argmax(self._offsets))
        at = int(self._offsets[position])
        while at + _HEAD.size <= self.size:
            magic, head = _HEAD.unpack(os.pread(self._file, _HEAD.size, at))
            if magic != MAGIC:
                return 0
            at += _HEAD.size + -(-(head & ((1 << 29) - 1)) // 4) * 4
            if head >> 29 in (_WHOLE, _END):
                return max(self.size - at, 0)
        return 0

    def read(self, position: int) -> Payload:
        """The record at a position in the order of keys.

        Raises:
          RecordIOError: it is damaged, cut off, or not where the index says.
        """
        return self._split(position, self._payload(position, MAX_PAYLOAD))

    def read_labels(self, position: int) -> np.ndarray:
        """Labels float32 [>= 1] only, without reading the image.

        Raises:
          RecordIOError: as `read`.
        """
        head = os.pread(
            self._file, _HEAD.size + _IR_HEADER.size, self._offsets[position]
        )
        if len(head) == _HEAD.size + _IR_HEADER.size:
            magic, length = _HEAD.unpack_from(head)
            flag, label, _, _ = _IR_HEADER.unpack_from(head, _HEAD.size)
            if magic == MAGIC and flag == 0 and length >> 29 == _WHOLE:
                return np.array([label], np.float32)
        return self.read(position).labels

    def _payload(self, position: int, limit: int) -> bytes:
        start = int(self._offsets[position])
        if start + _HEAD.size > self.size:
            raise self._error(position, f"past the end of {self.size} bytes")
        data = os.pread(self._file, _FIRST_READ, start)
        parts, at = [], 0
        while True:
            data = self._at_least(data, start, at + _HEAD.size, position)
            magic, head = _HEAD.unpack_from(data, at)
            part, length = head >> 29, head & ((1 << 29) - 1)
            if magic != MAGIC:
                raise self._error(
                    position, f"magic is {magic:#010x}, expected {MAGIC:#010x}", at
                )
            expected = (_WHOLE, _START) if not parts else (_MIDDLE, _END)
            if part not in expected:
                raise self._error(position, f"part {part}, expected {expected}", at)
            if at + length > limit:
                raise self._error(position, f"length {length} is above {limit}", at)
            at += _HEAD.size
            data = self._at_least(data, start, at + length, position)
            parts.append(data[at : at + length])
            at += length + -length % 4
            if part in (_WHOLE, _END):
                self._check_next(data, start, at, position)
                return parts[0] if part == _WHOLE else _MAGIC_BYTES.join(parts)

    def _at_least(self, data: bytes, start: int, wanted: int, position: int) -> bytes:
        """`data` extended to `wanted` bytes."""
        if len(data) >= wanted:
            return data
        if start + wanted > self.size:
            raise self._error(
                position,
                f"cut off: {wanted} bytes expected, {self.size - start} left before "
                "the end of the file",
            )
        # And the next record's magic number, to see that the length is right.
        rest = os.pread(self._file, wanted + 8 - len(data), start + len(data))
        if len(data) + len(rest) < wanted:
            raise self._error(position, "the file became shorter while it was read")
        return data + rest

    def _check_next(self, data: bytes, start: int, at: int, position: int) -> None:
        """A wrong length ends where no record begins."""
        if start + at >= self.size:
            return
        following = data[at : at + 4] or os.pread(self._file, 4, start + at)
        if following == _MAGIC_BYTES:
            return
        # It may be the next record that is damaged: the index knows where it begins.
        later = self._offsets > start
        if later.any() and not (self._offsets == start + at).any():
            raise self._error(position, "no record follows where it ends")

    def _split(self, position: int, payload: bytes) -> Payload:
        if len(payload) < _IR_HEADER.size:
            raise self._error(
                position, f"{len(payload)} bytes, expected {_IR_HEADER.size} or more"
            )
        flag, label, _, _ = _IR_HEADER.unpack_from(payload)
        if flag == 0:
            labels = np.array([label], np.float32)
            return Payload(0, labels, payload[_IR_HEADER.size :])
        start = _IR_HEADER.size + 4 * flag
        if start > len(payload):
            raise self._error(
                position, f"{flag} labels do not fit into {len(payload)} bytes"
            )
        labels = np.frombuffer(payload, "<f4", flag, _IR_HEADER.size)
        return Payload(flag, labels, payload[start:])

    def _error(self, position: int, text: str, at: int = 0) -> RecordIOError:
        return RecordIOError(
            f"{self.path}, record {self.keys[position]} at byte "
            f"{self._offsets[position] + at}: {text}"
        )


def _check_places(idx: epath.PathLike, offsets: np.ndarray) -> None:
    """No two records in one place."""
    rest = offsets[1:]  # the header's may be the last
    rising = (rest[1:] > rest[:-1]).all()
    if rising and not (len(rest) and rest[0] <= offsets[0] <= rest[-1]):
        return
    ordered = np.sort(offsets)
    if (same := np.flatnonzero(ordered[1:] == ordered[:-1])).size:
        at = ordered[same[0]]
        raise ValueError(f"{idx}: byte {at} is given as the place of two records")


def open_local(path: str) -> int:
    """A file descriptor to read from at any position.

    Raises:
      ValueError: the file is remote or cannot be opened.
    """
    if "://" in path:
        raise ValueError(
            f"{path}: random access needs a local file; use data.cache=disk to copy it"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: not a regular file")
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
