"""The scale of queries is the checkpoint's own, also where every reader of llama.cpp's keys would guess another."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma import Gemma
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from tests.quantize import tiny_checkpoint as tiny

HEAD_DIM = 32  # of the tiny models; a checkpoint that says nothing else divides by its root
IDS = [2, 270, 281, 300, 271, 280, 290, 275]


def logits(path: Path) -> NDArray[np.float32]:
    with Gemma(path, threads=1) as model:
        return np.array(model.logits(IDS))


def converted(folder: Path, scalar: float, query_factor: float = 1.0) -> Path:
    """A GGUF file of a tiny Gemma 2 with that query_pre_attn_scalar and its queries multiplied by a factor."""
    tensors = tiny.write_checkpoint(folder / "hf", "gemma2", query_pre_attn_scalar=scalar)
    for name in tensors:
        if "q_proj" in name:
            tensors[name] *= np.float32(8 * query_factor)  # sharp attention, so that its scale matters
    tiny.write_weights(folder / "hf", tensors)
    quantize(folder / "hf", folder / "out.gguf", "F32")
    return folder / "out.gguf"


@pytest.mark.parametrize("scalar", [224, 256, 24.5])
def test_the_old_scale_of_9b_checkpoints_is_kept(tmp_path: Path, scalar: float) -> None:
    """The first 9B checkpoints say 224 = 3584 / 16, later ones 256; the weights are the same."""
    path = converted(tmp_path / "a", scalar)
    with GgufFile.open(path) as file:
        assert file.metadata.f32("edge_gemma.attention.scale") == np.float32(scalar**-0.5)
    same = converted(tmp_path / "b", HEAD_DIM, (HEAD_DIM / scalar) ** 0.5)
    usual = logits(converted(tmp_path / "c", HEAD_DIM))
    difference = np.abs(logits(path) - logits(same)).max()
    assert difference < 1e-3, "keys and values are cached in float16, so not closer"
    assert np.abs(logits(path) - usual).max() > 0.02


def test_a_gguf_source_hands_it_on(tmp_path: Path) -> None:
    path = converted(tmp_path, 224)
    quantize(path, tmp_path / "again.gguf", "F32")
    with GgufFile.open(tmp_path / "again.gguf") as file:
        assert file.metadata.f32("edge_gemma.attention.scale") == np.float32(224**-0.5)
    assert np.array_equal(logits(path), logits(tmp_path / "again.gguf"))


def test_it_is_told_that_llama_cpp_takes_another(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "query_pre_attn_scalar": 224}))
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert "attention scale 0.0668153: llama.cpp will use 0.176777 instead" in report.notices
