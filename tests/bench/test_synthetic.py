"""The writer of random files: every format decodes to sane numbers, and the files are as large as published ones."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench import synthetic_gemma4
from bench.synthetic import _SCALES, SHAPES, Shape, plan, random_blocks, vocabulary, write
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
SMALL_GEMMA4 = {
    "hidden_size": 256, "intermediate_size": 512, "vocab_size": 600, "vocab_size_per_layer_input": 600,
    "moe_intermediate_size": 256,
}  # fmt: skip
REAL_HEADER = 15.8e6
"""Bytes, nearly all of the real vocabulary and its merges."""
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


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "looked_up", "gigabytes"),
    [
        ("gemma4-e2b", 601, 4.65, 2.35, 3.35),
        ("gemma4-e4b", 720, 7.52, 2.82, 5.15),
        ("gemma4-12b", 667, 11.9, 0, 6.975),
        ("gemma4-26b-a4b", 658, 25.2, 0, 14.44),
        ("gemma4-31b", 833, 30.7, 0, 17.65),
    ],
)
def test_gemma_4_has_the_published_tensors_and_sizes(
    name: str, tensors: int, parameters: float, looked_up: float, gigabytes: float
) -> None:
    """Tensors and parameters of the checkpoints, which have keys and values of layers that share others', too; sizes of
    the official files in Q4_0, without these (12B: computed)."""
    config = synthetic_gemma4.config(synthetic_gemma4.SHAPES[name])
    planned = {
        name: (math.prod(size), *gguf.GGML_QUANT_SIZES[kind])
        for name, size, kind in synthetic_gemma4.plan(config, "Q4_0")
    }
    unused = [math.prod(spec.shape) for spec in config.unused_tensors()]
    assert len(planned) + len(unused) == tensors
    assert (sum(unused) + sum(n for n, _, _ in planned.values())) / 1e9 == pytest.approx(parameters, abs=0.05)
    assert planned.get("per_layer_token_embd.weight", (0,))[0] / 1e9 == pytest.approx(looked_up, abs=0.005)
    nbytes = sum(n // block * size for n, block, size in planned.values()) + REAL_HEADER
    assert nbytes / 1e9 == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize("name", ["gemma4-e2b", "gemma4-26b-6-layers"])
@pytest.mark.parametrize("mix", ["Q4_0", "Q4_K_M"])
def test_written_files_are_of_the_shape(tmp_path: Path, name: str, mix: str) -> None:
    shape = synthetic_gemma4.SHAPES[name] | SMALL_GEMMA4
    for path in (tmp_path / "a.gguf", tmp_path / "b.gguf"):
        synthetic_gemma4.write(path, shape, mix)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    asked = synthetic_gemma4.config(shape)
    with GgufFile.open(tmp_path / "a.gguf") as file:
        found = [(t.name, t.shape, gguf.GGMLQuantizationType[t.format.name]) for t in file.tensors.values()]
        config, weights = read_config(file), Weights.bind(file, read_config(file))
    ropes = (replace(layer.rope, factors=None) for layer in asked.layers)  # the file has the factors in a tensor
    layers = tuple(replace(layer, rope=rope) for layer, rope in zip(asked.layers, ropes, strict=True))
    assert replace(config, rms_eps=asked.rms_eps) == replace(asked, layers=layers)
    assert weights.rope_factors == pytest.approx(asked.layers[-1].rope.factors)
    assert found == synthetic_gemma4.plan(config, mix)


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
