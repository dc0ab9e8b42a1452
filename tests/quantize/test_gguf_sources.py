"""GGUF -> GGUF: the same file as from the folder, blocks of the same type copied, damage refused."""

import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_gemma.errors import CheckpointError, ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.registry import read_config
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint import gguf_source
from edge_gemma.quantize.convert import open_source, plan
from edge_gemma.quantize.recipe import WRITTEN
from edge_gemma.quantize.verification import verify
from edge_gemma.text.tokenizer import Tokenizer
from tests.conftest import TinyGguf
from tests.gguf_builder import ARRAY, BOOL, STRING, U32, TensorRecord, array, runnable_gemma, string, typed, u32
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import TYPES, convert, metadata, values


@pytest.mark.parametrize("type", TYPES)
def test_gguf_source_gives_the_same_file_as_the_folder(tmp_path: Path, type: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    quantize(tmp_path / "hf", tmp_path / "wide.gguf", "F32")
    quantize(tmp_path / "hf", tmp_path / "direct.gguf", type)
    report = quantize(tmp_path / "wide.gguf", tmp_path / "again.gguf", type)
    assert not report.notices
    a, b = metadata(tmp_path / "direct.gguf"), metadata(tmp_path / "again.gguf")
    for each in (a, b):  # the norms are stored in different ways
        del each["edge_gemma.source.sha256"]
    assert a == b
    with GgufFile.open(tmp_path / "direct.gguf") as x, GgufFile.open(tmp_path / "again.gguf") as y:
        assert all(np.array_equal(x.data(x.tensors[name]), y.data(y.tensors[name])) for name in x.tensors)


def test_kinds_of_values_survive_a_gguf_source(tmp_path: Path) -> None:
    wide = convert(tmp_path)
    quantize(wide, tmp_path / "again.gguf")
    with GgufFile.open(wide) as a, GgufFile.open(tmp_path / "again.gguf") as b:
        assert {k: a.metadata.kind(k) for k in a.metadata} == {k: b.metadata.kind(k) for k in b.metadata}


def test_what_nobody_reads_is_carried_over_as_it_is(tmp_path: Path) -> None:
    """Keys of any spelling, texts of any bytes, arrays in arrays; of the tensors those of the text model."""
    odd: list[tuple[str | bytes, bytes]] = [
        ("tokenizer.chat_template.toolUse", typed(STRING, "{{ messages }}")),
        (b"odd \xff key", u32(7)),
        ("broken.text", typed(STRING, b"ab\xff")),
        ("long.text", typed(STRING, "x" * (2**20 + 1))),
        ("broken.flag", typed(BOOL, 2)),
        ("broken.flags", array(BOOL, [0, 1, 2])),
        ("nested", struct.pack("<IIQ", ARRAY, ARRAY, 2) + array(U32, [1, 2])[4:] + array(STRING, ["a", "bc"])[4:]),
    ]
    builder = runnable_gemma("gemma3")
    builder.keys += odd
    builder.tensors += [TensorRecord("v.norm", (3,)), TensorRecord("extra", (256,), 35, bytes(66))]
    (tmp_path / "odd.gguf").write_bytes(builder.build())
    with pytest.warns(UserWarning, match="are ignored: extra"):
        report = quantize(tmp_path / "odd.gguf", tmp_path / "out.gguf", "Q8_0")
    assert any(": 2 tensors" in notice for notice in report.notices)
    written = (tmp_path / "out.gguf").read_bytes()
    for key, value in odd:
        assert string(key) + value in written
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert not {"v.norm", "extra"} & set(file.tensors)
    assert verify(tmp_path / "out.gguf").ok
    with pytest.warns(UserWarning, match="are ignored: extra"):
        assert verify(tmp_path / "out.gguf", open_source(tmp_path / "odd.gguf")).ok
    with pytest.warns(UserWarning, match="are ignored: extra"):
        assert verify(tmp_path / "odd.gguf").ok


def test_a_window_larger_than_the_context_is_clamped_in_what_is_written_too(tmp_path: Path) -> None:
    builder = runnable_gemma("gemma3").set("gemma3.attention.sliding_window", u32(4096))
    (tmp_path / "wide.gguf").write_bytes(builder.build())
    quantize(tmp_path / "wide.gguf", tmp_path / "out.gguf", "Q8_0")
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert read_config(file).layers[0].window == 512


def test_quantized_source_is_told_and_its_blocks_of_the_same_type_are_copied(tmp_path: Path) -> None:
    small = convert(tmp_path, type="Q4_0")
    report = quantize(small, tmp_path / "again.gguf", "Q4_0")
    assert any("quantized already" in notice for notice in report.notices)
    with GgufFile.open(small) as a, GgufFile.open(tmp_path / "again.gguf") as b:
        assert all(np.array_equal(a.data(a.tensors[n]), b.data(b.tensors[n])) for n in a.tensors)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in WRITTEN])
def test_a_source_of_a_type_that_is_not_written(tmp_path: Path, tiny_gguf: TinyGguf, name: str) -> None:
    source = tiny_gguf("gemma2-256", name)
    report = quantize(source, tmp_path / "out.gguf", "F32", requantize=True)
    assert any(f"quantized already ({name})" in notice for notice in report.notices)
    with GgufFile.open(tiny_gguf("gemma2-256", name, dequantized=True)) as a, GgufFile.open(tmp_path / "out.gguf") as b:
        assert all(np.array_equal(a.data(a.tensors[n]), b.data(b.tensors[n])) for n in a.tensors)
    assert verify(source).ok and verify(tmp_path / "out.gguf", open_source(source)).ok


def test_damaged_gguf_source(tmp_path: Path) -> None:
    path = convert(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFormatError):
        quantize(path, tmp_path / "again.gguf")


def patched(path: Path, before: bytes, after: bytes) -> Path:
    """A copy of the file with one place changed."""
    data = path.read_bytes()
    assert len(before) == len(after) and data.count(before) == 1
    copy = path.with_name("patched.gguf")
    copy.write_bytes(data.replace(before, after))
    return copy


def entry_u32(key: str, value: int) -> bytes:
    return key.encode() + struct.pack("<II", 4, value)


def test_a_window_beyond_the_context_is_cut_as_in_a_folder(tmp_path: Path) -> None:
    key = "gemma3.attention.sliding_window"
    tiny.write_checkpoint(tmp_path / "hf", "gemma3", sliding_window=4096)
    quantize(tmp_path / "hf", tmp_path / "wide.gguf", "F32")
    wide = patched(tmp_path / "wide.gguf", entry_u32(key, 512), entry_u32(key, 4096))
    quantize(wide, tmp_path / "again.gguf", "F32")
    assert metadata(wide)[key] == 4096 and metadata(tmp_path / "again.gguf")[key] == 512


def token(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


REFUSED_VOCABULARIES = {
    "another tokenizer": (token("tokenizer.ggml.model") + b"\x08\0\0\0" + token("llama"), b"llama", b"gpt-2"),
    "twin tokens": (token("<0x41>") + token("<0x42>"), b"<0x42>", b"<0x41>"),
    "eos beyond the vocabulary": (entry_u32("tokenizer.ggml.eos_token_id", 1), b"\1\0\0\0", b"\1\0\0\1"),
    "a byte that is a word": (token("<0x41>"), b"<0x41>", b"<0xxx>"),
    "no types": (token("tokenizer.ggml.token_type"), b"token_type", b"token_tips"),
}


@pytest.mark.parametrize("name", REFUSED_VOCABULARIES)
def test_what_run_refuses_is_not_quantized(tmp_path: Path, name: str) -> None:
    place, before, after = REFUSED_VOCABULARIES[name]
    wrong = patched(convert(tmp_path), place, after.join(place.rsplit(before, 1)))
    with pytest.raises(ModelFormatError) as refused, GgufFile.open(wrong) as file:
        Tokenizer.from_gguf(file)
    for attempt in (lambda: quantize(wrong, tmp_path / "again.gguf"), lambda: plan(wrong)):
        with pytest.raises(ModelFormatError, match=re.escape(str(refused.value))):
            attempt()
    assert not (tmp_path / "again.gguf").exists()


def test_what_was_written_is_opened_with_its_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the source's reader let through."""
    place = token("<0x41>") + token("<0x42>")
    wrong = patched(convert(tmp_path), place, place.replace(b"2", b"1"))
    monkeypatch.setattr(gguf_source, "read_vocabulary", lambda file: None)
    with pytest.raises(
        CheckpointError, match=r"again\.gguf is not written, for it would not run: tokenizer\.ggml\.tok"
    ):
        quantize(wrong, tmp_path / "again.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out.gguf", "patched.gguf"]


def test_unknown_type_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'Q3_K' is not written; one of F32"):
        quantize(tmp_path, tmp_path / "out.gguf", "Q3_K")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        quantize(tmp_path / "nothing", tmp_path / "out.gguf")


def test_the_real_model_becomes_q4_0(tmp_path: Path, real_model: Path) -> None:
    """As the demo does it: the norms, the tokenizer and the Q8_0 embedding are carried over bit by bit."""
    quantize(real_model, tmp_path / "out.gguf", "Q4_0", requantize=True)
    with GgufFile.open(real_model) as a, GgufFile.open(tmp_path / "out.gguf", strict=True) as b:
        assert set(a.tensors) == set(b.tensors)
        for name in ("token_embd.weight", "blk.3.attn_q_norm.weight", "output_norm.weight"):
            assert np.array_equal(a.data(a.tensors[name]), b.data(b.tensors[name]))
        wide = values(a, "blk.17.ffn_down.weight")
        written = b.data(b.tensors["blk.17.ffn_down.weight"])
        assert np.array_equal(written, gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q4_0))
        assert np.array_equal(*(list(f.metadata.strings("tokenizer.ggml.tokens")) for f in (a, b)))
        assert b.metadata.u32("general.file_type") == 2
