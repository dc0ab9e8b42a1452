"""Folder -> GGUF: names, values and formats of tensors, which of them are taken, and what is told."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.gguf.file import GgufFile
from edge_gemma.models import gemma
from edge_gemma.quantize import quantize
from tests.goldens.every_case import CONTINUING
from tests.goldens.llama_cases import in_pairs
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import TYPES, convert, values

HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}
NAMES = {
    "gemma": {"post_attention_layernorm": "ffn_norm"},
    "gemma2": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
NAMES["gemma3"] = NAMES["gemma4"] = NAMES["gemma2"]
NAMES["llama"] = NAMES["gemma"]
NAMES["vaultgemma"] = {"pre_feedforward_layernorm": "ffn_norm"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", CONTINUING)
def test_every_tensor_has_its_name_and_values(tmp_path: Path, architecture: str, shards: int) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", architecture, shards=shards)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    blocks = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        **NAMES[architecture],
    }
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert len(file.tensors) == len(tensors) + (architecture == "gemma4")  # rope_freqs
        shift_of_norms = np.float32(architecture not in ("gemma4", "llama"))
        assert np.array_equal(values(file, "token_embd.weight"), tensors["model.embed_tokens.weight"])
        assert np.array_equal(values(file, "output_norm.weight"), tensors["model.norm.weight"] + shift_of_norms)
        for name, expected in tensors.items():
            if name.startswith("model.layers."):
                _, _, layer, block = name.removesuffix(".weight").split(".", 3)
                stored = in_pairs(expected, HEADS[block]) if architecture == "llama" and block in HEADS else expected
                shift = shift_of_norms if expected.ndim == 1 else np.float32(0)
                assert np.array_equal(values(file, f"blk.{layer}.{blocks[block]}.weight"), stored + shift), name


@pytest.mark.parametrize("type", TYPES)
def test_types_of_a_file(tmp_path: Path, type: str) -> None:
    path = convert(tmp_path, type=type)
    embedding = "Q8_0" if type == "Q4_0" else type
    with GgufFile.open(path, strict=True) as file:
        assert file.metadata.u32("general.file_type") == FILE_TYPES[type]
        assert file.metadata.u32("general.quantization_version") == 2
        for tensor in file.tensors.values():
            wanted = "F32" if len(tensor.shape) == 1 else embedding if tensor.name.startswith("token_embd") else type
            assert tensor.format.name == wanted, tensor.name


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_blocks_are_the_reference_ones(tmp_path: Path, dtype: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", dtype=dtype)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q4_0")
    source = tensors["model.layers.1.mlp.down_proj.weight"]
    if dtype == "BF16":
        source = (source.view(np.uint32) & 0xFFFF0000).view(np.float32)
    source = source.astype(np.float16 if dtype == "F16" else np.float32).astype(np.float32)
    with GgufFile.open(tmp_path / "out.gguf") as file:
        written = file.data(file.tensors["blk.1.ffn_down.weight"])
        assert np.array_equal(written, gguf.quants.quantize(source, gguf.GGMLQuantizationType.Q4_0))


def test_norms_of_half_precision_are_widened_before_one_is_added(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", dtype="F16")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F16")
    expected = tensors["model.norm.weight"].astype(np.float16).astype(np.float32) + np.float32(1)
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert np.array_equal(values(file, "output_norm.weight"), expected)


@pytest.mark.parametrize(
    ("architecture", "changes", "notice"),
    [
        ("gemma2", {"query_pre_attn_scalar": 24}, "attention scale 0.204124: llama.cpp will use 0.176777"),
        ("gemma2", {"tie_word_embeddings": False}, "output matrix of its own"),
        ("gemma3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 5}, "unusual pattern"),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_told(
    tmp_path: Path, architecture: str, changes: dict[str, Any], notice: str
) -> None:
    tiny.write_checkpoint(tmp_path / "hf", architecture, **changes)
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert any(notice in text for text in report.notices)


def test_untied_output(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", tie_word_embeddings=False)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert np.array_equal(values(file, "output.weight"), tensors["lm_head.weight"])


def test_tied_output_that_was_saved_is_left_out(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    quantize(tmp_path / "hf", tmp_path / "out.gguf")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert "output.weight" not in file.tensors


def write_multimodal(folder: Path, prefix: str, vision: str, rows: int) -> dict[str, NDArray[np.float32]]:
    tensors = tiny.write_checkpoint(folder, "gemma3", vocab_size=rows)
    config = tiny.make_config("gemma3", vocab_size=...)
    del config["architectures"]
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    renamed = {name.replace("model.", prefix, 1): value for name, value in tensors.items()}
    extra = {f"{vision}vision_tower.a.weight": np.ones((2, 3, 4), np.float32)}
    extra[f"{vision}multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(4, np.float32)
    tiny.write_weights(folder, renamed | extra)
    return tensors


@pytest.mark.parametrize(
    ("prefix", "vision"), [("language_model.model.", ""), ("model.language_model.", "model."), ("language_model.", "")]
)
def test_text_model_of_a_multimodal_folder(
    tmp_path: Path, prefix: str, vision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny.VOCAB + 64
    monkeypatch.setitem(gemma.HF_3, "vocab_size", rows)
    tensors = write_multimodal(tmp_path / "hf", prefix, vision, rows)
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert "vision tower left out: 2 tensors" in report.notices
    assert "64 rows of the embedding without a token cut off (384 kept)" in report.notices
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert len(file.tensors) == len(tensors)
        embedding = values(file, "token_embd.weight")
        assert np.array_equal(embedding, tensors["model.embed_tokens.weight"][: tiny.VOCAB])


def test_report(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    calls: list[tuple[int, int, str]] = []
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", progress=lambda *call: calls.append(call))
    assert report.bytes_out == (tmp_path / "out.gguf").stat().st_size
    assert report.tensors == 11 * 3 + 2
    assert 4.5 < report.bits_per_weight < 8.6
    assert calls[-1][:2] == (report.bytes_in, report.bytes_in)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
