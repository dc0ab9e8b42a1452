"""GGUF bytes -> header and metadata; every count and length is checked before it is used.

Knows no file system, no tensor (`tensors.py`) and no model. Layout: the GGUF specification, versions 2 and 3.
Here a file is refused only where the next entry cannot be found; what a value may be is asked when somebody wants it
(`metadata.py`), so that keys which nobody reads may hold anything. Limits are far above any real model's: a hostile
file costs neither time nor memory.
"""

from __future__ import annotations

import struct

import numpy as np

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file_kind import not_gguf
from edge_gemma.gguf.metadata import MAX_STRING_BYTES, Entry, Metadata, StringArray, Value, shown

HEADER_BYTES = 24
MAX_KEYS = 4096
MAX_KEY_BYTES = 2**16 - 1  # the specification's
MAX_ARRAY_ITEMS = 2**20  # strings, and arrays in arrays, of a file together: only they are walked one by one
MIN_KEY_ENTRY = 8 + 1 + 4 + 1  # a key of one letter, a type, a value of one byte

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

MAX_MAGIC_BYTES = 64  # what is looked at to say what a file is that is no GGUF file

_MIN_BYTES = {STRING: 8, ARRAY: 12} | {type_id: struct.calcsize("<" + code) for type_id, (_, code) in SCALARS.items()}
"""GGUF value type -> the least bytes of one in an array: a string has its length, an array its type and count."""
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
        """The error for `field`, which lies at `offset`; `field` may be whatever a file calls it."""
        return ModelFormatError(message, field=shown(field), offset=offset, path=self.path)

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

    def string(self, field: str) -> memoryview:
        """Read an 8-byte length and as many bytes, which stay where they are."""
        length = self.u64(field)
        start = self.take(length, field)
        return self.raw[start : start + length]

    def name(self, limit: int, field: str) -> str:
        """Read a string of 1 to `limit` bytes that names something. Bytes that are not UTF-8 become surrogates."""
        at = self.pos
        length = self.u64(field)
        if not 1 <= length <= limit:
            raise self.error(f"a name of {length} bytes, 1..{limit} are allowed", field, at)
        start = self.take(length, field)
        return bytes(self.raw[start : start + length]).decode("utf-8", "surrogateescape")


def parse_header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys. The tensor count is checked by whoever reads the tensors."""
    if len(cursor.raw) < HEADER_BYTES:
        raise cursor.error(f"a GGUF file has at least {HEADER_BYTES} bytes, this has {len(cursor.raw)}", "header", 0)
    magic = bytes(cursor.raw[:4])
    if magic != b"GGUF":
        raise cursor.error(not_gguf(bytes(cursor.raw[:MAX_MAGIC_BYTES])), "magic", 0)
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
    _check_room(cursor, count, nbytes, field, at)


def _check_room(cursor: Cursor, count: int, nbytes: int, field: str, at: int) -> None:
    if count * nbytes > cursor.left:
        raise cursor.error(f"{count} items take at least {count * nbytes} bytes, {cursor.left} are left", field, at)


def parse_metadata(cursor: Cursor, n_keys: int) -> Metadata:
    """The key-value section, `n_keys` entries of it."""
    check_count(cursor, n_keys, MAX_KEYS, MIN_KEY_ENTRY, field="key count", at=16)
    entries: dict[str, Entry] = {}
    items_left = MAX_ARRAY_ITEMS
    for i in range(n_keys):
        at = cursor.pos
        key = cursor.name(MAX_KEY_BYTES, f"key {i}")
        if key in entries:
            raise cursor.error("the key appears twice", key, at)
        entries[key], used = _parse_value(cursor, key, items_left)
        items_left -= used
    return Metadata(entries, cursor.path)


def _parse_value(cursor: Cursor, key: str, items_left: int) -> tuple[Entry, int]:
    """The value of `key`, and how many items of arrays were walked one by one; they may be `items_left`."""
    type_at = cursor.pos
    type_id = cursor.u32(key)
    offset = cursor.pos
    if type_id == STRING:
        return Entry("STRING", offset, _text(cursor.string(key))), 0
    if type_id == ARRAY:
        return _parse_array(cursor, key, items_left)
    if type_id not in SCALARS:
        raise cursor.error(f"value type {type_id} is unknown", key, type_at)
    kind, code = SCALARS[type_id]
    layout = struct.Struct("<" + code)
    value: Value = layout.unpack_from(cursor.raw, cursor.take(layout.size, key))[0]
    return Entry(kind, offset, bool(value) if type_id == BOOL and value in (0, 1) else value), 0


def _text(raw: memoryview) -> str | memoryview:
    """A string as text; as it is if it is too long or not UTF-8, which matters only to those who ask for it."""
    if len(raw) > MAX_STRING_BYTES:
        return raw
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _parse_array(cursor: Cursor, key: str, items_left: int) -> tuple[Entry, int]:
    at = cursor.pos
    element, count, count_at = _array_head(cursor, key)
    if element == ARRAY:
        walked = _skip_arrays(cursor, key, count, items_left, count_at)
        return Entry("ARRAY[ARRAY]", at, cursor.raw[at : cursor.pos]), walked
    if element == STRING:
        _check_items(cursor, key, count, items_left, count_at)
        return Entry("ARRAY[STRING]", at, _parse_strings(cursor, key, count)), count
    kind, code = SCALARS[element]
    dtype = np.dtype("<" + code)
    start = cursor.take(count * dtype.itemsize, key)
    return Entry(f"ARRAY[{kind}]", at, np.frombuffer(cursor.raw, dtype, count, start)), 0


def _array_head(cursor: Cursor, key: str) -> tuple[int, int, int]:
    """The type of an array's elements, how many the file has room for, and where it says how many there are."""
    at = cursor.pos
    element = cursor.u32(key)
    if element not in _MIN_BYTES:
        raise cursor.error(f"array element type {element} is unknown", key, at)
    count_at = cursor.pos
    count = cursor.u64(key)
    _check_room(cursor, count, _MIN_BYTES[element], key, count_at)
    return element, count, count_at


def _skip_arrays(cursor: Cursor, key: str, count: int, items_left: int, count_at: int) -> int:
    """Step over `count` arrays, each perhaps of arrays, which follow at once. Returns how many items were walked."""
    walked, ahead = 0, count
    while ahead:
        _check_items(cursor, key, walked + ahead, items_left, count_at)
        element, inner, count_at = _array_head(cursor, key)
        walked, ahead = walked + 1, ahead - 1
        if element == ARRAY:
            ahead += inner
        elif element == STRING:
            _check_items(cursor, key, walked + ahead + inner, items_left, count_at)
            _parse_strings(cursor, key, inner)
            walked += inner
        else:
            cursor.take(inner * _MIN_BYTES[element], key)
    return walked


def _check_items(cursor: Cursor, key: str, count: int, items_left: int, count_at: int) -> None:
    if count > items_left:
        raise cursor.error(f"more than {MAX_ARRAY_ITEMS} strings and arrays in the arrays of one file", key, count_at)


def _parse_strings(cursor: Cursor, key: str, count: int) -> StringArray:
    """Walk the length prefixes only. No checked `cursor` call per entry: this loop is most of the time of opening."""
    raw, first = cursor.raw, cursor.pos
    unpack, position = _U64.unpack_from, first
    lengths = []
    try:
        for _ in range(count):
            (length,) = unpack(raw, position)
            lengths.append(length)
            position += 8 + length
    except (struct.error, OverflowError) as error:  # the second: a position that no buffer can have
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
