"""The writer of random files: every format decodes to sane numbers, and the files follow llama-quantize's choices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.synthetic import MIXES, SHAPES, TYPES, Shape, plan, random_blocks, vocabulary, write

SMALL = Shape("gemma3", 8, 256, 512, 2, 1, 128, 600, 1024, 64, 1e6, 8.0)


@pytest.mark.parametrize("name", TYPES)
def test_blocks_decode_to_the_asked_size(name: str) -> None:
    rows = random_blocks(name, 64, 1024, np.random.default_rng(1))
    values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert values.shape == (64, 1024)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(1 / 32, rel=0.15)
    assert abs(values.mean()) < 0.15 / 32


def test_blocks_need_a_multiple_of_the_block() -> None:
    with pytest.raises(ValueError, match="288 columns are no multiple of Q6_K's block of 256"):
        random_blocks("Q6_K", 1, 288, np.random.default_rng(1))


@pytest.mark.parametrize("size", [261, 300, 512, 5000])
def test_vocabulary_is_valid(size: int) -> None:
    tokens, scores, types = vocabulary(size)
    assert len(tokens) == len(scores) == len(types) == len(set(tokens)) == size
    assert [t for t, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.BYTE] == [
        b"<0x%02X>" % byte for byte in range(256)
    ]
    assert tokens[:4] == [b"<pad>", b"<eos>", b"<bos>", b"<unk>"]


def test_vocabulary_too_small() -> None:
    with pytest.raises(ValueError, match="at least 261 tokens"):
        vocabulary(260)


def _types(shape: Shape, mix: str, part: str) -> list[str]:
    return [t.type for t in plan(shape, mix) if t.name.endswith(f".{part}.weight")]


@pytest.mark.parametrize(
    ("name", "tensors", "gigabytes"), [("gemma2-2b", 288, 1.70), ("gemma2-9b", 464, 5.75), ("gemma2-27b", 508, 16.64)]
)
def test_gemma_2_files_have_the_published_tensors_and_sizes(name: str, tensors: int, gigabytes: float) -> None:
    planned = plan(SHAPES[name], "Q4_K_M")
    sizes = {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] for kind in TYPES}
    weights = sum(t.rows * t.columns // sizes[t.type][0] * sizes[t.type][1] for t in planned)
    assert len(planned) == tensors
    assert weights / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_q4_k_m_widens_the_layers_that_llama_quantize_widens() -> None:
    wide = [0, 1, 2, 5, 8, 11, 14, 17, 20, 22, 23, 24, 25]
    for part in ("attn_v", "ffn_down"):
        assert [i for i, kind in enumerate(_types(SHAPES["gemma2-2b"], "Q4_K_M", part)) if kind == "Q6_K"] == wide
    assert set(_types(SHAPES["gemma2-2b"], "Q4_K_M", "ffn_up")) == {"Q4_K"}


def test_formats_that_do_not_fit_the_width_fall_back() -> None:
    """The real 270M file has exactly these types."""
    shape = SHAPES["gemma3-270m"]
    assert plan(shape, "Q4_K_M")[0].type == "Q8_0"
    assert set(_types(shape, "Q4_K_M", "attn_q")) == {"Q5_0"}
    assert _types(shape, "Q4_K_M", "attn_v").count("Q8_0") == 9
    assert set(_types(shape, "Q4_K_M", "attn_output")) == {"Q4_K"}
    assert _types(shape, "Q4_K_M", "ffn_down").count("Q6_K") == 9


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("mix", MIXES)
def test_written_files_are_read_by_gguf(tmp_path: Path, mix: str, pure: bool) -> None:
    shape = dataclasses.replace(SMALL, layers=2)
    write(tmp_path / "a.gguf", shape, mix, pure=pure)
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    found = [(t.name, t.tensor_type.name, tuple(t.shape)) for t in tensors]
    assert found == [
        (t.name, t.type, (t.columns, t.rows) if t.rows else (t.columns,)) for t in plan(shape, mix, pure=pure)
    ]
    last = tensors[-1]
    assert (tmp_path / "a.gguf").stat().st_size == last.data_offset + -(-last.n_bytes // 32) * 32


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / name, SMALL, "Q4_K_M", seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
