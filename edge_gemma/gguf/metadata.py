"""The key-value section of a GGUF file, as a mapping with typed getters that never convert.

Knows how values are asked for, not how they lie in a file (`parse.py`) nor what they mean (`models/`).
A file may hold anything under a key that nobody reads. So the rules for values are those of the getters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import ModelFormatError

MAX_STRING_BYTES = 2**20
MAX_ARRAY = 2**20
MAX_ARRAY_STRING_BYTES = 4096


class StringArray(Sequence[bytes]):
    """A GGUF array of strings, left in the file: entry i is `raw[starts[i] : starts[i] + lengths[i]]`.

    A vocabulary has 262,144 entries; as Python objects they would take most of the time of opening a model.
    """

    __slots__ = ("_bounds", "raw")

    def __init__(self, raw: memoryview, first: int, lengths: NDArray[np.int64]) -> None:
        """`first`: offset in `raw` of the first entry's 8-byte length prefix; `lengths`: bytes of each entry, (n,)."""
        self.raw = raw
        self._bounds = np.full(len(lengths) + 1, first + 8)  # 8 bytes of a length between the entries
        self._bounds[1:] += np.cumsum(lengths + 8)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(n,) where each entry begins."""
        return self._bounds[:-1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) the bytes of each entry."""
        return np.diff(self._bounds) - 8

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return bytes(self.raw[int(self._bounds[at]) : int(self._bounds[at + 1]) - 8])

    def __iter__(self) -> Iterator[bytes]:
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield bytes(self.raw[start : start + length])

    def __repr__(self) -> str:
        return f"StringArray(<{len(self)} entries>)"


Array: TypeAlias = NDArray[Any]
Value: TypeAlias = int | float | bool | str | Array | StringArray | memoryview


def shown(text: str) -> str:
    """`text` of a file on one line, its control characters, and bytes that are no text, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass(frozen=True)
class Entry:
    """One value: GGUF's name of its type ("UINT32", "ARRAY[STRING]", ...), where it lies in the file, and itself.

    As it lies in the file are left: a BOOL that is neither 0 nor 1, as a number; arrays of BOOL, as bytes; a string
    that is too long or not UTF-8, and an array of arrays with its type and count, as a `memoryview`.
    """

    kind: str
    offset: int
    value: Value


class Metadata(Mapping[str, Value]):
    """Key -> value. Every getter raises `ModelFormatError` with the key and its offset in the file.

    A getter without a default demands the key. A default stands in for a missing key only, never for a bad value.
    """

    def __init__(self, entries: dict[str, Entry], path: str) -> None:
        self._entries = entries
        self.path = path

    def __getitem__(self, key: str) -> Value:
        return self._entries[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def kind(self, key: str) -> str:
        """GGUF's name of the value's type, such as "UINT32" or "ARRAY[BOOL]"."""
        return self._entry(key).kind

    def error(self, key: str, message: str) -> ModelFormatError:
        """The error to raise when the value of `key` breaks a rule of the caller."""
        entry = self._entries.get(key)
        return ModelFormatError(message, field=shown(key), offset=entry.offset if entry else None, path=self.path)

    def u32(self, key: str, default: int | None = None, *, lo: int = 0, hi: int = 2**32 - 1) -> int:
        """A UINT32 in lo..hi."""
        if key not in self and default is not None:
            return default
        value: int = self._typed(key, "UINT32")
        if not lo <= value <= hi:
            raise self.error(key, f"{value} is outside {lo}..{hi}")
        return value

    def f32(self, key: str, default: float | None = None, *, lo: float = -math.inf, hi: float = math.inf) -> float:
        """A finite FLOAT32 in lo..hi, the limits rounded to float32 too."""
        if key not in self and default is not None:
            return default
        value: float = self._typed(key, "FLOAT32")
        if not math.isfinite(value):
            raise self.error(key, f"{value} is not finite")
        if not np.float32(lo) <= value <= np.float32(hi):
            raise self.error(key, f"{value} is outside {lo}..{hi}")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """A BOOL, whose byte must be 0 or 1."""
        if key not in self and default is not None:
            return default
        value = self._typed(key, "BOOL")
        if not isinstance(value, bool):
            raise self.error(key, f"a BOOL is 0 or 1, this is {value}")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A STRING of at most MAX_STRING_BYTES, decoded from UTF-8."""
        if key not in self and default is not None:
            return default
        value = self._typed(key, "STRING")
        if isinstance(value, memoryview):
            too_long = len(value) > MAX_STRING_BYTES
            limit = f"a string of {len(value)} bytes, the limit is {MAX_STRING_BYTES}"
            raise self.error(key, limit if too_long else "the text is not UTF-8")
        return str(value)

    def int_array(self, key: str, length: int | None = None) -> NDArray[np.integer[Any]]:
        """An array of INT32 or UINT32 as it is stored: aligned, read-only, shape (n,); n must be `length` if given."""
        return self._array(key, ("ARRAY[INT32]", "ARRAY[UINT32]"), length)

    def float_array(self, key: str, length: int | None = None) -> NDArray[np.float32]:
        """An array of FLOAT32 (any bits, NaN included): aligned, read-only, shape (n,)."""
        return self._array(key, ("ARRAY[FLOAT32]",), length)

    def bool_array(self, key: str, length: int | None = None) -> NDArray[np.bool_]:
        """An array of BOOL: aligned, read-only, shape (n,)."""
        values = self._array(key, ("ARRAY[BOOL]",), length)
        if len(values) and values.max() > 1:
            raise self.error(key, f"a BOOL is 0 or 1, entry {int(values.argmax())} is {values.max()}")
        return values.view(np.bool_)

    def strings(self, key: str) -> StringArray:
        """An array of strings of at most MAX_ARRAY_STRING_BYTES each, left in the file."""
        array: StringArray = self._typed(key, "ARRAY[STRING]")
        lengths = array.lengths
        if len(array) and lengths.max() > MAX_ARRAY_STRING_BYTES:
            i = int((lengths > MAX_ARRAY_STRING_BYTES).argmax())
            message = f"a string of {lengths[i]} bytes, the limit is {MAX_ARRAY_STRING_BYTES}"
            raise ModelFormatError(message, field=f"{shown(key)}[{i}]", offset=int(array.starts[i]), path=self.path)
        return array

    def _entry(self, key: str) -> Entry:
        if key not in self._entries:
            raise self.error(key, "required key is missing")
        return self._entries[key]

    def _typed(self, key: str, *kinds: str) -> Any:
        entry = self._entry(key)
        if entry.kind not in kinds:
            raise self.error(key, f"is {entry.kind}, expected {' or '.join(kinds)}")
        return entry.value

    def _array(self, key: str, kinds: tuple[str, ...], length: int | None) -> Array:
        view: Array = self._typed(key, *kinds)
        if length is not None and len(view) != length:
            raise self.error(key, f"has {len(view)} entries, expected {length}")
        if len(view) > MAX_ARRAY:
            raise self.error(key, f"has {len(view)} entries, the limit is {MAX_ARRAY}")
        array = view.copy()  # arrays start at any byte of the file
        array.flags.writeable = False
        return array
