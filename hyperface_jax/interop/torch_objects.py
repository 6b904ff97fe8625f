"""What a PyTorch pickle may name, and our own code for it.

Names are never imported: `Opaque` holds the two strings. Tensors become views of NumPy
arrays; of optimizers, options and NumPy scalars, which training programs leave beside
the weights, nothing but the name is kept.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperface_jax.data.safe_pickle import UnsafePickleError

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the upper half of a float32
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "UntypedStorage": np.dtype("u1"),
}
"""Class of a storage -> type of its values in a little-endian file."""

MAX_AXES = 32
MAX_VALUES = 1 << 48


@dataclass(frozen=True)
class Opaque:
    """A class, a function, or an object made by it, of which only the name is known."""

    module: str
    name: str

    def __str__(self) -> str:
        """As "argparse.Namespace", on one line."""
        text = f"{self.module}.{self.name}"
        return (text if text.isprintable() else ascii(text))[:200]


# Modules whose objects may be in a file, unread.
_OPAQUE_MODULES = (
    "argparse",
    "collections",
    "datetime",
    "easydict",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torch.optim",
    "torch.torch_version",
    "typing",
)
_OPAQUE_NAMES = {
    Opaque("_codecs", "encode"),
    Opaque("torch", "Tensor"),
    Opaque("torch.nn.parameter", "Parameter"),
    *(
        Opaque("builtins", name)
        for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple")
    ),
}
_TORCH_DTYPES = {
    "bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64",
    "int8", "uint8",
}  # fmt: skip


def named(module: str, name: str) -> Opaque | str:
    """What a name in a pickle stands for: itself, or text for torch's dtypes.

    Raises:
      UnsafePickleError: the name is not on the lists of this file.
    """
    found = Opaque("builtins" if module == "__builtin__" else module, name)
    if module == "torch" and name in _TORCH_DTYPES:
        return f"torch.{name}"
    if found in _MAKERS or is_storage(found) or _is_opaque(found):
        return found
    raise UnsafePickleError(
        f"it names {found}, which is not allowed (a whole model? save its "
        "state_dict(), which is arrays only)"
    )


def made(function: Any, args: Any) -> Any:
    """What a call in a pickle stands for: the result of our own code, or an Opaque.

    Raises:
      UnsafePickleError: that may not be called.
      ValueError: the arguments are impossible.
    """
    if not isinstance(function, Opaque) or not isinstance(args, tuple):
        raise ValueError(f"a call of a {type(function).__name__}")
    if function in _MAKERS:
        return _MAKERS[function](*args)
    if _is_opaque(function):
        return function
    raise UnsafePickleError(f"it calls {function}, which is not allowed")


def is_storage(found: Any) -> bool:
    """The name is a class of `STORAGES`."""
    return (
        isinstance(found, Opaque)
        and found.module in ("torch", "torch.cuda", "torch.storage")
        and found.name in STORAGES
    )


def _is_opaque(found: Opaque) -> bool:
    return found in _OPAQUE_NAMES or any(
        found.module == module or found.module.startswith(module + ".")
        for module in _OPAQUE_MODULES
    )


def hashable(keys: Iterable[Any]) -> list[Any]:
    """The keys, if hashing them cannot go deep (a tuple of tuples of ... would).

    Raises:
      ValueError: a key is neither a number, text or name, nor a tuple of these.
    """
    keys = list(keys)
    plain = (str, int, float, bool, bytes, type(None), Opaque)
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            if type(part) not in plain:
                raise ValueError(f"a {type(part).__name__} as key")
    return keys


def view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Read-only view of a storage [N] as a tensor; copies nothing.

    Args:
      storage: values [N].
      offset: index of the first.
      size: shape.
      stride: in values, one for each axis.

    Raises:
      ValueError: it reaches beyond the storage, or has more values than that.
    """
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    for number in (offset, *size, *stride):
        if type(number) is not int or not 0 <= number < MAX_VALUES:
            raise ValueError("a tensor whose offset, size or stride is no such number")
    if len(size) != len(stride) or len(size) > MAX_AXES:
        raise ValueError(f"a tensor with {len(size)} sizes and {len(stride)} strides")
    count = math.prod(size)
    if not count:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage) or count > len(storage):
        raise ValueError(
            f"a tensor {list(size)} with strides {list(stride)} at {offset} does not "
            f"fit into its storage of {len(storage)} values"
        )
    step = storage.strides[0]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * n for n in stride], writeable=False
    )


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_subclass(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return made(function, args)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in pairs]
    keys = hashable(key for key, _ in pairs)
    return dict(zip(keys, (value for _, value in pairs), strict=True))


def _set(members: Any = ()) -> set[Any]:
    return set(hashable(members))


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers)


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, str | int))


_MAKERS: dict[Opaque, Callable] = {
    Opaque("builtins", "set"): _set,
    Opaque("collections", "OrderedDict"): _ordered_dict,
    Opaque("torch", "Size"): _size,
    Opaque("torch", "device"): _device,
    Opaque("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
    Opaque("torch._utils", "_rebuild_parameter"): _parameter,
    Opaque("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Opaque("torch._utils", "_rebuild_tensor"): view,
    Opaque("torch._utils", "_rebuild_tensor_v2"): view,
}
