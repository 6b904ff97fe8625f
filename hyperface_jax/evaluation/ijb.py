"""IJB-B and IJB-C: what the files of the folder `meta` say.

The files are those that InsightFace distributes (SPEC: IJB):

- `ijbc_face_tid_mid.txt`: image, template, media.
- `ijbc_name_5pts_score.txt`: image, x y of five landmarks, detector score. Row n of
  both files is image n.
- `ijbc_template_pair_label.txt`: template, template, 1 (same person) or 0.
- `ijbc_1N_gallery_G1.csv`, `..._G2.csv` (S1 and S2 for IJB-B) and
  `ijbc_1N_probe_mixed.csv`: a header, then template, subject, ..., one row an image.

Templates are stored as *rows*: indices into `template_ids`, which is sorted, so they
are also rows of `templates.pool_templates`. Every fault of a file is a one-line
ValueError with its name and line.

Letters: N images, T templates, n pairs.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from hyperface_jax.evaluation.integer_table import (
    line_error,
    read_integer_blocks,
    read_lines,
    text,
    whole_number,
)

_GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


@dataclasses.dataclass(frozen=True, eq=False)
class Enrolment:
    """Templates of a gallery or of the probes, and who they are.

    Attributes:
      template: row of each template, each once, in the order of the file [n].
      subject: its subject id [n].
    """

    template: Int[np.ndarray, " n"]
    subject: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class IjbMetadata:
    """Contents of the folder `meta`.

    Attributes:
      image_names: file names in `loose_crop` [N].
      template_id: template id of each image [N].
      media_id: media id of each image, scoped within its template [N].
      landmarks: x, y of left eye, right eye, nose, left and right mouth corner in
        pixels of the loose crop [N, 5, 2].
      detector_score: of each image [N].
      template_ids: all template ids, rising [T].
      first: template row of the first of each pair [n], int32.
      second: template row of the second.
      is_genuine: whether they are one person [n].
      galleries: two of disjoint subjects; none where the folder has no 1:N files.
      probes: of the 1:N protocols, or None.
    """

    image_names: list[str]
    template_id: Int[np.ndarray, " N"]
    media_id: Int[np.ndarray, " N"]
    landmarks: Float[np.ndarray, "N 5 2"]
    detector_score: Float[np.ndarray, " N"]
    template_ids: Int[np.ndarray, " T"]
    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    is_genuine: Bool[np.ndarray, " n"]
    galleries: tuple[Enrolment, ...] = ()
    probes: Enrolment | None = None


def read_ijb(folder: str | os.PathLike, *, subset: str | None = None) -> IjbMetadata:
    """Reads the folder `meta` of IJB-B or IJB-C.

    The pair file of IJB-C has 15.6 million lines; it is read in blocks.

    Args:
      folder: local or remote (`gs://...`).
      subset: "ijbb" or "ijbc"; None for the one that is there.

    Raises:
      ValueError: the folder lacks a file, or a file has a fault.
    """
    path = epath.Path(folder)
    subset = subset or _find_subset(path)
    if subset not in _GALLERIES:
        raise ValueError(f"subset is {subset!r}, expected one of {sorted(_GALLERIES)}")
    names, template_id, media_id = read_images(path / f"{subset}_face_tid_mid.txt")
    landmarks, score = read_landmarks(path / f"{subset}_name_5pts_score.txt", names)
    template_ids = np.unique(template_id)
    pairs = path / f"{subset}_template_pair_label.txt"
    first, second, is_genuine = read_pairs(pairs, template_ids)
    stems = [f"gallery_{part}" for part in _GALLERIES[subset]] + ["probe_mixed"]
    files = [path / f"{subset}_1N_{stem}.csv" for stem in stems]
    enrolled = []
    if any(file.exists() for file in files):
        enrolled = [read_enrolment(file, template_ids) for file in files]
    return IjbMetadata(
        image_names=names,
        template_id=template_id,
        media_id=media_id,
        landmarks=landmarks,
        detector_score=score,
        template_ids=template_ids,
        first=first,
        second=second,
        is_genuine=is_genuine,
        galleries=tuple(enrolled[:2]),
        probes=enrolled[2] if enrolled else None,
    )


def read_images(
    file: epath.Path,
) -> tuple[list[str], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Image names, template ids and media ids of `..._face_tid_mid.txt`."""
    names, ids = [], []
    for number, line in read_lines(file):
        fields = line.split()
        if len(fields) != 3:
            raise line_error(file, number, f"{len(fields)} columns, expected 3")
        names.append(text(fields[0], file, number))
        for name, field in zip(("template", "media"), fields[1:], strict=True):
            ids.append(whole_number(field, name, file, number))
    if not names:
        raise ValueError(f"{file}: 0 images, expected at least 1")
    table = np.array(ids, np.int64).reshape(-1, 2)
    return names, table[:, 0].copy(), table[:, 1].copy()


def read_landmarks(
    file: epath.Path, names: list[str]
) -> tuple[Float[np.ndarray, "N 5 2"], Float[np.ndarray, " N"]]:
    """Landmarks and detector scores of `..._name_5pts_score.txt`.

    Args:
      file: the file.
      names: image names that its rows must have.
    """
    values = np.empty((len(names), 11), np.float32)
    row = -1
    for row, (number, line) in enumerate(read_lines(file)):
        fields = line.split()
        if len(fields) != 12:
            raise line_error(file, number, f"{len(fields)} columns, expected 12")
        name = text(fields[0], file, number)
        if row >= len(names):
            raise line_error(file, number, f"there are only {len(names)} images")
        if name != names[row]:
            what = f"image {name!r}, but the other file has {names[row]!r} in this row"
            raise line_error(file, number, what)
        try:
            numbers = [float(field) for field in fields[1:]]
        except ValueError as error:
            what = "landmarks or score are not numbers"
            raise line_error(file, number, what) from error
        # Compared with the largest float32; a NaN compares false.
        if not all(abs(value) < 3.4e38 for value in numbers):
            raise line_error(file, number, "landmarks or score are NaN or infinite")
        values[row] = numbers
    if row + 1 != len(names):
        raise ValueError(f"{file}: {row + 1} rows, expected {len(names)}, as images")
    return values[:, :10].reshape(-1, 5, 2).copy(), values[:, 10].copy()


def read_pairs(
    file: epath.Path, template_ids: Int[np.ndarray, " T"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Template rows (int32) and labels of `..._template_pair_label.txt`.

    Args:
      file: the file.
      template_ids: rising ids of the known templates.
    """
    rows_of = _row_finder(template_ids)
    parts: list[tuple[np.ndarray, ...]] = []
    for number, table in read_integer_blocks(file, 3):
        rows = rows_of(table[:, :2])
        if rows.size and rows.min() < 0:
            line, column = np.argwhere(rows < 0)[0]
            what = f"template {table[line, column]} has no image"
            raise line_error(file, number + int(line), what)
        label = table[:, 2]
        if label.size and label.max() > 1:
            line = int(np.argmax(label > 1))
            what = f"label is {label[line]}, expected 0 or 1"
            raise line_error(file, number + line, what)
        parts.append((rows[:, 0].copy(), rows[:, 1].copy(), label == 1))
    if not parts:
        raise ValueError(f"{file}: 0 pairs, expected at least 1")
    first, second, is_genuine = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return first, second, is_genuine


def read_enrolment(file: epath.Path, template_ids: Int[np.ndarray, " T"]) -> Enrolment:
    """Template rows and subjects of a gallery or probe CSV, each template once."""
    rows_of = _row_finder(template_ids)
    subject_of: dict[int, int] = {}
    for number, line in read_lines(file):
        fields = line.split(b",", 2)
        if number == 1:
            if fields[0].strip().isdigit():
                raise line_error(
                    file, 1, f"found {line.decode().strip()!r}, expected a header"
                )
            continue
        if len(fields) < 2:
            raise line_error(file, number, f"{len(fields)} columns, expected 2 or more")
        template = whole_number(fields[0], "template", file, number)
        subject = whole_number(fields[1], "subject", file, number)
        if template not in subject_of:
            if rows_of(np.array([template]))[0] < 0:
                raise line_error(file, number, f"template {template} has no image")
            subject_of[template] = subject
        elif subject_of[template] != subject:
            what = f"template {template} is subject {subject}, above it was "
            raise line_error(file, number, what + str(subject_of[template]))
    if not subject_of:
        raise ValueError(f"{file}: 0 templates, expected at least 1 below a header")
    rows = rows_of(np.array(list(subject_of)))
    return Enrolment(rows, np.array(list(subject_of.values())))


def _find_subset(folder: epath.Path) -> str:
    found = [s for s in _GALLERIES if (folder / f"{s}_face_tid_mid.txt").exists()]
    if len(found) != 1:
        what = " and ".join(found) or "neither"
        raise ValueError(f"{folder}: expected the files of ijbb or ijbc, found {what}")
    return found[0]


def _row_finder(
    template_ids: Int[np.ndarray, " T"],
) -> Callable[[np.ndarray], np.ndarray]:
    """Template ids of any shape -> int32 indices into template_ids, or -1."""
    rows = np.arange(len(template_ids), dtype=np.int32)
    # In IJB the ids are small: a table is some times faster than a search.
    if len(template_ids) and template_ids[-1] < 1 << 24:
        table = np.full(int(template_ids[-1]) + 2, -1, np.int32)
        table[template_ids] = rows
        return lambda ids: table[np.minimum(ids, len(table) - 1)]

    def search(ids):
        found = np.minimum(np.searchsorted(template_ids, ids), len(rows) - 1)
        return np.where(template_ids[found] == ids, rows[found], np.int32(-1))

    return search
