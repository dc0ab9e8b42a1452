"""Every rule of the container, one broken file per row: the only outcome is ModelFormatError, naming field and place.

Each is refused within a second and without using memory, whatever sizes the file claims.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile, Metadata
from tests.gguf.small_files import header, nested, one, plain, refused
from tests.gguf_builder import (
    ARRAY,
    BOOL,
    I32,
    STRING,
    TYPE_Q4_K,
    U8,
    U32,
    U64,
    TensorRecord,
    array,
    string,
    typed,
    u32,
)

HUGE = 2**63
NEST = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 19_999 + struct.pack("<IQ", U8, 0)
AFTER_KEY = 24 + 8 + 1  # where the type of the first value stands when its key has one letter

# rule, bytes, field named in the error, offset named in the error
MALFORMED: list[tuple[str, bytes, str, int]] = [
    ("empty file", b"", "header", 0),
    ("one byte", b"G", "header", 0),
    ("23 bytes", header(0, 0)[:23], "header", 0),
    ("bad magic", plain(magic=b"GGML"), "magic", 0),
    ("byte-swapped magic", plain(magic=b"FUGG"), "magic", 0),
    ("big-endian", plain(version=3 << 24), "version", 4),
    ("version 0", plain(version=0), "version", 4),
    ("version 1", plain(version=1), "version", 4),
    ("version 4", plain(version=4), "version", 4),
    ("version 2^32-1", plain(version=2**32 - 1), "version", 4),
    ("key count above the limit", plain(n_keys=4097), "key count", 16),
    ("key count 2^64-1", plain(n_keys=2**64 - 1), "key count", 16),
    ("key count beyond the file", header(0, 4096), "key count", 16),
    ("one key more than the file has", header(0, 1), "key count", 16),
    ("tensor count above the limit", plain(n_tensors=16385), "tensor count", 8),
    ("tensor count 2^64-1", plain(n_tensors=2**64 - 1), "tensor count", 8),
    ("tensor count beyond the file", header(16384, 0), "tensor count", 8),
    ("one tensor more than the table has", plain(tensors=[], n_tensors=1), "tensor count", 8),
    ("key length 2^63", header(0, 1) + struct.pack("<Q", HUGE) + b"a" * 99, "key 0", 24),
    ("key length beyond the file", header(0, 1) + struct.pack("<Q", 200) + b"a" * 99, "key 0", 32),
    ("key of 64 KiB", plain(("k" * 2**16, u32(1))), "key 0", 24),
    ("string length 2^63", plain(("k", struct.pack("<IQ", STRING, HUGE))), "k", AFTER_KEY + 12),
    ("string beyond the file", plain(("k", struct.pack("<IQ", STRING, 2**20))), "k", AFTER_KEY + 12),
    ("array count 2^63", plain(("k", array(U8, [], HUGE))), "k", AFTER_KEY + 8),
    ("u32 array beyond the file", plain(("k", array(U32, [1], 300_000))), "k", AFTER_KEY + 8),
    ("string array beyond the file", plain(("k", array(STRING, ["a"], 300_000))), "k", AFTER_KEY + 8),
    ("u64 array of 2^61 + 1 (byte count wraps)", plain(("k", array(U64, [1], 2**61 + 1))), "k", AFTER_KEY + 8),
    (
        "array string length 2^64-1",
        plain(("k", struct.pack("<IIQQ", ARRAY, STRING, 1, 2**64 - 1))),
        "k[0]",
        AFTER_KEY + 16,
    ),
    (
        "array string cut off in its text",
        header(0, 1) + string("k") + array(STRING, ["abc"])[:-1],
        "k[0]",
        AFTER_KEY + 16,
    ),
    (
        "array string cut off in its length",
        header(0, 1) + string("k") + array(STRING, ["a" * 30, "b"])[:-3],
        "k[1]",
        AFTER_KEY + 16 + 38,
    ),
    ("array of arrays beyond the file", plain(("k", struct.pack("<IIQ", ARRAY, ARRAY, 40))), "k", AFTER_KEY + 8),
    ("array in an array beyond the file", plain(("k", nested(array(U8, [1], 3000)))), "k", AFTER_KEY + 16 + 4),
    ("array in an array of type 13", plain(("k", nested(struct.pack("<IIQ", 0, 13, 0)))), "k", AFTER_KEY + 16),
    (
        "nest of 20,000 arrays, the last cut off",
        header(0, 1) + string("k") + NEST[:-4],
        "k",
        AFTER_KEY + 4 + 12 * 19_998 + 4,
    ),
    ("array element type 13", plain(("k", struct.pack("<IIQ", ARRAY, 13, 0))), "k", AFTER_KEY + 4),
    ("value type 13", plain(("k", struct.pack("<IQ", 13, 0))), "k", AFTER_KEY),
    ("value type -1", plain(("k", struct.pack("<iQ", -1, 0))), "k", AFTER_KEY),
    ("scalar beyond the file", header(0, 1) + string("k") + struct.pack("<IB", U64, 1), "k", AFTER_KEY + 4),
    ("empty key", plain(("", u32(1))), "key 0", 24),
    ("duplicate key", plain(("k", u32(1)), ("k", u32(1))), "k", AFTER_KEY + 8),
    *(
        (f"alignment {value}", plain(("general.alignment", u32(value))), "general.alignment", 24 + 8 + 17 + 4)
        for value in (0, 1, 4, 7, 33, 48, 8192, 2**31)
    ),
    ("alignment as a u64", plain(("general.alignment", typed(U64, 32))), "general.alignment", 53),
    ("alignment as a string", plain(("general.alignment", typed(STRING, "32"))), "general.alignment", 53),
    ("alignment as an array", plain(("general.alignment", array(U32, [32]))), "general.alignment", 53),
    ("split file", plain(("split.count", typed(2, 3))), "split.count", 24 + 8 + 11 + 4),
    ("split file, count an array", plain(("split.count", array(U8, [1, 1]))), "split.count", 24 + 8 + 11 + 4),
    ("rank 5", one((32, 1, 1, 1, 1)), "a", 33),
    ("rank 2^32-1", one(rank=2**32 - 1), "a", 33),
    ("dimension 2^31 + 1", one((2**31 + 1,), data=b""), "a", 37),
    ("dimension 2^63 - 1 (2, 1, 1)", one((2**63 - 1, 2, 1, 1), data=b""), "a", 37),
    ("dimension 2^64 - 1", one((2**64 - 1,), data=b""), "a", 37),
    ("product above 2^40", one((2**21, 2**20), data=b""), "a", 37),
    ("product wraps to 0 in 64 bits", one((2**31, 2**31, 4), data=b""), "a", 37),
    ("tensor type 4 (retired)", one(type_id=4), "a", 45),
    ("tensor type 35 (known, not executed)", one(type_id=35), "a", 45),
    ("tensor type 1000", one(type_id=1000), "a", 45),
    ("tensor type 2^32-1", one(type_id=2**32 - 1), "a", 45),
    ("row of 128 in blocks of 256", one((128,), type_id=TYPE_Q4_K, data=bytes(72)), "a", 45),
    ("row of 300 in blocks of 256", one((300, 256), type_id=TYPE_Q4_K, data=bytes(43200)), "a", 53),
    ("duplicate tensor", plain(tensors=[TensorRecord("a", (32,)), TensorRecord("a", (32,))]), "a", 57),
    ("tensor name of 64 bytes", one(name="n" * 64), "tensor 0", 24),
    ("tensor name empty", one(name=""), "tensor 0", 24),
    ("tensor name length 2^63", header(1, 0) + struct.pack("<Q", HUGE) + bytes(64), "tensor 0", 24),
    ("unaligned offset", one(offset=1), "a", 49),
    ("gap before a tensor", one(offset=32), "a", 49),
    ("offset 2^64-32", one(offset=2**64 - 32), "a", 49),
    ("overlap", plain(tensors=[TensorRecord("a", (32,)), TensorRecord("b", (32,), offset=0)]), "b", 57 + 25),
    (
        "out of order",
        plain(tensors=[TensorRecord("a", (32,), offset=128), TensorRecord("b", (32,), offset=0)]),
        "a",
        49,
    ),
    ("data cut off by one byte", one()[:-1], "a", 64),
    ("no data at all", one()[:57], "a", 64),
    ("tensor larger than the file", one((32, 2**30), data=bytes(64)), "a", 96),
    ("table cut off", header(1, 0) + string("abc") + struct.pack("<IQ", 1, 32) + bytes(10), "abc", 51),
]


@pytest.mark.parametrize(("content", "field", "offset"), [pytest.param(*row[1:], id=row[0]) for row in MALFORMED])
def test_broken_file_is_refused(tmp_path: Path, content: bytes, field: str, offset: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    error = refused(path)
    assert (error.field, error.offset, error.path) == (field, offset, str(path))
    assert str(error).startswith(f"{path}: {field} at byte {offset}: ")


def test_the_rows_break_a_file_that_is_sound_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (plain(), plain(("k", u32(1))), one(), plain(version=2), plain(tensors=[])):
        path.write_bytes(content)
        with GgufFile.open(path, strict=True) as file:
            assert file.size == len(content)


def test_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain()[:-100])
    assert "100 bytes are missing" in str(refused(path))


def test_strings_of_all_arrays_are_bounded_together(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(("a", array(STRING, [b""] * 2**20)), ("b", array(STRING, [b""]))))
    error = refused(path)
    assert (error.field, error.offset) == ("b", AFTER_KEY + 16 + 2**23 + 8 + 1 + 8)


# What nobody reads may be anything: the file opens. Who asks for it all the same is told what is wrong, and where.
# what it is, key, its value, how it is asked for, the error
Ask = Callable[[Metadata, str], object]
UNREAD: list[tuple[str, str | bytes, bytes, Ask, str]] = [
    ("string of 1 MiB and 1 byte", "k", typed(STRING, b"a" * (2**20 + 1)), Metadata.string, "the limit is 1048576"),
    ("string not UTF-8", "k", typed(STRING, b"ab\xff"), Metadata.string, "not UTF-8"),
    ("bool of 2", "k", typed(BOOL, 2), Metadata.boolean, "0 or 1, this is 2"),
    ("bool of 255", "k", typed(BOOL, 255), Metadata.boolean, "0 or 1, this is 255"),
    ("bool array with a 2", "k", array(BOOL, [0, 1, 2]), Metadata.bool_array, "entry 2 is 2"),
    ("numbers above the limit", "k", array(I32, [0] * (2**20 + 1)), Metadata.int_array, "the limit is 1048576"),
    ("array of arrays", "k", nested(array(U8, [1]), array(U64, [])), Metadata.strings, "is ARRAY"),
    ("array of arrays of arrays", "k", nested(nested(array(STRING, ["a", "b"])), NEST), Metadata.int_array, "is ARRAY"),
]
KEYS = ["General", "a key", "tokenizer.chat_template.toolUse", "a:b", "schlüssel", "a\nb", "a\n", "k" * (2**16 - 1)]
RAW_KEYS = [b"\xff\xfe", b"a\0b", b"\xc3", b"\x1b[2J"]


@pytest.mark.parametrize(("key", "value", "ask", "message"), [pytest.param(*row[1:], id=row[0]) for row in UNREAD])
def test_what_nobody_reads_is_not_looked_at(tmp_path: Path, key: str, value: bytes, ask: Ask, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain((key, value), ("after", u32(7))))
    with GgufFile.open(path, strict=True) as file:
        assert file.metadata.u32("after") == 7
        with pytest.raises(ModelFormatError, match=message) as caught:
            ask(file.metadata, key)
    assert (caught.value.field, caught.value.offset) == ("k", AFTER_KEY + 4)


@pytest.mark.parametrize("key", [*(key.encode() for key in KEYS), *RAW_KEYS], ids=lambda key: repr(key[:20]))
def test_a_key_of_any_spelling_is_skipped(tmp_path: Path, key: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain((key, u32(1)), ("after", u32(7))))
    with GgufFile.open(path, strict=True) as file:
        assert file.metadata.u32("after") == 7
        assert [name.encode("utf-8", "surrogateescape") for name in file.metadata] == [key, b"after"]


@pytest.mark.parametrize(("key", "escaped"), [(b"\x1b[2J", r"\x1b[2J"), (b"a\nb", r"a\nb"), (b"\xff", r"\udcff")])
def test_odd_names_are_shown_escaped(tmp_path: Path, key: bytes, escaped: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain((key, struct.pack("<IQ", 13, 0))))
    error = refused(path)
    assert error.field == escaped and str(error).isprintable()
    path.write_bytes(one(name=key, type_id=1000))
    error = refused(path)
    assert error.field == escaped and str(error).isprintable()


def test_array_strings_are_bounded_where_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(("k", array(STRING, ["ok", b"a" * 4097]))))
    with GgufFile.open(path) as file, pytest.raises(ModelFormatError, match="4097 bytes, the limit is 4096") as caught:
        file.metadata.strings("k")
    assert (caught.value.field, caught.value.offset) == ("k[1]", AFTER_KEY + 16 + 10 + 8)


@pytest.mark.parametrize("name", ["ä", "two words", "\x1b[2J", b"\xff", "n" * 63])
def test_a_tensor_of_any_name(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(one(name=name))
    with GgufFile.open(path, strict=True) as file:
        (found,) = file.tensors
        assert found.encode("utf-8", "surrogateescape") == (name.encode() if isinstance(name, str) else name)


def test_a_tensor_of_a_type_that_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(tensors=[TensorRecord("a", (256, 2), 35, bytes(2 * 66)), TensorRecord("b", (32,))]))
    with GgufFile.open(path, strict=True) as file:
        assert (file.tensors["a"].format.name, file.tensors["a"].is_executed) == ("TQ2_0", False)
        assert file.tensors["b"].is_executed
    path.write_bytes(one(type_id=77))
    assert "tensor type 77 is unknown" in str(refused(path))


@pytest.mark.parametrize(("dims", "shape"), [((), (1,)), ((0,), (0,)), ((32, 0), (0, 32)), ((0, 3), (3, 0))])
def test_scalars_and_empty_tensors(tmp_path: Path, dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(tensors=[TensorRecord("a", dims), TensorRecord("b", (32,))]))
    with GgufFile.open(path, strict=True) as file:
        assert file.tensors["a"].shape == shape
        assert file.data(file.tensors["a"]).size == 4 * math.prod(shape)
