"""Writes the files of other software, for tests: RecordIO, .bin."""

import io
import itertools
import pickle
import struct
from pathlib import Path

import numpy as np
import toy

MAGIC = struct.pack("<I", 0xCED7230A)


def frame(payload: bytes) -> bytes:
    """A record as dmlc's writer stores it: cut at every aligned magic number."""
    cuts = [k for k in range(0, len(payload) - 3, 4) if payload[k : k + 4] == MAGIC]
    edges = [-4, *cuts, len(payload)]
    parts = [payload[a + 4 : b] for a, b in itertools.pairwise(edges)]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    out = b""
    for flag, part in zip(flags, parts, strict=True):
        out += MAGIC + struct.pack("<I", flag << 29 | len(part)) + part
        out += b"\0" * (-len(part) % 4)
    return out


def image_payload(label, image: bytes, key: int = 0) -> bytes:
    """IRHeader and image; a sequence of labels is stored as an array."""
    if np.ndim(label) == 0:
        return struct.pack("<IfQQ", 0, float(label), key, 0) + image
    labels = np.asarray(label, "<f4")
    return struct.pack("<IfQQ", len(labels), 0.0, key, 0) + labels.tobytes() + image


def write_records(folder: Path, records, *, header_last: bool = True) -> Path:
    """train.rec and train.idx from (key, payload) in the order of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, offset = [], 0
    with (folder / "train.rec").open("wb") as file:
        for key, payload in records:
            data = frame(payload)
            file.write(data)
            lines.append(f"{key}\t{offset}\n")
            offset += len(data)
    (folder / "train.idx").write_text("".join(lines))
    return folder


def write_insightface(
    folder: Path, *, people=5, images=4, array_label=False, size=32, first_key=1
) -> Path:
    """Images, then identity records, then (last in the file) the header: key 0."""
    records, ranges, key = [], [], first_key
    for person in range(people):
        start = key
        for index in range(images):
            image = toy.jpeg(toy.person_image(person, index, size))
            label = [person, 0.0] if array_label else person
            records.append((key, image_payload(label, image, key)))
            key += 1
        ranges.append((start, key))
    border = key
    for start, stop in ranges:
        records.append((key, image_payload([start, stop], b"", key)))
        key += 1
    records.append((0, image_payload([border, key], b"")))
    write_records(folder, records)
    (folder / "property").write_text(f"{people},{size},{size}\n")
    return folder


def write_bin(path: Path, *, pairs=20, size=32, kind="py3", people=5) -> Path:
    """Pairs in turn genuine and impostor; `kind` py2, py3 or ndarray."""
    images, answers = [], []
    for k in range(pairs):
        same = k % 2 == 0
        other = k % people if same else (k + 1) % people
        for person, index in ((k % people, 2 * k), (other, 2 * k + 1)):
            image = toy.jpeg(toy.person_image(person, index, size))
            images.append(
                np.frombuffer(image, np.uint8) if kind == "ndarray" else image
            )
        answers.append(same)
    if kind == "py2":
        path.write_bytes(python2_pickle(images, answers))
    else:
        path.write_bytes(
            pickle.dumps((images, answers), protocol=2 if kind == "ndarray" else 4)
        )
    return path


def python2_pickle(images, answers) -> bytes:
    """What Python 2's cPickle writes for a tuple of str and bool lists, protocol 2."""
    out = io.BytesIO()
    out.write(b"\x80\x02](")
    for image in images:
        out.write(b"T" + struct.pack("<i", len(image)) + image)  # BINSTRING
    out.write(b"e](")
    for answer in answers:
        out.write(b"\x88" if answer else b"\x89")
    out.write(b"e\x86.")
    return out.getvalue()
