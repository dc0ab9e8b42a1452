"""GGUF bytes -> header and metadata; every count and length is checked before it is used.

Knows no file system, no tensor (`tensor_table.py`) and no model. Layout: the GGUF specification, versions 2 and 3.
Limits are far above any real model's, so that a hostile file costs neither time nor memory.
"""

from __future__ import annotations

import re
import struct

import numpy as np

from edge_gemma.errors import ModelFormatError
from edge_gemma.metadata import Entry, Metadata, StringArray, Value

HEADER_BYTES = 24
MAX_KEYS = 4096
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 2**20
MAX_ARRAY_STRING_BYTES = 4096
MAX_ARRAY = 2**20
MAX_ARRAY_STRINGS = 2**20  # in all arrays of a file together: they are the only part that is read one by one
MIN_KEY_RECORD = 8 + 1 + 4 + 1  # a key of one letter, a type, a value of one byte

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {
    0: ("UINT8", "B"),
    1: ("INT8", "b"),
    2: ("UINT16", "H"),
    3: ("INT16", "h"),
    4: ("UINT32", "I"),
    5: ("INT32", "i"),
    6: ("FLOAT32", "f"),
    BOOL: ("BOOL", "B"),
    10: ("UINT64", "Q"),
    11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}
"""GGUF value type -> its name and its code, which `struct` and NumPy share."""

_KEY = re.compile(rb"[a-z0-9._-]+")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """A position in a read-only buffer. Every read checks the end of the buffer first; errors name field and offset."""

    __slots__ = ("path", "pos", "raw")

    def __init__(self, raw: memoryview, path: str) -> None:
        self.raw = raw
        self.path = path
        self.pos = 0

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return len(self.raw) - self.pos

    def error(self, message: str, field: str, offset: int) -> ModelFormatError:
        """The error for `field`, which lies at `offset`."""
        return ModelFormatError(message, field=field, offset=offset, path=self.path)

    def take(self, nbytes: int, field: str) -> int:
        """Step over `nbytes` and return where they start."""
        if nbytes > self.left:
            raise self.error(f"needs {nbytes} bytes, the file ends after {self.left}", field, self.pos)
        start = self.pos
        self.pos += nbytes
        return start

    def u32(self, field: str) -> int:
        """Read four bytes."""
        value: int = _U32.unpack_from(self.raw, self.take(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        """Read eight bytes."""
        value: int = _U64.unpack_from(self.raw, self.take(8, field))[0]
        return value

    def string(self, limit: int, field: str) -> bytes:
        """Read an 8-byte length, at most `limit`, and as many bytes."""
        at = self.pos
        length = self.u64(field)
        if length > limit:
            raise self.error(f"a string of {length} bytes, the limit is {limit}", field, at)
        start = self.take(length, field)
        return bytes(self.raw[start : start + length])


def parse_header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys. The tensor count is checked by whoever reads the tensors."""
    if len(cursor.raw) < HEADER_BYTES:
        raise cursor.error(f"a GGUF file has at least {HEADER_BYTES} bytes, this has {len(cursor.raw)}", "header", 0)
    magic = bytes(cursor.raw[:4])
    if magic != b"GGUF":
        raise cursor.error(f"{magic!r} where a GGUF file has b'GGUF'", "magic", 0)
    cursor.take(4, "magic")
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        raise cursor.error("the byte order is big-endian, only little-endian is supported", "version", 4)
    if version not in (2, 3):
        raise cursor.error(f"GGUF version {version} is not supported (2 and 3 are)", "version", 4)
    return version, cursor.u64("tensor count"), cursor.u64("key count")


def check_count(cursor: Cursor, count: int, limit: int, nbytes: int, *, field: str, at: int) -> None:
    """Refuse a count above its limit, or one whose items, of at least `nbytes` each, cannot fit what is left."""
    if count > limit:
        raise cursor.error(f"{count} is above the limit of {limit}", field, at)
    if count * nbytes > cursor.left:
        raise cursor.error(f"{count} items take at least {count * nbytes} bytes, {cursor.left} are left", field, at)


def parse_metadata(cursor: Cursor, n_keys: int) -> Metadata:
    """The key-value section, `n_keys` records of it."""
    check_count(cursor, n_keys, MAX_KEYS, MIN_KEY_RECORD, field="key count", at=16)
    entries: dict[str, Entry] = {}
    strings_left = MAX_ARRAY_STRINGS
    for i in range(n_keys):
        at = cursor.pos
        raw_key = cursor.string(MAX_KEY_BYTES, f"key {i}")
        if not _KEY.fullmatch(raw_key):
            raise cursor.error(f"the name {raw_key!r} is not made of a-z, 0-9, '.', '_' and '-'", f"key {i}", at)
        key = raw_key.decode("ascii")
        if key in entries:
            raise cursor.error("the key appears twice", key, at)
        entry = _parse_value(cursor, key, strings_left)
        if isinstance(entry.value, StringArray):
            strings_left -= len(entry.value)
        entries[key] = entry
    return Metadata(entries, cursor.path)


def _parse_value(cursor: Cursor, key: str, strings_left: int) -> Entry:
    type_at = cursor.pos
    type_id = cursor.u32(key)
    offset = cursor.pos
    if type_id == STRING:
        return Entry("STRING", offset, _parse_string(cursor, key))
    if type_id == ARRAY:
        return _parse_array(cursor, key, strings_left)
    if type_id not in SCALARS:
        raise cursor.error(f"value type {type_id} is unknown", key, type_at)
    kind, code = SCALARS[type_id]
    layout = struct.Struct("<" + code)
    value: Value = layout.unpack_from(cursor.raw, cursor.take(layout.size, key))[0]
    if type_id == BOOL:
        if value not in (0, 1):
            raise cursor.error(f"a BOOL is 0 or 1, this is {value}", key, offset)
        value = bool(value)
    return Entry(kind, offset, value)


def _parse_string(cursor: Cursor, key: str) -> str:
    at = cursor.pos
    raw = cursor.string(MAX_STRING_BYTES, key)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise cursor.error(f"not UTF-8: {error.reason}", key, at + 8 + error.start) from error


def _parse_array(cursor: Cursor, key: str, strings_left: int) -> Entry:
    at = cursor.pos
    element = cursor.u32(key)
    count_at = cursor.pos
    count = cursor.u64(key)
    if element == ARRAY:
        raise cursor.error("an array of arrays is not supported", key, at)
    if element != STRING and element not in SCALARS:
        raise cursor.error(f"array element type {element} is unknown", key, at)
    kind, code = SCALARS.get(element, ("STRING", "Q"))  # a string has at least its 8-byte length
    dtype = np.dtype("<" + code)
    check_count(cursor, count, MAX_ARRAY, dtype.itemsize, field=key, at=count_at)
    if element == STRING:
        if count > strings_left:
            raise cursor.error(f"more than {MAX_ARRAY_STRINGS} strings in the arrays of one file", key, count_at)
        return Entry("ARRAY[STRING]", at, _parse_strings(cursor, key, count))
    start = cursor.take(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.raw, dtype, count, start)
    if element == BOOL:
        if count and values.max() > 1:
            raise cursor.error("a BOOL is 0 or 1", key, start + int(values.argmax()))
        values = values.view(np.bool_)
    return Entry(f"ARRAY[{kind}]", at, values)


def _parse_strings(cursor: Cursor, key: str, count: int) -> StringArray:
    """Walk the length prefixes only. No checked `cursor` call per entry: this loop is most of the time of opening."""
    raw, first = cursor.raw, cursor.pos
    unpack, position = _U64.unpack_from, first
    lengths = []
    try:
        for i in range(count):
            (length,) = unpack(raw, position)
            if length > MAX_ARRAY_STRING_BYTES:
                raise cursor.error(
                    f"a string of {length} bytes, the limit is {MAX_ARRAY_STRING_BYTES}", f"{key}[{i}]", position
                )
            lengths.append(length)
            position += 8 + length
    except struct.error as error:
        raise _cut_off(cursor, key, lengths, position) from error
    if position > len(raw):
        raise _cut_off(cursor, key, lengths, position)
    cursor.pos = position
    return StringArray(raw, first, np.array(lengths, dtype=np.int64))


def _cut_off(cursor: Cursor, key: str, lengths: list[int], position: int) -> ModelFormatError:
    """The file ends in the entry before `position`, or in the length that should stand there."""
    entry = len(lengths)
    if position > len(cursor.raw):
        entry -= 1
        position -= 8 + lengths[-1]
    return cursor.error("the file ends inside this entry", f"{key}[{entry}]", position)
