"""Reads five points of each face from text files."""

import math
import re
from collections.abc import Iterator

import numpy as np
from etils import epath


class BadLandmarksError(ValueError):
    """Points that make no face; the message says why."""


def five_of_68(points: np.ndarray) -> np.ndarray:
    """The five points of 68 (iBUG's numbers).

    The mean of both corners of each eye (36 and 39, 42 and 45), the nose tip 30, and
    the mouth's corners 48 and 54, all counted from 0.

    Args:
      points: [..., 68, 2].

    Returns:
      float64 [..., 5, 2].
    """
    points = np.asarray(points, np.float64)
    if points.shape[-2:] != (68, 2):
        raise BadLandmarksError(f"found shape {points.shape}, expected [68, 2]")
    corners = points[..., [[36, 39], [42, 45]], :].mean(axis=-2)
    return np.concatenate([corners, points[..., [30, 48, 54], :]], axis=-2)


def read_landmarks(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Five points of each image of a text file, one image a line.

    - `name x1 y1 ... x5 y5`, and perhaps a score that is not kept: IJB's
      `_name_5pts_score.txt`. Columns stand apart by tabs, else commas, else blanks, so
      a name with a blank in it needs tabs or commas. Lines before the first image with
      a count or names of columns are skipped (CelebA has one of each).
    - Old InsightFace's list, with tabs: `aligned path label x1 y1 x2 y2`, then five x,
      then five y. Its lines without points (images cut out already) are left out.

    Args:
      path: the file.

    Returns:
      name or path as in the file -> float32 [5, 2], in the file's order.

    Raises:
      ValueError: no such file, or a wrong line, with its number.
    """
    path = epath.Path(path)
    found: dict[str, np.ndarray] = {}
    for number, line in _lines(path):
        where = f"landmarks file {path}, line {number}"
        fields = _fields(line)
        if not found and number <= 2 and _is_header(fields):
            continue
        if _is_face2rec(fields) and len(fields) < 17:
            continue
        name, points = _parse(where, fields)
        if name in found:
            raise ValueError(f"{where}: {name} occurs a second time")
        found[name] = points
    if not found:
        raise ValueError(f"landmarks file {path}: no line with landmarks")
    return found


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    """Number and text of all lines that are not blank, one in memory at a time."""
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                try:
                    line = data.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise ValueError(
                        f"landmarks file {path}, line {number}: not UTF-8"
                    ) from None
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"landmarks file {path}: {error.strerror or error}") from None


def _fields(line: str) -> list[str]:
    for separator in ("\t", ","):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return line.split()


def _is_header(fields: list[str]) -> bool:
    """A count alone, or words only."""
    if len(fields) == 1:
        return fields[0].isdigit()
    return not any(re.search(r"^[+-]?\.?\d", field) for field in fields[1:])


def _is_face2rec(fields: list[str]) -> bool:
    return len(fields) in (3, 7, 17) and fields[0] in ("0", "1")


def _parse(where: str, fields: list[str]) -> tuple[str, np.ndarray]:
    if _is_face2rec(fields):
        name, numbers = fields[1], fields[7:17]
    elif len(fields) in (11, 12):
        name, numbers = fields[0], fields[1:11]
    else:
        raise ValueError(
            f"{where}: {len(fields)} fields found, expected a name and 10 numbers, or "
            "11 with a score"
        )
    if not name:
        raise ValueError(f"{where}: the name is empty")
    points = np.array([_number(where, text) for text in numbers], np.float32)
    shape = (2, 5) if len(fields) == 17 else (5, 2)
    points = points.reshape(shape)
    return name, points.T.copy() if len(fields) == 17 else points


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise ValueError(f"{where}: found {text[:40]!r}, expected a number")
    return value
