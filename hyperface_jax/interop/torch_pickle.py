"""The pickle inside a PyTorch file, read without torch and without running it.

A pickle names classes and functions and says when to call them. Here a name stays a
name: nothing is imported, and every instruction that would call, build or fill an
object is replaced by one that knows `torch_objects` only. Other names are

- kept as an inert `Opaque` if they belong to what training programs leave beside the
  weights: what was in the object is forgotten;
- refused if not, with one line that says which: `os.system` as well as a whole model
  that was saved instead of its state_dict.

The rule does not depend on where in the file the name is.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from hyperface_jax.data.safe_pickle import Cautious, UnsafePickleError
from hyperface_jax.interop.torch_objects import (
    MAX_AXES,
    MAX_VALUES,
    STORAGES,
    Opaque,
    hashable,
    is_storage,
    made,
    named,
    view,
)

OpenStorage = Callable[[str, str, int], np.ndarray]
"""(key, class in `STORAGES`, number of values N) -> values [N], native byte order."""


class Unpickler(Cautious):
    """Reads one pickle, of any protocol, from where the file stands.

    Args:
      file: in memory, so that a lie about a length cannot allocate.
      open_storage: gives the values of a storage.
    """

    def __init__(self, file: IO, open_storage: OpenStorage):
        super().__init__(file, encoding="latin1")
        self._open_storage = open_storage

    def read(self) -> Any:
        """The object: dicts, lists, tuples, sets, numbers, text, arrays, Opaque.

        Raises:
          UnsafePickleError: it names something that is not allowed.
          ValueError: it is damaged.
        """
        try:
            return self.load()
        except UnsafePickleError:
            raise
        except Exception as error:  # a damaged program may fail anyhow and anywhere
            raise ValueError(
                f"damaged pickle ({type(error).__name__}: {error!s:.300})"
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        """A name, never the thing."""
        return named(module, name)

    def persistent_load(self, pid: Any) -> np.ndarray:
        """('storage', class, key, device, number of values[, view of older files])."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, count = pid[:5]
        if not is_storage(kind) or type(key) is not str:
            raise ValueError("a storage without class or key")
        if type(count) is not int or not 0 <= count < MAX_VALUES:
            raise ValueError(f"storage {key!r:.40} of an impossible size")
        values = self._open_storage(key, kind.name, count)
        if len(pid) == 6 and pid[5] is not None:
            _, offset, length = pid[5]
            return view(values, offset, (length,), (1,))
        return values

    def _call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = made(self.stack[-1], args)

    def _call_with_keywords(self) -> None:
        if self.stack.pop():
            raise ValueError("a call with keywords")
        self._call()

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        function = named(module, name)
        args = tuple(self.pop_mark())
        self.append(made(function, args))

    def _object(self) -> None:
        function, *args = self.pop_mark()
        self.append(made(function, tuple(args)))

    def _attributes(self) -> None:
        """Not kept; a state_dict has `_metadata`."""
        self.stack.pop()
        self._top(Opaque, dict)

    def _put_items(self, items: list[Any]) -> None:
        target = self._top(Opaque, dict)
        keys = hashable(items[0::2])
        if isinstance(target, dict):
            target.update(zip(keys, items[1::2], strict=True))

    def _put_members(self, members: list[Any]) -> None:
        target = self._top(Opaque, list, set)
        if isinstance(target, list):
            target.extend(members)
        elif isinstance(target, set):
            target.update(hashable(members))

    def _top(self, *kinds: type) -> Any:
        top = self.stack[-1]
        if type(top) not in kinds:
            raise ValueError(f"something put into a {type(top).__name__}")
        return top

    def _item(self) -> None:
        value = self.stack.pop()
        self._put_items([self.stack.pop(), value])

    def _items(self) -> None:
        self._put_items(self.pop_mark())

    def _member(self) -> None:
        self._put_members([self.stack.pop()])

    def _members(self) -> None:
        self._put_members(self.pop_mark())

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put_items(items)

    def _frozenset(self) -> None:
        self.append(frozenset(hashable(self.pop_mark())))

    dispatch = Cautious.dispatch | {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: _call_with_keywords,
        pickle.INST[0]: _instance,
        pickle.OBJ[0]: _object,
        pickle.BUILD[0]: _attributes,
        pickle.SETITEM[0]: _item,
        pickle.SETITEMS[0]: _items,
        pickle.APPEND[0]: _member,
        pickle.APPENDS[0]: _members,
        pickle.ADDITEMS[0]: _members,
        pickle.DICT[0]: _dict,
        pickle.FROZENSET[0]: _frozenset,
    }


# --- writing --------------------------------------------------------------------------

_KINDS = {
    dtype: kind
    for kind, dtype in STORAGES.items()
    if kind not in ("BFloat16Storage", "UntypedStorage")
}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def dump(tree: Mapping[str, Any]) -> tuple[bytes, list[np.ndarray]]:
    """A pickle that torch.load(weights_only=True) accepts, and its storages.

    Args:
      tree: name -> array, number, text, or another such mapping.

    Returns:
      (the pickle; arrays, little-endian, of the storages "0", "1", ...).

    Raises:
      ValueError: an array has a dtype or number of axes that is not known here.
    """
    arrays: list[np.ndarray] = []
    return b"\x80\x02" + b"".join(_instructions(tree, arrays)) + b".", arrays


def _instructions(value: Any, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """Pickle of a value, with its arrays apart."""
    if isinstance(value, Mapping):
        yield _ORDERED_DICT + b"("
        for name, item in value.items():
            yield _plain(str(name))
            yield from _instructions(item, arrays)
        yield b"u"
    elif type(value) in (bool, int, float, str):
        yield _plain(value)
    else:
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _KINDS or array.ndim > MAX_AXES:
            raise ValueError(f"a {array.dtype} array cannot be written")
        strides = [math.prod(array.shape[n + 1 :]) for n in range(array.ndim)]
        yield b"ctorch._utils\n_rebuild_tensor_v2\n((" + _plain("storage")
        yield f"ctorch\n{_KINDS[dtype]}\n".encode()
        yield _plain(str(len(arrays))) + _plain("cpu") + _plain(array.size) + b"tQ"
        yield _plain(0) + _plain(array.shape) + _plain(tuple(strides))
        yield _plain(False) + _ORDERED_DICT + b"tR"
        arrays.append(array.astype(dtype, copy=False))


def _plain(value: Any) -> bytes:
    """Pickle of a number, text or tuple of numbers, without start and end."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.fast = True  # no memo
    pickler.dump(value)
    return stream.getvalue()[2:-1]
