"""An InsightFace folder as it is: train.rec, train.idx, property.

Layouts that occur (SPEC of each in its writer): with a header record (key 0, labels
[a, b]: images are keys 1..a-1, identity records a..b-1, each with the range of its
images' keys) or without (im2rec: every record is an image); labels scalar or arrays.

Key ranges are stored as float32, so beyond 2^24 = 16 777 216 they are rounded to even
numbers and beyond 2^25 to multiples of 4: Glint360K's own header is wrong by up to 1.
They are used only where they are exact, else every image's own label is read.
"""

import logging
from collections.abc import Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from hyperface_jax.data.face_set import FaceSet, drop_empty, fingerprint_of, sample_of
from hyperface_jax.data.recordio import RecordFile, RecordIOError
from hyperface_jax.data.records import BadRecordError, Record, file_error

log = logging.getLogger(__name__)

EXACT_KEYS = 1 << 24
"""float32 holds whole numbers up to here."""

_SAMPLED = 64  # records read when the folder is opened, to see that the files fit


class RecordIOSource:
    """Image records of a RecordFile that holds nothing else.

    Args:
      file: the records.
    """

    def __init__(self, file: RecordFile):
        self._file = file

    def __len__(self) -> int:
        return len(self._file)

    @property
    def ids(self) -> Sequence[str]:
        """Key of each record."""
        return [str(key) for key in self._file.keys]

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Record]:
        """Records; the id is the key."""
        return [self._record(int(row)) for row in rows]

    def _record(self, row: int) -> Record:
        try:
            payload = self._file.read(row)
            label = whole_label(payload.labels)
        except BadRecordError as error:
            return error
        except OSError as error:  # a bad sector must not end a run of weeks
            return file_error(f"{self._file.path}, record {row}", error)
        return {"image": payload.image, "label": label, "id": str(self._file.keys[row])}

    def take(self, rows: np.ndarray) -> "RecordIOSource":
        """The given rows as a source of their own."""
        return RecordIOSource(self._file.take(rows))


def whole_label(labels: np.ndarray) -> int:
    """The first label, if it is a whole number from 0.

    Raises:
      BadRecordError: it is not.
    """
    value = float(labels[0])
    if not (0 <= value < 1 << 31 and value == int(value)):
        raise BadRecordError(f"label is {value}, expected a whole number from 0")
    return int(value)


def is_insightface(folder: epath.Path) -> bool:
    """True for a folder with a train.rec."""
    return (folder / "train.rec").exists()


def open_insightface(path: epath.PathLike) -> FaceSet:
    """All images of an InsightFace folder in the order of their keys.

    Args:
      path: folder with train.rec, train.idx and, as a rule, property.

    Returns:
      Names of identities are their labels. Images with an unusable label are listed in
      `rejected` and are not part of the set.

    Raises:
      ValueError: a file is missing, or index and records do not belong together.
    """
    folder = epath.Path(path)
    for name in ("train.rec", "train.idx"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: no {name}, expected InsightFace's files")
    file = RecordFile.open(folder / "train.rec", folder / "train.idx")
    _check_pair(file)
    images, identities = split_file(file)
    if not len(images):
        raise ValueError(f"{folder}: no image among {len(file)} records")
    labels = _labels_from_ranges(images, identities)
    rejected: dict[str, str] = {}
    if labels is None:
        labels, rejected = _scan_labels(images)
    usable = labels >= 0
    if not usable.any():
        raise ValueError(f"{folder}: none of {len(labels)} records has a usable label")
    if rejected:
        log.warning(
            "%s: %d of %d records have no usable label, left out (first key %s: %s)",
            *(folder, len(rejected), len(labels), *next(iter(rejected.items()))),
        )
    count = _num_classes(folder, labels)
    faces = FaceSet(
        name=folder.name,
        source=RecordIOSource(images),
        rows=np.flatnonzero(usable).astype(np.int32),
        labels=labels if usable.all() else labels[usable],
        source_labels=labels,
        identities=tuple(map(str, range(count))),
        fingerprint=fingerprint_of(
            "recordio",
            file.size,
            images.keys,
            labels,
            sample_of(lambda row: images.read(row).image, len(images)),
        ),
        rejected=rejected,
    )
    return drop_empty(faces)


def _check_pair(file: RecordFile) -> None:
    """Looks at a few records: an index of another file points at anything."""
    sample = np.unique(np.linspace(0, len(file) - 1, _SAMPLED).astype(int))
    errors = []
    for position in sample:
        try:
            file.read_labels(int(position))
        except RecordIOError as error:
            errors.append(error)
    if past := file.past_end():
        raise ValueError(
            f"{file.path}: {past} of {len(file)} records of the index lie past its end "
            f"({file.size} bytes): it is cut off, or train.idx belongs to another file"
        )
    if after := file.after_last():
        raise ValueError(
            f"{file.path}: goes on for {after:,} bytes after the last record of "
            "train.idx, which is cut off or belongs to another file"
        )
    if len(errors) > len(sample) // 2:
        raise ValueError(
            f"{file.path} and its train.idx do not belong together: {len(errors)} of "
            f"{len(sample)} records looked at are none ({errors[0]})"
        )


def split_file(file: RecordFile) -> tuple[RecordFile, RecordFile | None]:
    """The images, and the identity records where there is a header record.

    Identity records are the last ones: no image, and a range of keys as labels. They
    are looked at from the end, because the header's own numbers may be rounded. What
    is damaged between the last image and the first identity record counts as an image,
    so that it is reported as one.
    """
    if file.keys[0] != 0 or _kind(file, 0) == "image":
        return file, None
    border = len(file)
    for position in range(len(file) - 1, 0, -1):
        kind = _kind(file, position)
        if kind == "image":
            break
        if kind == "identity":
            border = position
    return file.take(slice(1, border)), file.take(slice(border, None))


def _kind(file: RecordFile, position: int) -> str:
    """`image`, `identity` (or header: a range of keys without an image), `damaged`."""
    try:
        record = file.read(position)
    except RecordIOError:
        return "damaged"
    if record.image or record.flag < 2:
        return "image"
    start, stop = record.labels[:2]
    first, last = file.keys[0], float(file.keys[-1])
    # float32 rounds keys: the last range may seem to end a little beyond the last key.
    within = max(first, 1) <= start <= stop <= 1.001 * last + 2
    return "identity" if within and start == int(start) else "image"


def _labels_from_ranges(
    images: RecordFile, identities: RecordFile | None
) -> np.ndarray | None:
    """Label of each image from the identity records, where these can be trusted."""
    if identities is None or not len(identities) or identities.keys[-1] > EXACT_KEYS:
        return None
    try:
        limits = np.array(
            [identities.read(k).labels[:2] for k in range(len(identities))], np.float64
        )
    except (RecordIOError, ValueError):
        return None
    if limits.ndim != 2 or limits.shape[1] != 2 or not np.isfinite(limits).all():
        return None
    keys, (starts, stops) = images.keys, limits.astype(np.int64).T
    tiles = (starts[1:] == stops[:-1]).all() and (stops >= starts).all()
    if not tiles or starts[0] != keys[0] or stops[-1] != int(keys[-1]) + 1:
        return None
    labels = np.empty(len(keys), np.int32)
    for start in range(0, len(keys), 1 << 20):
        part = slice(start, start + (1 << 20))
        labels[part] = np.searchsorted(stops, keys[part], side="right")
    for k in np.unique(np.linspace(0, len(keys) - 1, _SAMPLED).astype(int)):
        try:
            if whole_label(images.read_labels(int(k))) != labels[k]:
                return None
        except BadRecordError:
            continue
    return labels


def _scan_labels(images: RecordFile) -> tuple[np.ndarray, dict[str, str]]:
    """Label of each image from its own record, -1 where it cannot be used."""
    labels = np.full(len(images), -1, np.int32)
    rejected = {}
    # One label of 3e9 must not make three billion classes.
    most = 2 * max(len(labels), 1000)
    for k in tqdm(range(len(images)), "labels", disable=len(images) < 1e5):
        try:
            label = whole_label(images.read_labels(k))
            if label >= most:
                raise BadRecordError(f"label is {label}: out of range")
            labels[k] = label
        except BadRecordError as error:
            rejected[str(images.keys[k])] = str(error)
    return labels, rejected


def _num_classes(folder: epath.Path, labels: np.ndarray) -> int:
    """From the labels in use; `property` may promise more, but not fewer."""
    found = int(labels.max()) + 1
    promised = read_property(folder)
    if promised is not None and found > promised[0]:
        raise ValueError(
            f"{folder / 'property'}: {promised[0]} classes, but there is a label "
            f"{found - 1}"
        )
    return found


def read_property(folder: epath.Path) -> tuple[int, int, int] | None:
    """Classes, height and width; None where there is no such file.

    Raises:
      ValueError: its first line is not three whole numbers.
    """
    path = folder / "property"
    if not path.exists():
        return None
    lines = path.read_bytes().decode("ascii", "replace").split()
    fields = lines[0].split(",") if lines else []
    if len(fields) != 3 or not all(f.isdecimal() and len(f) < 19 for f in fields):
        raise ValueError(f"{path}: found {lines[:1]}, expected 'classes,height,width'")
    return int(fields[0]), int(fields[1]), int(fields[2])
