"""Checkpoints of the Llama family -> GGUF: keys, the order of rows, biases, factors of the rotation, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import pipeline, quantize
from edge_gemma.quantize.checkpoint.hf_config import read_model
from tests.conftest import TinyGguf
from tests.goldens.llama_cases import CASES, config, factors_of_llama_3, in_pairs, write_checkpoint
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import convert, metadata, values
from tests.quantize.test_lora import HEADS, adapter_tensors, write_adapter

LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 64
}


def test_metadata_is_what_llama_cpps_converter_writes(tmp_path: Path) -> None:
    changes = {"rope_scaling": {"type": "linear", "factor": 4.0}, "tie_word_embeddings": False}
    keys = metadata(convert(tmp_path, "llama", **changes))
    expected = {
        "block_count": 3,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 4.0,
        "attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "attention.key_length": 32,
        "attention.value_length": 32,
        "vocab_size": 384,
        "rope.dimension_count": 32,
    }
    assert {key.removeprefix("llama."): value for key, value in keys.items() if key.startswith("llama.")} == expected
    assert keys["general.architecture"] == "llama"
    own = [key for key in keys if key.startswith(("edge_gemma.attention", "edge_gemma.rope"))]
    assert own == ["edge_gemma.attention.scale"] and keys[own[0]] == np.float32(32**-0.5)


@pytest.mark.parametrize("name", ["llama-biased", "danube-1", "danube-3", "llama-linear"])
def test_a_folder_becomes_the_file_that_is_written_down_apart(tmp_path: Path, tiny_gguf: TinyGguf, name: str) -> None:
    write_checkpoint(CASES[name], tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as found, GgufFile.open(tiny_gguf(name)) as expected:
        assert found.tensors.keys() == expected.tensors.keys()
        for tensor in found.tensors:
            assert np.array_equal(values(found, tensor), values(expected, tensor)), tensor


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rows_come_in_pairs_wherever_slabs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Also those of biases, of values of two bytes, and of an adapter."""
    monkeypatch.setattr(pipeline, "SLAB_VALUES", 7 * 64)
    tensors = tiny.write_checkpoint(tmp_path / "hf", "llama", dtype=dtype, attention_bias=True)
    biases = {
        f"model.layers.{i}.{module}.bias": np.arange(tensors[f"model.layers.{i}.{module}.weight"].shape[0], dtype="<f4")
        for i in range(3)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    }
    tiny.write_weights(tmp_path / "hf", tensors | biases, dtype)
    write_adapter(tmp_path / "lora", adapter := adapter_tensors(tensors))
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32", lora=[(tmp_path / "lora", 1.0)])
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert file.tensors["blk.1.attn_q.bias"].format.name == "F32"
        for module, role in (("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k")):
            bias = in_pairs(biases[f"model.layers.1.{module}.bias"], HEADS[module])
            assert np.array_equal(values(file, f"blk.1.{role}.bias"), bias)
            a, b = (adapter[f"base_model.model.model.layers.1.{module}.lora_{x}.weight"] for x in "AB")
            expected = in_pairs(tensors[f"model.layers.1.{module}.weight"] + 2 * b @ a, HEADS[module])
            assert np.abs(values(file, f"blk.1.{role}.weight") - expected).max() < 1e-2
        assert np.array_equal(values(file, "blk.2.attn_v.bias"), biases["model.layers.2.self_attn.v_proj.bias"])


@pytest.mark.parametrize("transformers", [4, 5])
def test_factors_of_llama_3_are_a_tensor(tmp_path: Path, transformers: int) -> None:
    case = CASES["llama-3"]
    write_checkpoint(case, tmp_path / "hf", transformers=transformers)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert file.tensors["rope_freqs.weight"].format.name == "F32"
        np.testing.assert_allclose(values(file, "rope_freqs.weight"), np.asarray(factors_of_llama_3(case)), rtol=2e-6)


@pytest.mark.parametrize("type", ["F32", "Q4_0"])
def test_gguf_source_gives_the_same_file_as_the_folder(tmp_path: Path, type: str) -> None:
    """Rows stay as they are then; adapters are in a checkpoint's order all the same."""
    tensors = tiny.write_checkpoint(tmp_path / "hf", "llama", rope_scaling=LLAMA_3, tie_word_embeddings=False)
    write_adapter(tmp_path / "lora", adapter_tensors(tensors))
    lora = [(tmp_path / "lora", 1.0)]
    quantize(tmp_path / "hf", tmp_path / "wide.gguf", "F32")
    quantize(tmp_path / "hf", tmp_path / "direct.gguf", type, lora=lora)
    quantize(tmp_path / "wide.gguf", tmp_path / "again.gguf", type, lora=lora)
    with GgufFile.open(tmp_path / "direct.gguf") as x, GgufFile.open(tmp_path / "again.gguf") as y:
        assert "rope_freqs.weight" in x.tensors and "output.weight" in x.tensors
        assert all(np.array_equal(x.data(x.tensors[name]), y.data(y.tensors[name])) for name in x.tensors)


def test_a_window_is_told_of_and_kept(tmp_path: Path) -> None:
    """llama.cpp has none."""
    write_checkpoint(CASES["danube-1"], tmp_path / "hf")
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    assert "attention has a window: llama.cpp has none for llama, and attends to all" in report.notices
    keys = metadata(tmp_path / "out.gguf")
    assert keys["edge_gemma.attention.sliding_window"] == 13
    assert keys["edge_gemma.attention.sliding_window_pattern"] == [True] * 3
    assert not [key for key in keys if key.startswith("llama.") and "window" in key]
    quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", "Q4_0", requantize=True)
    again = metadata(tmp_path / "again.gguf")
    assert again["edge_gemma.attention.sliding_window"] == 13
    write_checkpoint(CASES["llama-sheared"], tmp_path / "plain")
    assert not quantize(tmp_path / "plain", tmp_path / "plain.gguf", "Q8_0").notices


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return folder


def test_biases_that_are_missing(tmp_path: Path) -> None:
    write_checkpoint(CASES["llama-sheared"], tmp_path / "hf")
    with pytest.raises(CheckpointError, match="attention_bias is true, but the weights hold none"):
        quantize(changed(tmp_path / "hf", attention_bias=True), tmp_path / "out.gguf")
    tensors = tiny.write_checkpoint(tmp_path / "some", "llama")
    tensors["model.layers.1.self_attn.k_proj.bias"] = np.zeros(64, np.float32)
    tiny.write_weights(tmp_path / "some", tensors)
    with pytest.raises(CheckpointError, match=r"2 tensors are missing.*layers\.0\.self_attn\.k_proj\.bias"):
        quantize(tmp_path / "some", tmp_path / "out.gguf")


def test_an_output_that_is_missing(tmp_path: Path) -> None:
    """Where config.json does not say, it is no copy of the embedding."""
    tiny.write_checkpoint(tmp_path / "hf", "llama", tie_word_embeddings=...)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight; if the embedding is the output, too"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_a_config_of_both_dialects_says_the_same() -> None:
    for case in CASES.values():
        assert len({read_model(config(case, transformers=version)).config for version in (4, 5)}) == 1
