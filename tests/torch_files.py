"""Writes PyTorch's files by hand, for tests: programs of a pickle, and both formats."""

import pickle
import struct
import warnings
import zipfile

import numpy as np


def plain(value) -> bytes:
    """Pickle of a plain value, without start and end."""
    return pickle.dumps(value, 2)[2:-1]


def name(module, attribute) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(key, kind, count, *, view=()) -> bytes:
    parts = plain("storage") + name("torch", kind) + plain(key) + plain("cuda:0")
    return b"(" + parts + plain(count) + b"".join(map(plain, view)) + b"tQ"


def tensor(stored: bytes, offset, size, stride) -> bytes:
    """torch._utils._rebuild_tensor_v2 with hooks, as torch writes it."""
    hooks = name("collections", "OrderedDict") + b")R"
    place = plain(offset) + plain(size) + plain(stride)
    call = name("torch._utils", "_rebuild_tensor_v2")
    return call + b"(" + stored + place + plain(False) + hooks + b"tR"


def mapping(items: dict[str, bytes]) -> bytes:
    """An OrderedDict with `_metadata`, as a state_dict is."""
    start = name("collections", "OrderedDict") + b")R("
    filled = b"".join(plain(key) + value for key, value in items.items()) + b"u"
    return start + filled + plain({"_metadata": {"": {"version": 1}}}) + b"b"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def write_zip(
    path, value, storages=(), *, order="little", pack=zipfile.ZIP_STORED, more=()
):
    """Entries as torch's, of a pickle without start and end; `more` come last."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", pack) as archive:
        warnings.simplefilter("ignore")  # of duplicate names
        archive.writestr("any/data.pkl", program(value))
        archive.writestr("any/byteorder", order)
        for key, data in dict(storages).items():
            archive.writestr(f"any/data/{key}", data)
        archive.writestr("any/version", "3\n")
        for entry, data in more:
            archive.writestr(entry, data)
    return path


def write_older(path, value, storages=(), counts=None):
    """The format before torch 1.6; `storages` are arrays."""
    storages = dict(storages)
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    data = b"".join(pickle.dumps(part, 2) for part in head) + program(value)
    data += pickle.dumps(sorted(storages), 2)
    for key in sorted(storages):
        array = np.asarray(storages[key])
        count = (counts or {}).get(key, array.size)
        data += struct.pack("<q", count) + array.tobytes()
    path.write_bytes(data)
    return path
