"""Text files of lines and columns, read fast and with the line of every fault."""

from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import Int

_MOST_DIGITS = 18  # what int64 surely holds
_BOM = b"\xef\xbb\xbf"

# What a byte of an integer table is; all others are faults.
_NEITHER, _DIGIT, _SPACE, _END = 0, 1, 2, 3
_KIND = np.zeros(256, np.uint8)
_KIND[list(b"0123456789")] = _DIGIT
_KIND[list(b" \t\r")] = _SPACE
_KIND[ord("\n")] = _END


def line_error(file: epath.Path, number: int, what: str) -> ValueError:
    """The error to raise for a fault in a line, counted from 1."""
    return ValueError(f"{file}, line {number}: {what}")


def whole_number(field: bytes, name: str, file: epath.Path, number: int) -> int:
    """A field of a line as an integer from 0."""
    field = field.strip()
    if not field.isdigit() or len(field) > _MOST_DIGITS:
        shown = field[:40].decode("ascii", "backslashreplace")
        raise line_error(file, number, f"{name} is {shown!r}, expected a whole number")
    return int(field)


def text(field: bytes, file: epath.Path, number: int) -> str:
    """A field of a line as a string."""
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise line_error(file, number, "not UTF-8") from error


def read_lines(file: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and lines of a file, without blank ones at its end."""
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    blank: list[tuple[int, bytes]] = []
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                blank.append((number, line))
                continue
            yield from blank
            blank.clear()
            yield number, line.removeprefix(_BOM) if number == 1 else line


def read_integer_blocks(
    file: epath.Path, columns: int, *, block: int = 1 << 22
) -> Iterator[tuple[int, Int[np.ndarray, "lines columns"]]]:
    """Whole numbers from 0, separated by blanks, the same number in every line.

    Blank lines at the end of the file do not count.

    About 30 ns a number, and a few times `block` bytes of memory.

    Yields:
      number of the first line of the block, counted from 1, and its table.

    Raises:
      ValueError: with file and line, what is wrong with the line.
    """
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    number, rest = 1, b""
    with file.open("rb") as stream:
        while True:
            chunk = stream.read(block)
            data = rest + chunk
            if number == 1:
                data = data.removeprefix(_BOM)
            # The last line waits for its end, and blank ones for another after them.
            full = len(data.rstrip())
            cut = data.rfind(b"\n", 0, full) + 1 if chunk else full
            data, rest = data[:cut] + (b"" if chunk or not full else b"\n"), data[cut:]
            if data:
                table = _parse(data, columns, file, number)
                yield number, table
                number += len(table)
            if not chunk:
                return


def _parse(
    data: bytes, columns: int, file: epath.Path, number: int
) -> Int[np.ndarray, "lines columns"]:
    """A table of whole lines, the last ending in a newline."""
    kind = _KIND[np.frombuffer(data, np.uint8)]
    strange = kind == _NEITHER
    if strange.any():
        place = int(np.argmax(strange))
        byte = data[place : place + 1].decode("ascii", "backslashreplace")
        at = number + data.count(b"\n", 0, place)
        raise line_error(file, at, f"{byte!r} found, expected whole numbers")
    digit = kind == _DIGIT
    starts = np.flatnonzero(digit & ~np.append(False, digit[:-1]))
    newlines = np.flatnonzero(kind == _END)
    if not _is_regular(starts, newlines, columns):
        found = np.bincount(np.searchsorted(newlines, starts), minlength=len(newlines))
        line = int(np.argmax(found != columns))
        what = f"{found[line]} columns, expected {columns}"
        raise line_error(file, number + line, what)
    values = np.fromstring(data, np.int64, sep=" ")
    if values.size and values.max() >= 10**_MOST_DIGITS:
        line = int(np.argmax(values >= 10**_MOST_DIGITS)) // columns
        raise line_error(file, number + line, f"more than {_MOST_DIGITS} digits")
    return values.reshape(-1, columns)


def _is_regular(
    starts: Int[np.ndarray, " numbers"],
    newlines: Int[np.ndarray, " lines"],
    columns: int,
) -> bool:
    """Whether each line holds as many numbers as there are columns."""
    if len(starts) != columns * len(newlines):
        return False
    first, last = starts[::columns], starts[columns - 1 :: columns]
    return bool((last < newlines).all() and (first[1:] > newlines[:-1]).all())
