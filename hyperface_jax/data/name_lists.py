r"""Text files of names: one row a line, tabs between, any name survives.

A file name may hold a tab, a line break or bytes that are no UTF-8. In a list a tab is
written \t, a line break \n or \r, a backslash \\; lone surrogates (Python's stand-ins
for such bytes) as \udc80, the byte order mark, which editors put first, as \ufeff.
Ordinary names look as they are.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\ufeff": "\\ufeff"}
_PLAIN = {written: plain for plain, written in _ESCAPES.items()}


def escape(name: str) -> str:
    """The name as it stands in a list."""
    text = "".join(_ESCAPES.get(character, character) for character in name)
    return text.encode("utf-8", "backslashreplace").decode()


def unescape(text: str) -> str:
    """Inverse of `escape`."""

    def plain(found: re.Match[str]) -> str:
        code = found[0]
        return _PLAIN[code] if code in _PLAIN else chr(int(code[2:], 16))

    return re.sub(r"\\(?:[\\tnr]|ufeff|ud[89a-f][0-9a-f]{2})", plain, text)


def write_names(path: Path | epath.Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows of names; the file is whole or absent.

    Raises:
      OSError: it cannot be written; with its name, which a full disk does not say.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for row in rows:
                file.write(("\t".join(map(escape, row)) + "\n").encode())
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # of a file that the rows come from
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_names(path: epath.PathLike) -> list[list[str]]:
    """Rows of a list.

    Raises:
      ValueError: the file cannot be read as text.
    """
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from None
    # Not splitlines: a name may hold other characters that it takes for line breaks.
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [[unescape(cell) for cell in line.split("\t")] for line in lines]
