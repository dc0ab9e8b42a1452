"""The writer of random files: every format decodes to sane numbers, and the files are as large as published ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.synthetic import _SCALES, SHAPES, Shape, plan, random_blocks, vocabulary, write

ROOT = Path(__file__).resolve().parents[2]
SMALL = Shape(2, 256, 512, 2, 1, 128, vocab=600, context=1024, window=64)


@pytest.mark.parametrize("name", _SCALES)
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


@pytest.mark.parametrize(
    ("name", "tensors", "gigabytes"), [("gemma2-2b", 288, 1.70), ("gemma2-9b", 464, 5.75), ("gemma2-27b", 508, 16.64)]
)
def test_files_have_the_published_tensors_and_sizes(name: str, tensors: int, gigabytes: float) -> None:
    planned = plan(SHAPES[name], "Q4_K_M")
    matrices = [(np.prod(size), *gguf.GGML_QUANT_SIZES[kind]) for _, size, kind in planned if len(size) == 2]
    assert len(planned) == tensors
    assert sum(n // block * nbytes for n, block, nbytes in matrices) / 1e9 == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize("mix", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_written_files_are_read_by_gguf_and_are_always_the_same(tmp_path: Path, mix: str) -> None:
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, SMALL, mix)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    found = [(t.name, tuple(t.shape[::-1].tolist()), t.tensor_type) for t in tensors]
    assert found == plan(SMALL, mix)
    last = tensors[-1]
    assert (tmp_path / "a.gguf").stat().st_size == last.data_offset + -(-last.n_bytes // 32) * 32


def test_blocks_and_vocabularies_need_nothing_of_this_project() -> None:
    program = "import sys, bench.synthetic; sys.exit('edge_gemma' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
