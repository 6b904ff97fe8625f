"""Reading pickles of other people without running their code.

A pickle is a program: it may import and call anything. This reader builds lists,
tuples, bytes, strings and numbers, and knows six names (five of NumPy's), for which it
has stand-ins of its own. Whatever else a pickle names is refused before it is imported.
"""

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np


class UnsafePickleError(ValueError):
    """A pickle that names something outside the allowed list."""


class _DType:
    """Stand-in for numpy.dtype: remembers its name."""

    def __init__(self, name: Any, *_: Any):
        if isinstance(name, bytes):
            name = name.decode("latin1")
        if not isinstance(name, str) or len(name) > 40:
            raise ValueError("a dtype without a name")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: of no interest for one-byte types."""

    def of_one_byte(self) -> np.dtype:
        """The dtype, if it is one that images and answers are stored in."""
        if self.name not in ("u1", "i1", "b1", "uint8", "bool"):
            raise ValueError(f"array of dtype {self.name!r}, expected uint8 or bool")
        return np.dtype(self.name)


class _Array:
    """Stand-in for numpy.ndarray: filled by the BUILD opcode."""

    def __init__(self, *_: Any):
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise ValueError("array without dtype or data")
        flat = np.frombuffer(data, dtype.of_one_byte())
        self.value = flat.reshape([int(n) for n in shape])


def _frombuffer(buffer: Any, dtype: Any, shape: Any, *_: Any) -> _Array:
    """numpy._core.numeric._frombuffer: an array as protocol 5 writes it."""
    if not isinstance(buffer, bytes | bytearray):
        raise ValueError("array without bytes")
    array = _Array()
    array.__setstate__((1, shape, dtype, False, bytes(buffer)))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    """numpy.core.multiarray.scalar: a number of one byte."""
    if not isinstance(dtype, _DType) or not isinstance(data, bytes):
        raise ValueError("scalar without dtype or data")
    return np.frombuffer(data, dtype.of_one_byte())[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, as protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1", b"latin1") or not isinstance(text, str):
        raise ValueError("text in another encoding, expected latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array
    _ALLOWED[_module, "scalar"] = _scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[_module, "_frombuffer"] = _frombuffer


# The pickle module's own Python class and not the C one: its memo is a dict, where the
# C one allocates an array as long as the largest index that a file names, and the table
# of its instructions can be changed.
_Python: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Cautious(_Python):
    """Without instructions that allocate before they read, or reach outside a file."""

    def load(self) -> Any:
        """What the pickle describes."""
        try:
            return super().load()
        except EOFError:
            raise EOFError("it ends too early") from None

    def _bytearray(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))  # may be a lie
        data = self.read(count)
        if len(data) != count:
            raise ValueError(f"{count} bytes promised, {len(data)} found")
        self.append(bytearray(data))

    dispatch = _Python.dispatch | {pickle.BYTEARRAY8[0]: _bytearray}
    # The interpreter's registry, and buffers of whoever reads the pickle.
    for _code in (
        pickle.EXT1, pickle.EXT2, pickle.EXT4,
        pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    ):  # fmt: skip
        del dispatch[_code[0]]


class _Unpickler(Cautious):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"it names {module}.{name}, which is not allowed"
            ) from None

    def _attributes(self) -> None:
        """Only our stand-ins take any: a function's defaults are attributes, too."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _DType):
            kind = type(self.stack[-1]).__name__
            raise ValueError(f"attributes for a {kind}")
        self.stack[-1].__setstate__(state)

    dispatch = Cautious.dispatch | {pickle.BUILD[0]: _attributes}


def load_pickle(data: bytes) -> Any:
    """The object in a pickle of protocol 0 to 5, of Python 2 or 3.

    Strings of Python 2 become bytes; arrays of bytes become uint8 arrays.

    Raises:
      UnsafePickleError: it names something that is not allowed.
      ValueError: it is damaged.
    """
    try:
        loaded = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except UnsafePickleError:
        raise
    except RecursionError:
        raise ValueError("damaged pickle (nested too deeply)") from None
    except Exception as error:  # a damaged program may fail anyhow and anywhere
        raise ValueError(
            f"damaged pickle ({type(error).__name__}: {error})"[:200]
        ) from None
    return loaded.value if isinstance(loaded, _Array) else loaded


def array_bytes(value: Any) -> bytes | None:
    """Bytes of a bytes object or of an array of bytes; None for anything else."""
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return bytes(value) if isinstance(value, bytes | bytearray) else None
