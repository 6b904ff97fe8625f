"""Lists of images: im2rec, face2rec2, OpenSphere, MagFace, FaceX-Zoo, CVLface.

One image a line. The format is told by the columns of the whole file. Where blanks
separate them, columns are counted from the right, so a path may hold blanks.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from hyperface_jax.data.face_set import FaceSet, fingerprint_of, sample_of
from hyperface_jax.data.image_files import FolderReader
from hyperface_jax.data.image_names import is_image
from hyperface_jax.data.records import ImageSource

SUFFIXES = (".lst", ".txt", ".tsv", ".list")


class ListedImage(NamedTuple):
    """One line: path below the root, and whom it shows."""

    path: str
    identity: str


def _im2rec(fields: list[str]) -> ListedImage | None:
    """`index<TAB>label...<TAB>path`: the first label counts."""
    if len(fields) < 3 or not _number(fields[0]) or not _number(fields[1]):
        return None
    return ListedImage(fields[-1], _whole(fields[1]))


def _face2rec(fields: list[str]) -> ListedImage | None:
    """`aligned<TAB>path<TAB>label[<TAB>box and points]` of old InsightFace."""
    if len(fields) < 3 or fields[0] not in ("0", "1") or not _number(fields[2]):
        return None
    return ListedImage(fields[1], _whole(fields[2]))


def _cvlface(fields: list[str]) -> ListedImage | None:
    """`index<TAB>path<TAB>label` of CVLface."""
    if len(fields) != 3 or not _number(fields[0]) or not _number(fields[2]):
        return None
    return ListedImage(fields[1], _whole(fields[2]))


def _magface(fields: list[str]) -> ListedImage | None:
    """`path 0 id 0`."""
    if len(fields) != 4 or fields[1] != "0" or fields[3] != "0":
        return None
    return ListedImage(fields[0], fields[2])


def _named(fields: list[str]) -> ListedImage | None:
    """`path name` of OpenSphere, `path label` of FaceX-Zoo."""
    return ListedImage(fields[0], fields[1]) if len(fields) == 2 else None


def _bare(fields: list[str]) -> ListedImage | None:
    """`NAME/file`: the folder is the person (OpenSphere's present lists)."""
    if len(fields) != 1 or "/" not in fields[0] or "\t" in fields[0]:
        return None
    if re.match(r"\d+\s+[\d.]+\s", fields[0]):
        return None  # im2rec's with blanks for its tabs, and no path
    return ListedImage(fields[0], fields[0].split("/")[-2])


def _tabs(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")]


def _blanks(columns: int) -> Callable[[str], list[str]]:
    """Any run of blanks or tabs separates; the first column gets what is left over."""
    return lambda line: line.rsplit(None, columns - 1)


Columns = Callable[[str], list[str]]
LISTS: dict[str, tuple[Columns, Callable[[list[str]], ListedImage | None]]] = {
    "im2rec": (_tabs, _im2rec),
    "face2rec": (_tabs, _face2rec),
    "cvlface": (_tabs, _cvlface),
    "magface": (_blanks(4), _magface),
    "named": (_blanks(2), _named),
    "bare": (lambda line: [line], _bare),
}
"""Name -> columns of a line and their parser; the first that fits all lines wins."""


def open_list(
    path: epath.PathLike, *, root: epath.PathLike = "", kind: str = "auto"
) -> FaceSet:
    """Images of a list, in its order; identities sorted, numbers as numbers.

    Args:
      path: the list.
      root: folder that its paths are relative to; default: the list's own.
      kind: of `LISTS`, or "auto".

    Raises:
      ValueError: no format fits every line, with the line.
    """
    where = epath.Path(path)
    images = parse_list(where, kind)
    names = sorted({image.identity for image in images}, key=_natural)
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[image.identity] for image in images], np.int32)
    files = [image.path for image in images]
    folder = epath.Path(root) if root else where.parent
    reader = FolderReader(folder, files)
    return FaceSet(
        name=where.name.rsplit(".", 1)[0],
        source=ImageSource(reader, labels, files),
        rows=np.arange(len(files)),
        labels=labels,
        source_labels=labels,
        identities=tuple(names),
        fingerprint=fingerprint_of(
            "list", files, labels, sample_of(reader, len(files))
        ),
    )


def parse_list(path: epath.Path, kind: str = "auto") -> list[ListedImage]:
    """All lines; blank ones are skipped.

    Raises:
      ValueError: no format fits every line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from None
    if kind != "auto" and kind not in LISTS:
        raise ValueError(f"list format {kind!r}, expected one of {', '.join(LISTS)}")
    lines = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: no line found, expected one image a line")
    furthest = (0, "")
    for name in LISTS if kind == "auto" else (kind,):
        columns, parse = LISTS[name]
        images, failed = [], None
        for number, line in lines:
            image = parse(columns(line.strip()))
            if image is None or not is_image(image.path.rsplit("/", 1)[-1]):
                failed = (number, line)
                break
            images.append(image)
        if failed is None:
            return images
        furthest = max(furthest, failed)
    formats = ", ".join(LISTS) if kind == "auto" else kind
    raise ValueError(
        f"{path}, line {furthest[0]}: found {furthest[1][:60]!r}, which fits none of "
        f"the formats {formats}"
    )


def _number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.0*)?", text) is not None


def _whole(text: str) -> str:
    return text.split(".")[0].lstrip("0") or "0"


def _natural(name: str) -> tuple[int, int, str, str]:
    """9 before 10, numbers before names."""
    if not name.isdecimal():
        return (1, 0, "", name)
    # By length and digits: int() refuses numbers of thousands of digits.
    digits = name.lstrip("0")
    return (0, len(digits), digits, name)
