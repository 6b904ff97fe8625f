"""PyTorch's checkpoint files, read and written without torch.

    weights = read("backbone.pth")     # nested dicts, lists, numbers, text, arrays
    write("ours.pt", {"conv1.weight": array})      # for torch.load(weights_only=True)

Two formats. Since torch 1.6 a zip of uncompressed entries: NAME/data.pkl, its storages
NAME/data/KEY, NAME/byteorder, NAME/version. Before: five pickles (magic number,
protocol, facts about the system, the object, keys of its storages) and then, for each
key, an int64 number of values and the values, little-endian. Source: torch
`serialization.py` and `csrc/StorageMethods.cpp`.
What a pickle may name is in `torch_pickle`; no code of a file runs.
"""

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from etils import epath

from hyperface_jax.data.safe_pickle import UnsafePickleError
from hyperface_jax.interop.torch_objects import STORAGES
from hyperface_jax.interop.torch_pickle import Unpickler, dump
from hyperface_jax.workdir import whole_file

MAX_PICKLE = 1 << 24
"""16 MiB. A checkpoint's pickle is less than one: the values are elsewhere."""

MAX_EXPANSION = 20
"""Bytes of all entries for one of the file; torch itself compresses nothing."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def read(path: epath.PathLike) -> Any:
    """Contents of a file of torch.save.

    Tensors become read-only arrays, bfloat16 as float32; those that share a storage
    share memory. OrderedDict becomes dict, a device or dtype its name. Objects of
    `torch_pickle`'s list of harmless modules become `Opaque`.

    Raises:
      UnsafePickleError: it names something that is not allowed.
      ValueError: it cannot be read, is damaged, cut off or of another kind.
    """
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            return _read_zip(file) if start[:2] == b"PK" else _read_older(file)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        unsafe = isinstance(error, UnsafePickleError)
        text = str(error) if str(error).isprintable() else ascii(str(error))
        raise (UnsafePickleError if unsafe else ValueError)(f"{path}: {text}") from None


# --- zip ------------------------------------------------------------------------------


def _read_zip(file: IO) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(archive, file.seek(0, io.SEEK_END)).read()
    except ValueError:
        raise
    except Exception as error:  # zipfile has many; a local file may still fail to read
        raise ValueError(
            f"cut off or damaged zip ({type(error).__name__}: {error!s:.100})"
        ) from None


class _Archive:
    """A zip whose entries are read whole, with their checksum verified.

    Args:
      archive: opened.
      size: bytes of the file.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        entries = archive.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        roots = [
            n[:-8] for n in self._entries if n.count("/") == 1 and n[-8:] == "data.pkl"
        ]
        if len(roots) != 1 or len(entries) != len(self._entries):
            raise ValueError("a zip, but not one of torch.save (no NAME/data.pkl)")
        self._root = roots[0]
        for field, most in (("compress_size", 1), ("file_size", MAX_EXPANSION)):
            if (total := sum(getattr(e, field) for e in entries)) > most * size:
                raise ValueError(f"entries of {total} bytes in a file of {size}")
        self._storages: dict[str, tuple[str, np.ndarray]] = {}

    def read(self) -> Any:
        order = self._bytes("byteorder", 16) if self._has("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"byteorder is {order!r}, expected little or big")
        self._swap = order == b"big"
        stream = io.BytesIO(self._bytes("data.pkl", MAX_PICKLE))
        return Unpickler(stream, self._storage).read()

    def _has(self, name: str) -> bool:
        return self._root + name in self._entries

    def _bytes(self, name: str, most: int) -> bytes:
        if not self._has(name):
            raise ValueError(f"no entry {name!r:.60}")
        entry = self._entries[self._root + name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"entry {name!r:.60} is neither stored nor deflated")
        if entry.file_size > most:
            raise ValueError(
                f"entry {name!r:.60} has {entry.file_size} bytes, expected {most}"
            )
        try:
            with self._archive.open(entry) as file:
                # Never more than it says; the checksum is compared at the end.
                data = file.read(entry.file_size) if entry.file_size else b""
        except Exception as error:
            raise ValueError(
                f"entry {name!r:.60} is damaged ({type(error).__name__}: {error!s:.80})"
            ) from None
        if len(data) != entry.file_size:
            raise ValueError(
                f"entry {name!r:.60} has {len(data)} bytes, expected {entry.file_size}"
            )
        return data

    def _storage(self, key: str, kind: str, count: int) -> np.ndarray:
        if key not in self._storages:
            wanted = count * STORAGES[kind].itemsize
            data = self._bytes(f"data/{key}", wanted)
            if len(data) != wanted:
                raise ValueError(
                    f"storage {key!r:.60} has {len(data)} bytes, expected {wanted}"
                )
            self._storages[key] = kind, _values(data, kind, swap=self._swap)
        return _same(key, self._storages[key], kind, count)


def _same(key: str, found: tuple[str, np.ndarray], kind: str, count: int) -> np.ndarray:
    """Values of a storage, which must be the same kind each time it is named."""
    if found[0] != kind or len(found[1]) != count:
        raise ValueError(
            f"storage {key!r:.60} is {count} values of {kind} and also "
            f"{len(found[1])} of {found[0]}"
        )
    return found[1]


def _values(data: bytes, kind: str, *, swap: bool = False) -> np.ndarray:
    """Values [N] in this machine's byte order."""
    dtype = STORAGES[kind]
    if kind == "BoolStorage":
        return np.frombuffer(data, np.uint8) != 0
    values = np.frombuffer(data, dtype.newbyteorder(">") if swap else dtype)
    if kind == "BFloat16Storage":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(dtype.newbyteorder("="), copy=False)


# --- before torch 1.6 -----------------------------------------------------------------


def _read_older(file: IO) -> Any:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE))
    declared: dict[str, tuple[str, np.ndarray]] = {}

    def declare(key: str, kind: str, count: int) -> np.ndarray:
        # One value in memory, repeated: the tensors of this first pass are dropped.
        values = np.broadcast_to(np.zeros(1, STORAGES[kind]), count)
        return _same(key, declared.setdefault(key, (kind, values)), kind, count)

    if _older_start(head) != [_MAGIC, _PROTOCOL]:
        raise ValueError("not a file of torch.save: neither a zip nor its older format")
    Unpickler(head, declare).read()  # facts about the system; the data do not depend
    at = head.tell()
    Unpickler(head, declare).read()
    keys = Unpickler(head, declare).read()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(declared):
        raise ValueError("damaged: other storages in the list than in the tensors")
    storages = {}
    place = head.tell()
    for key in keys:
        kind, values = declared[key]
        length = len(values) * STORAGES[kind].itemsize
        if place + _COUNT.size + length > size:
            raise ValueError(
                f"cut off: storage {key!r:.60} ends at byte "
                f"{place + _COUNT.size + length}, the file at {size}"
            )
        file.seek(place)
        (count,) = _COUNT.unpack(file.read(_COUNT.size))
        if count != len(values):
            raise ValueError(
                f"storage {key!r:.60} has {count} values, expected {len(values)}"
            )
        storages[key] = _values(file.read(length), kind)
        place += _COUNT.size + length
    head.seek(at)
    return Unpickler(head, lambda key, *_: storages[key]).read()


def _older_start(head: IO) -> list[Any]:
    """The first two pickles, as far as they are pickles."""

    def no_storage(*_: Any) -> np.ndarray:
        raise ValueError("a storage")

    found = []
    for _ in range(2):
        try:
            found.append(Unpickler(head, no_storage).read())
        except ValueError as error:
            if isinstance(error, UnsafePickleError):
                raise
    return found


# --- writing --------------------------------------------------------------------------


def write(path: epath.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Writes a file for torch.load(weights_only=True); the same bytes each time.

    Args:
      path: of the file, which appears whole or not at all.
      state_dict: name -> array of floating, whole or bool values, or another such
        mapping, or a number or text.

    Raises:
      ValueError: a value is none of these, or the file cannot be written.
    """
    program, arrays = dump(state_dict)
    try:
        with (
            whole_file(epath.Path(path), "wb") as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            _add(archive, "data.pkl", program)
            _add(archive, "byteorder", b"little")
            for key, array in enumerate(arrays):
                _add(archive, f"data/{key}", array.tobytes())
            _add(archive, "version", b"3\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")  # of 1980
    entry.create_system = 0
    archive.writestr(entry, data)
