"""The .idx file beside a .rec: key and byte offset of each record."""

import warnings

import numpy as np
from etils import epath

_INDEX_BLOCK = 1 << 22  # bytes of text parsed at a time
_LIMIT = 10**18  # of keys and offsets: 18 digits, which int64 surely holds


def read_index(path: epath.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a .idx file, lines "key<TAB>offset".

    Returns:
      keys and offsets, int64 [N], in the order of the file.

    Raises:
      ValueError: a line that is not two whole numbers, or no line.
    """
    found = []
    try:
        with epath.Path(path).open("rb") as file:
            rest = b""
            while block := file.read(_INDEX_BLOCK):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                found.append(_parse_index(path, whole + newline))
            found.append(_parse_index(path, rest))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    numbers = np.concatenate(found)
    if not len(numbers):
        raise ValueError(f"{path}: no line 'key offset' found")
    return np.ascontiguousarray(numbers[:, 0]), np.ascontiguousarray(numbers[:, 1])


def _parse_index(path: epath.PathLike, text: bytes) -> np.ndarray:
    """Key and offset of each line, int64 [n, 2]."""
    with warnings.catch_warnings():
        # Older NumPy warns where newer raises: both mean a line that is no number.
        warnings.simplefilter("error")
        try:
            numbers = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
        except (ValueError, DeprecationWarning, UnicodeDecodeError):
            raise _bad_index(path, text) from None
    lines = text.count(b"\n") + (not text.endswith(b"\n") and len(text) > 0)
    inside = not len(numbers) or 0 <= numbers.min() <= numbers.max() < _LIMIT
    if len(numbers) != 2 * lines or not inside:
        raise _bad_index(path, text)
    return numbers.reshape(-1, 2)


def _bad_index(path: epath.PathLike, text: bytes) -> ValueError:
    """Only now, line by line: which line is it?"""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 2 or not all(f.isdigit() and len(f) < 19 for f in fields):
            return ValueError(
                f"{path}, line {_line_number(path, line)}: found "
                f"{line[:40].decode(errors='replace')!r}, expected 'key offset'"
            )
    return ValueError(f"{path}: lines that are not 'key offset'")


def _line_number(path: epath.PathLike, line: bytes) -> int:
    with epath.Path(path).open("rb") as file:
        for number, found in enumerate(file, start=1):
            if found.splitlines()[0] == line:
                return number
    return 0
