"""The key-value section of a GGUF file, as a mapping with typed getters that never convert.

Knows how values are asked for, not how they lie in a file (`gguf_parse.py`) nor what they mean (`config.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import ModelFormatError


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
Value: TypeAlias = int | float | bool | str | Array | StringArray


@dataclass(frozen=True)
class Entry:
    """One value: GGUF's name of its type ("UINT32", "ARRAY[STRING]", ...), where it lies in the file, and itself."""

    kind: str
    offset: int
    value: Value


class Metadata(Mapping[str, Value]):
    """Key -> value. Every getter raises `ModelFormatError` with the key and its offset in the file.

    A getter without a default demands the key. A default stands in for a missing key only, never for a bad value.
    """

    def __init__(self, entries: dict[str, Entry], path: str) -> None:
        self._entries = entries
        self._path = path

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
        return ModelFormatError(message, field=key, offset=entry.offset if entry else None, path=self._path)

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
        """A BOOL."""
        if key not in self and default is not None:
            return default
        return bool(self._typed(key, "BOOL"))

    def string(self, key: str, default: str | None = None) -> str:
        """A STRING, decoded from UTF-8."""
        if key not in self and default is not None:
            return default
        return str(self._typed(key, "STRING"))

    def int_array(self, key: str, length: int | None = None) -> NDArray[np.integer[Any]]:
        """An array of INT32 or UINT32 as it is stored: aligned, read-only, shape (n,); n must be `length` if given."""
        return self._array(key, ("ARRAY[INT32]", "ARRAY[UINT32]"), length)

    def float_array(self, key: str, length: int | None = None) -> NDArray[np.float32]:
        """An array of FLOAT32 (any bits, NaN included): aligned, read-only, shape (n,)."""
        return self._array(key, ("ARRAY[FLOAT32]",), length)

    def bool_array(self, key: str, length: int | None = None) -> NDArray[np.bool_]:
        """An array of BOOL: aligned, read-only, shape (n,)."""
        return self._array(key, ("ARRAY[BOOL]",), length)

    def strings(self, key: str) -> StringArray:
        """An array of strings, left in the file."""
        array: StringArray = self._typed(key, "ARRAY[STRING]")
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
        array = view.copy()  # arrays start at any byte of the file
        array.flags.writeable = False
        return array
