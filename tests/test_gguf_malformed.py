"""Every rule of the container, one broken file per row: the only outcome is ModelFormatError, naming field and place.

Each is refused within a second and without using memory, whatever sizes the file claims.
"""

from __future__ import annotations

import os
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf import GgufFile
from tests.gguf_builder import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TYPE_Q4_K,
    U8,
    U32,
    U64,
    Builder,
    TensorRecord,
    array,
    f32,
    string,
    tiny_gemma,
    typed,
    u32,
)

MAX_GROWTH = 64 * 2**20


def plain(*keys: tuple[str | bytes, bytes], tensors: list[TensorRecord] | None = None, **fields: object) -> bytes:
    """A file of one good tensor (or `tensors`), with the given keys."""
    default = [TensorRecord("a", (32,)), TensorRecord("b", (32, 2))]
    return Builder(keys=list(keys), tensors=default if tensors is None else tensors, **fields).build()


def one(dims: tuple[int, ...] = (32,), name: str | bytes = "a", **fields: object) -> bytes:
    return plain(tensors=[TensorRecord(name, dims, **fields)])


def header(n_tensors: int, n_keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys)


HUGE = 2**63
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
    ("key of 257 bytes", plain(("k" * 257, u32(1))), "key 0", 24),
    ("string length 2^63", plain(("k", struct.pack("<IQ", STRING, HUGE))), "k", AFTER_KEY + 4),
    ("string of 1 MiB and 1 byte", plain(("k", typed(STRING, b"a" * (2**20 + 1)))), "k", AFTER_KEY + 4),
    ("string beyond the file", plain(("k", struct.pack("<IQ", STRING, 2**20))), "k", AFTER_KEY + 12),
    ("string not UTF-8", plain(("k", typed(STRING, b"ab\xff"))), "k", AFTER_KEY + 4 + 8 + 2),
    ("array count 2^63", plain(("k", array(U8, [], HUGE))), "k", AFTER_KEY + 8),
    ("array count above the limit", plain(("k", array(U8, [0] * (2**20 + 1)))), "k", AFTER_KEY + 8),
    ("u32 array beyond the file", plain(("k", array(U32, [1], 300_000))), "k", AFTER_KEY + 8),
    ("string array beyond the file", plain(("k", array(STRING, ["a"], 300_000))), "k", AFTER_KEY + 8),
    ("u64 array of 2^61 + 1 (byte count wraps)", plain(("k", array(U64, [1], 2**61 + 1))), "k", AFTER_KEY + 8),
    ("array string of 4097 bytes", plain(("k", array(STRING, ["ok", b"a" * 4097]))), "k[1]", AFTER_KEY + 16 + 10),
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
    ("array of arrays", plain(("k", struct.pack("<IIQ", ARRAY, ARRAY, 1) + array(U8, [1]))), "k", AFTER_KEY + 4),
    ("nest of 20,000 arrays", plain(("k", struct.pack("<IIQ", ARRAY, ARRAY, 1) * 20_000)), "k", AFTER_KEY + 4),
    ("array element type 13", plain(("k", struct.pack("<IIQ", ARRAY, 13, 0))), "k", AFTER_KEY + 4),
    ("value type 13", plain(("k", struct.pack("<IQ", 13, 0))), "k", AFTER_KEY),
    ("value type -1", plain(("k", struct.pack("<iQ", -1, 0))), "k", AFTER_KEY),
    ("bool of 2", plain(("k", typed(BOOL, 2))), "k", AFTER_KEY + 4),
    ("bool of 255", plain(("k", typed(BOOL, 255))), "k", AFTER_KEY + 4),
    ("bool array with a 2", plain(("k", array(BOOL, [0, 1, 2]))), "k", AFTER_KEY + 16 + 2),
    ("scalar beyond the file", header(0, 1) + string("k") + struct.pack("<IB", U64, 1), "k", AFTER_KEY + 4),
    ("empty key", plain(("", u32(1))), "key 0", 24),
    ("duplicate key", plain(("k", u32(1)), ("k", u32(1))), "k", AFTER_KEY + 8),
    ("key not UTF-8", plain((b"\xff\xfe", u32(1))), "key 0", 24),
    ("key with NUL", plain((b"a\0b", u32(1))), "key 0", 24),
    ("key with a line break", plain(("a\nb", u32(1))), "key 0", 24),
    ("key ending in a line break", plain(("a\n", u32(1))), "key 0", 24),
    ("key with a capital", plain(("General", u32(1))), "key 0", 24),
    *(
        (f"alignment {value}", plain(("general.alignment", u32(value))), "general.alignment", 24 + 8 + 17 + 4)
        for value in (0, 1, 4, 7, 33, 48, 8192, 2**31)
    ),
    ("alignment as a u64", plain(("general.alignment", typed(U64, 32))), "general.alignment", 53),
    ("alignment as a string", plain(("general.alignment", typed(STRING, "32"))), "general.alignment", 53),
    ("alignment as an array", plain(("general.alignment", array(U32, [32]))), "general.alignment", 53),
    ("split file", plain(("split.count", typed(2, 3))), "split.count", 24 + 8 + 11 + 4),
    ("split file, count an array", plain(("split.count", array(U8, [1, 1]))), "split.count", 24 + 8 + 11 + 4),
    ("rank 0", one((), rank=0), "a", 33),
    ("rank 5", one((32, 1, 1, 1, 1)), "a", 33),
    ("rank 2^32-1", one(rank=2**32 - 1), "a", 33),
    ("dimension 0", one((0,)), "a", 37),
    ("row count 0", one((32, 0)), "a", 37),
    ("dimension 2^31 + 1", one((2**31 + 1,), data=b""), "a", 37),
    ("dimension 2^63 - 1 (2, 1, 1)", one((2**63 - 1, 2, 1, 1), data=b""), "a", 37),
    ("dimension 2^64 - 1", one((2**64 - 1,), data=b""), "a", 37),
    ("product above 2^40", one((2**21, 2**20), data=b""), "a", 37),
    ("product wraps to 0 in 64 bits", one((2**31, 2**31, 4), data=b""), "a", 37),
    ("tensor type 4 (retired)", one(type_id=4), "a", 45),
    ("tensor type 16 (known, not executed)", one(type_id=16), "a", 45),
    ("tensor type 1000", one(type_id=1000), "a", 45),
    ("tensor type 2^32-1", one(type_id=2**32 - 1), "a", 45),
    ("row of 128 in blocks of 256", one((128,), type_id=TYPE_Q4_K, data=bytes(72)), "a", 45),
    ("row of 300 in blocks of 256", one((300, 256), type_id=TYPE_Q4_K, data=bytes(43200)), "a", 53),
    ("duplicate tensor", plain(tensors=[TensorRecord("a", (32,)), TensorRecord("a", (32,))]), "a", 57),
    ("tensor name of 64 bytes", one(name="n" * 64), "tensor 0", 24),
    ("tensor name empty", one(name=""), "tensor 0", 24),
    ("tensor name not ASCII", one(name="ä"), "tensor 0", 24),
    ("tensor name with escape", one(name="\x1b[2J"), "tensor 0", 24),
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
    ("table cut off", header(1, 0) + string("abc") + bytes(20) + b"\0" * 5, "abc", 35),
]


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def refused(path: Path, **options: object) -> ModelFormatError:
    """Open `path`, which must fail in the one allowed manner, fast and without memory."""
    before, start = memory(), time.perf_counter()
    with pytest.raises(ModelFormatError) as caught:
        GgufFile.open(path, **options)
    assert time.perf_counter() - start < 1
    assert memory() - before < MAX_GROWTH
    assert type(caught.value) is ModelFormatError
    return caught.value


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


def test_known_type_is_told_from_unknown(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(one(type_id=16))
    assert "IQ2_XXS is known but not executed" in str(refused(path))
    path.write_bytes(one(type_id=77))
    assert "tensor type 77 is unknown" in str(refused(path))


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(tail=b"PK\3\4 and more"))
    with pytest.warns(UserWarning, match="13 bytes after the last tensor"):
        GgufFile.open(path).close()
    error = refused(path, strict=True)
    assert (error.field, error.offset) == ("end of data", path.stat().st_size - 13)


@pytest.mark.parametrize("load", ["map", "copy"])
def test_not_a_regular_file(tmp_path: Path, load: str) -> None:
    assert "a directory" in str(refused(tmp_path, load=load))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "pipe" in str(refused(tmp_path / "pipe", load=load))
    if Path("/dev/zero").exists():
        assert "a device" in str(refused(Path("/dev/zero"), load=load))


def test_missing_file_and_symlink_loop_are_os_errors_with_the_path(tmp_path: Path) -> None:
    missing = tmp_path / "absent.gguf"
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
        GgufFile.open(missing)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        GgufFile.open(tmp_path / "loop")


def survive(path: Path, content: bytes) -> None:
    """Open `content` and read every value: success or ModelFormatError, nothing else."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with GgufFile.open(path) as file:
                for key in file.metadata:
                    value = file.metadata[key]
                    if not isinstance(value, str) and hasattr(value, "__iter__"):
                        list(value)
                for tensor in file.tensors.values():
                    file.data(tensor)
    except ModelFormatError as error:
        assert error.field
        assert error.offset is not None and error.offset >= 0
        assert error.offset <= len(content) or "the file is cut off" in str(error)


RICH = Builder(
    keys=[
        ("general.alignment", u32(32)),
        ("t.text", typed(STRING, "grüße")),
        ("t.flag", typed(BOOL, 1)),
        ("t.real", f32(0.5)),
        ("t.strings", array(STRING, ["a", "", "bcd"])),
        ("t.ints", array(I32, [1, -2, 3])),
        ("t.flags", array(BOOL, [0, 1])),
        ("t.floats", array(F32, [0.0, 1.5])),
    ],
    tensors=[TensorRecord("norm", (32,)), TensorRecord("matrix", (32, 4), 8), TensorRecord("more", (64, 2), 2)],
)


def test_every_prefix_of_the_header(tmp_path: Path) -> None:
    whole, path = RICH.build(), tmp_path / "model.gguf"
    for length in range(len(RICH.header())):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            GgufFile.open(path)


def test_every_byte_of_the_header_at_its_extremes(tmp_path: Path) -> None:
    whole, path = RICH.build(), tmp_path / "model.gguf"
    for position in range(len(RICH.header())):
        for value in (0, 0x7F, 0xFF, whole[position] ^ 1):
            survive(path, whole[:position] + bytes([value]) + whole[position + 1 :])


INTERESTING = [0, 1, 2, 7, 8, 31, 32, 255, 256, 4096, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 32]
Mutation = Callable[[bytearray], None]


@st.composite
def mutation(draw: st.DrawFn) -> Mutation:
    """One edit: a byte, an aligned-looking integer, a removed or repeated stretch, or the end cut off."""
    position = draw(st.integers(0, len(RICH.header())))
    kind = draw(st.sampled_from(["byte", "u32", "u64", "remove", "repeat", "cut"]))
    size = draw(st.integers(1, 24))
    number = draw(st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1)))

    def apply(content: bytearray) -> None:
        if kind == "cut":
            del content[position:]
        elif kind == "remove":
            del content[position : position + size]
        elif kind == "repeat":
            content[position:position] = content[position : position + size]
        else:
            width = {"byte": 1, "u32": 4, "u64": 8}[kind]
            content[position : position + width] = (number % 256**width).to_bytes(width, "little")

    return apply


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(mutation(), min_size=1, max_size=4))
def test_fuzz(tmp_path: Path, mutations: list[Mutation]) -> None:
    content = bytearray(RICH.build())
    for apply in mutations:
        apply(content)
    survive(tmp_path / "fuzz.gguf", bytes(content))


def test_tiny_model_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gemma().build())
    with GgufFile.open(path, strict=True) as file:
        assert len(file.tensors) == 2 + 4 * 11
