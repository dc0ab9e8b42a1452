"""The table of tensors in PyTorch's pickle, read without unpickling. Knows no file and no bytes of a tensor.

A pickle is a program for a stack machine, and Python's can call anything. This machine has the instructions that
`torch.save` uses for a dict of tensors and no other, and knows three functions by name, which it does not call: it
notes what they were given. So there is nothing to break out of. Instructions are as `pickletools` documents them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from edge_gemma.errors import CheckpointError

from .stored_tensor import check_shape

MAX_INSTRUCTIONS = 1 << 20  # a model of a thousand tensors has 50,000
MAX_BYTES = 64 << 20
MAX_ITEMS = 16  # of a tuple: arguments, dimensions

DTYPES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
"""Storage classes of `torch` to format names; others are named in the error when a tensor has one."""


class _Name(Enum):
    """The functions a table of tensors names."""

    DICT = ("collections", "OrderedDict")
    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    PARAMETER = ("torch._utils", "_rebuild_parameter")


@dataclass(frozen=True)
class Storage:
    """A member of the archive: `key` names it, `length` counts values of type `dtype` (a class name of torch)."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _StorageClass:
    name: str


class _Mark:
    """What MARK leaves on the stack."""


_MARK = _Mark()


def read_entries(pickle: bytes, where: str) -> dict[str, TensorEntry]:
    """The tensors that `pickle` lists, by name. Raises CheckpointError, naming `where`, for anything else in it."""
    if len(pickle) > MAX_BYTES:
        raise CheckpointError(f"{where}: {len(pickle)} bytes; at most {MAX_BYTES} are read")
    value = _Machine(where).run(pickle)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: holds a {type(value).__name__}, not a dict of tensors")
    for name, entry in value.items():
        if not isinstance(name, str) or not isinstance(entry, TensorEntry):
            raise CheckpointError(f"{where}: {str(name)[:80]!r} is a {type(entry).__name__}, not a tensor")
    return value


class _Machine:
    """Stack and memo of one run. Every value is a str, number, bool, None, dict, tuple, or a class of this file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """The value the program leaves when it stops."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if count >= MAX_INSTRUCTIONS:
                    raise self._error(f"more than {MAX_INSTRUCTIONS} instructions")
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except CheckpointError:
            raise
        except ValueError as error:  # pickletools: an unknown instruction, an argument cut off
            raise self._error(str(error)[:200]) from None
        raise self._error("no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in self._INSTRUCTIONS:
            self._INSTRUCTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise self._error(f"instruction {name} has no place in a list of tensors, and is not carried out")

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._error("takes more from its stack than is there")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise self._error("takes more from its stack than is there")

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self._find(module, name))

    def _name_from_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self.stack.append(self._find(module, name))

    def _find(self, module: Any, name: Any) -> _Name | _StorageClass:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._error("a name that is no text")
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _StorageClass(name)
        raise self._error(f"asks for {module[:80]}.{name[:80]}, which makes no tensor known here; it is not imported")

    def _storage(self, _: Any) -> None:
        match self._pop():
            case ("storage", _StorageClass(name=dtype), str(key), str(), int(length)) if length >= 0:
                self.stack.append(Storage(key, dtype, length))
            case _:
                raise self._error("a reference to something that is no storage")

    def _reduce(self, _: Any) -> None:
        """In Python, the call of a function from the pickle."""
        arguments, function = self._pop(), self._pop()
        match function, arguments:
            case _Name.DICT, ():
                self.stack.append({})
            case _Name.TENSOR, (Storage() as storage, int(offset), tuple() as shape, tuple() as strides, *_):
                self.stack.append(self._tensor(storage, offset, shape, strides))
            case _Name.PARAMETER, (TensorEntry() as entry, *_):
                self.stack.append(entry)
            case _:
                raise self._error("a call of something other than a tensor's maker, which is not carried out")

    def _tensor(self, storage: Storage, offset: int, shape: Any, strides: Any) -> TensorEntry:
        sizes = check_shape(shape, self.where) if shape else ()
        if len(strides) != len(sizes) or not all(type(n) is int for n in (offset, *strides)) or offset < 0:
            raise self._error(f"a tensor of shape {list(sizes)} has a bad offset or bad strides")
        return TensorEntry(storage, offset, sizes, strides)

    def _attributes(self, _: Any) -> None:
        """Versions of modules, which torch hangs on the dict: dropped."""
        state = self._pop()
        if not isinstance(state, dict) or not self.stack or not isinstance(self.stack[-1], dict):
            raise self._error("attributes for something that is no dict")

    def _set_items(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise self._error("sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise self._error("a key that is no text")
            if key in target:
                raise self._error(f"{str(key)[:80]!r} appears twice")
            target[key] = value

    def _tuple(self, items: list[Any]) -> None:
        """Tuples are short and hold tuples of numbers at most: walking them costs nothing."""
        if len(items) > MAX_ITEMS:
            raise self._error(f"a tuple of {len(items)} values, where those of a tensor have a few")
        if any(isinstance(item, tuple) and any(isinstance(inner, tuple) for inner in item) for item in items):
            raise self._error("tuples nested deeper than those of a tensor")
        self.stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._tuple(items[::-1])

    def _put(self, index: int) -> None:
        self.memo[index] = self._top()

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise self._error(f"memo {index} was never set")
        self.stack.append(self.memo[index])

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._error("remembers a value that is not there")
        return self.stack[-1]

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {text}")

    _INSTRUCTIONS: ClassVar[dict[str, Callable[[_Machine, Any], None]]] = {
        "MARK": lambda self, _: self.stack.append(_MARK),
        "EMPTY_DICT": lambda self, _: self.stack.append({}),
        "EMPTY_TUPLE": lambda self, _: self.stack.append(()),
        "TUPLE": lambda self, _: self._tuple(self._pop_to_mark()),
        "TUPLE1": lambda self, _: self._tuple_of(1),
        "TUPLE2": lambda self, _: self._tuple_of(2),
        "TUPLE3": lambda self, _: self._tuple_of(3),
        "GLOBAL": _name,
        "STACK_GLOBAL": _name_from_stack,
        "BINPERSID": _storage,
        "REDUCE": _reduce,
        "BUILD": _attributes,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "BINPUT": _put,
        "LONG_BINPUT": _put,
        "MEMOIZE": _memoize,
        "BINGET": _get,
        "LONG_BINGET": _get,
    }


_NAMES = {member.value: member for member in _Name}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_IGNORED = {"PROTO", "FRAME"}
