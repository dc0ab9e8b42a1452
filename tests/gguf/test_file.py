"""Reading sound GGUF files: values, views, the mapping's life, and the real model's opening time."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import psutil
import pytest

from edge_gemma.errors import ModelChangedError, ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, StringArray
from tests.gguf_builder import (
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    TYPE_F16,
    TYPE_Q4_0,
    TYPE_Q8_0,
    U16,
    U32,
    U64,
    Builder,
    TensorRecord,
    array,
    f32,
    typed,
    u32,
)

TEXTS = ["", "a", "grüße", "▁▁", "x" * 4096, "\0", "end"]


def sample() -> Builder:
    rng = np.random.default_rng(1)
    return Builder(
        keys=[
            ("a.u32", u32(7)),
            ("a.u64", typed(U64, 2**63)),
            ("a.f32", f32(0.1)),
            ("a.f64", typed(F64, 0.1)),
            ("a.nan", f32(float("nan"))),
            ("a.inf", f32(float("inf"))),
            ("a.yes", typed(BOOL, 1)),
            ("a.no", typed(BOOL, 0)),
            ("a.text", typed(STRING, "grüße")),
            ("a.strings", array(STRING, TEXTS)),
            ("a.ints", array(I32, [-1, 0, 2**31 - 1])),
            ("a.uints", array(U32, [0, 2**32 - 1])),
            ("a.shorts", array(U16, [1, 2])),
            ("a.floats", array(F32, [0.5, float("nan")])),
            ("a.bools", array(BOOL, [1, 0, 1])),
            ("a.none", array(F32, [])),
        ],
        tensors=[
            TensorRecord("norm", (5,), data=rng.bytes(20)),
            TensorRecord("matrix", (64, 3), TYPE_Q4_0, rng.bytes(36 * 3)),
            TensorRecord("cube", (4, 3, 2), TYPE_F16, rng.bytes(48)),
            TensorRecord("last", (32, 7), TYPE_Q8_0, rng.bytes(34 * 7)),
        ],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "model.gguf"
    out.write_bytes(sample().build())
    return out


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
@pytest.mark.parametrize("load", ["map", "copy"])
def test_tensors(tmp_path: Path, version: int, alignment: int, load: Literal["map", "copy"]) -> None:
    builder = sample().set("general.alignment", u32(alignment))
    builder.version, builder.alignment = version, alignment
    path = tmp_path / "model.gguf"
    path.write_bytes(builder.build())
    with GgufFile.open(str(path), strict=True, load=load) as file:
        assert (file.path, file.size, file.version) == (path, path.stat().st_size, version)
        assert list(file.tensors) == ["norm", "matrix", "cube", "last"]
        shapes = [(t.format.name, t.shape, t.row_bytes, t.nbytes) for t in file.tensors.values()]
        assert shapes == [
            ("F32", (5,), 20, 20),
            ("Q4_0", (3, 64), 36, 108),
            ("F16", (2, 3, 4), 8, 48),
            ("Q8_0", (7, 32), 34, 238),
        ]
        for record in builder.tensors:
            tensor = file.tensors[str(record.name)]
            data = file.data(tensor)
            assert data.shape == (tensor.nbytes // tensor.row_bytes, tensor.row_bytes)
            assert data.tobytes() == record.payload()
            assert not data.flags.writeable
            assert data.ctypes.data % min(alignment, 64) == 0
            assert tensor.offset % alignment == 0


def test_data_is_not_copied(path: Path) -> None:
    with GgufFile.open(path) as file:
        tensor = file.tensors["matrix"]
        assert np.shares_memory(file.data(tensor), file.data(tensor))


def test_getters(path: Path) -> None:
    with GgufFile.open(path) as file:
        m = file.metadata
        assert (m.u32("a.u32"), m.f32("a.f32"), m.string("a.text")) == (7, np.float32(0.1), "grüße")
        assert (m.boolean("a.yes"), m.boolean("a.no")) == (True, False)
        assert (m["a.u64"], m["a.f64"], m["a.yes"]) == (2**63, 0.1, True)
        assert m.kind("a.bools") == "ARRAY[BOOL]"
        assert len(m) == 16
        assert m.int_array("a.ints", 3).tolist() == [-1, 0, 2**31 - 1]
        assert m.int_array("a.uints").tolist() == [0, 2**32 - 1]
        assert m.bool_array("a.bools").tolist() == [True, False, True]
        assert m.float_array("a.none").shape == (0,)
        np.testing.assert_array_equal(m.float_array("a.floats"), np.array([0.5, np.nan], np.float32))
        for values in (m.int_array("a.ints"), m.float_array("a.floats"), m.bool_array("a.bools")):
            assert values.flags.aligned
            assert not values.flags.writeable


def test_getters_default_only_for_missing_keys(path: Path) -> None:
    with GgufFile.open(path) as file:
        m = file.metadata
        assert (m.u32("b", 5), m.f32("b", 0.5), m.string("b", ""), m.boolean("b", False)) == (5, 0.5, "", False)
        with pytest.raises(ModelFormatError, match=r"a\.f32 at byte \d+: is FLOAT32, expected UINT32"):
            m.u32("a.f32", 5)


@pytest.mark.parametrize(
    ("getter", "key"),
    [
        *(("u32", key) for key in ("a.f32", "a.u64", "a.yes", "a.text", "a.uints", "a.strings", "absent")),
        *(("f32", key) for key in ("a.u32", "a.f64", "a.floats", "a.nan", "a.inf", "absent")),
        *(("boolean", key) for key in ("a.u32", "a.bools", "a.text", "absent")),
        *(("string", key) for key in ("a.u32", "a.strings", "absent")),
        *(("strings", key) for key in ("a.text", "a.ints", "absent")),
        *(("int_array", key) for key in ("a.u32", "a.shorts", "a.floats", "a.bools", "absent")),
        *(("float_array", key) for key in ("a.f32", "a.ints", "absent")),
        *(("bool_array", key) for key in ("a.yes", "a.ints", "absent")),
    ],
)
def test_getters_never_convert(path: Path, getter: str, key: str) -> None:
    with GgufFile.open(path) as file:
        with pytest.raises(ModelFormatError) as caught:
            getattr(file.metadata, getter)(key)
        assert caught.value.field == key
        assert (caught.value.offset is None) == (key == "absent")
        assert str(path) in str(caught.value)


def test_getters_check_limits(path: Path) -> None:
    with GgufFile.open(path) as file:
        m = file.metadata
        assert m.u32("a.u32", lo=7, hi=7) == 7
        assert m.f32("a.f32", lo=0.1, hi=0.1) == np.float32(0.1)  # limits are rounded to float32 as the value is
        for lo, hi in ((8, 9), (0, 6)):
            with pytest.raises(ModelFormatError, match=f"7 is outside {lo}..{hi}"):
                m.u32("a.u32", lo=lo, hi=hi)
            with pytest.raises(ModelFormatError, match="is outside"):
                m.f32("a.f32", lo=lo, hi=hi / 100)
        with pytest.raises(ModelFormatError, match="has 3 entries, expected 4"):
            m.int_array("a.ints", 4)


def test_error_offset_is_where_the_value_lies(path: Path) -> None:
    with GgufFile.open(path) as file:
        error = file.metadata.error("a.u32", "wrong")
        assert error.offset is not None
        assert path.read_bytes()[error.offset : error.offset + 4] == b"\7\0\0\0"


def test_string_array(path: Path) -> None:
    expected = [text.encode() for text in TEXTS]
    with GgufFile.open(path) as file:
        strings = file.metadata.strings("a.strings")
        assert list(strings) == expected
        assert len(strings) == len(expected)
        assert [strings[i] for i in range(-7, 7)] == expected + expected
        assert strings[1:6:2] == expected[1:6:2]
        spans = zip(strings.starts.tolist(), strings.lengths.tolist(), strict=True)
        assert [bytes(strings.raw[start : start + length]) for start, length in spans] == expected
        assert strings.raw.readonly
        with pytest.raises(IndexError):
            strings[7]


def test_views_outlive_the_file(path: Path) -> None:
    file = GgufFile.open(path)
    tensor = file.tensors["last"]
    view, strings = file.data(tensor), file.metadata.strings("a.strings")
    content = view.tobytes()
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.data(tensor)
    del file
    gc.collect()
    assert view.tobytes() == content
    assert strings[-1] == b"end"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks a mapped file, so this cannot happen there")
def test_change_on_disk_is_seen(path: Path) -> None:
    with GgufFile.open(path) as file:
        file.check_unchanged()
        with path.open("ab") as out:
            out.write(b"x")
        with pytest.raises(ModelChangedError, match=r"model\.gguf"):
            file.check_unchanged()
    with pytest.warns(UserWarning, match="1 bytes after"):
        file = GgufFile.open(path)
    with file:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        with pytest.raises(ModelChangedError):
            file.check_unchanged()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks a mapped file, so this cannot happen there")
def test_replacement_by_rename_leaves_the_mapping_alone(path: Path) -> None:
    with GgufFile.open(path) as file:
        other = path.with_suffix(".new")
        other.write_bytes(b"other")
        other.replace(path)
        file.check_unchanged()
        assert file.metadata.u32("a.u32") == 7


def test_copy_does_not_depend_on_the_file(path: Path) -> None:
    with GgufFile.open(path, load="copy") as file:
        content = file.data(file.tensors["last"]).tobytes()
        path.write_bytes(b"")
        file.check_unchanged()
        assert file.data(file.tensors["last"]).tobytes() == content


def test_no_descriptor_is_left_open(path: Path, tmp_path: Path) -> None:
    process = psutil.Process()
    count = process.num_handles if sys.platform == "win32" else process.num_fds
    before = count()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:300])
    for _ in range(3):
        GgufFile.open(path).close()
        GgufFile.open(path, load="copy")
        with pytest.raises(ModelFormatError):
            GgufFile.open(broken)
    gc.collect()
    assert count() == before


def test_same_as_the_gguf_package_writes(tmp_path: Path) -> None:
    """An independent writer: metadata of several types and one tensor of every executed format."""
    path, rng = tmp_path / "model.gguf", np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_string("general.name", "nämé")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "<é>"])
    writer.add_float32("x.y", 0.25)
    blocks = {}
    for name, f in FORMATS.items():
        shape = (4, 2 * f.nbytes)  # two blocks a row; the writer takes the shape in bytes
        blocks[name] = rng.integers(0, 256, shape, np.uint8)
        writer.add_tensor(f"t.{name}", blocks[name], raw_dtype=gguf.GGMLQuantizationType(f.type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile.open(path, strict=True) as file:
        assert file.metadata.string("general.name") == "nämé"
        assert file.metadata.f32("x.y") == 0.25
        assert list(file.metadata.strings("tokenizer.ggml.tokens")) == [b"a", b"b", "<é>".encode()]
        assert len(file.tensors) == len(FORMATS)
        for name, f in FORMATS.items():
            tensor = file.tensors[f"t.{name}"]
            assert (tensor.format, tensor.shape) == (f, (4, 2 * f.block))
            assert np.array_equal(file.data(tensor), blocks[name])


def test_real_model_opens_fast_and_small(real_model: Path) -> None:
    """262,144 tokens. The bound is what a user notices; the page cache is warm after the first of five."""
    process, times, grown = psutil.Process(), [], []
    for _ in range(5):
        gc.collect()
        before, start = process.memory_info().rss, time.perf_counter()
        file = GgufFile.open(real_model)
        times.append(time.perf_counter() - start)
        grown.append(process.memory_info().rss - before)
        strings = file.metadata.strings("tokenizer.ggml.tokens")
        assert isinstance(strings, StringArray)
        assert (len(strings), strings[2], strings[262143]) == (262144, b"<bos>", b"<unused6241>")
        assert len(file.tensors) == 2 + 18 * 13
        assert file.metadata.float_array("tokenizer.ggml.scores", 262144).flags.aligned
        file.close()
    assert min(times) < 0.2
    assert max(grown) < 20 * 2**20
