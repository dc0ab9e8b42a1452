"""Gemma 4 files that are wrong: each key and tensor that it alone has, and the error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from tests.conftest import TinyGguf
from tests.gguf_builder import BOOL, F32, I32, STRING, U32, Builder, TensorRecord, array, f32, typed, u32
from tests.goldens.gemma4_cases import GEMMA4_CASES, write_gguf

KINDS = {"UINT32": U32, "INT32": I32, "FLOAT32": F32, "STRING": STRING, "BOOL": BOOL}
TYPES = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}


def builder_of(path: Path) -> Builder:
    """The file, whose parts a test can replace."""
    builder = Builder()
    with GgufFile.open(path) as file:
        for key, value in file.metadata.items():
            kind = file.metadata.kind(key)
            if kind.startswith("ARRAY["):
                found: Any = list(value)  # type: ignore[arg-type]
                builder.keys.append((key, array(KINDS[kind[6:-1]], found)))
            else:
                builder.keys.append((key, typed(KINDS[kind], value)))  # type: ignore[arg-type]
        for tensor in file.tensors.values():
            data = file.data(tensor).tobytes()
            builder.tensors.append(TensorRecord(tensor.name, tensor.shape[::-1], TYPES[tensor.format.name], data))
    return builder


def read(builder: Builder, folder: Path) -> tuple[Config, Weights]:
    (folder / "model.gguf").write_bytes(builder.build())
    with GgufFile.open(folder / "model.gguf", strict=True) as file:
        config = read_config(file)
        return config, Weights.bind(file, config)


def refused(builder: Builder, folder: Path) -> ModelFormatError:
    with pytest.raises(ModelFormatError) as caught:
        read(builder, folder)
    assert caught.value.path == str(folder / "model.gguf")
    return caught.value


E2B, MOE, SINGLE = "gemma4-e2b", "gemma4-26b", "gemma4-12b"


@pytest.mark.parametrize("case", GEMMA4_CASES)
def test_a_copy_is_read(tmp_path: Path, tiny_gguf: TinyGguf, case: str) -> None:
    """The others are refused for what is changed in them."""
    read(builder_of(tiny_gguf(case)), tmp_path)


KEYS: list[tuple[str, str, bytes | None, str]] = [
    (E2B, "attention.key_length_swa", None, "required"),
    (E2B, "attention.key_length_swa", u32(31), "odd"),
    (E2B, "attention.key_length_swa", u32(4), "outside 8"),
    (E2B, "attention.key_length_swa", f32(32), "is FLOAT32"),
    (E2B, "attention.value_length_swa", None, "required"),
    (E2B, "attention.value_length_swa", u32(64), "must equal the key length, 32"),
    (E2B, "attention.value_length", u32(32), "must equal the key length, 64"),
    (E2B, "rope.dimension_count", u32(16), "must equal the key length, 64"),
    (E2B, "rope.dimension_count_swa", u32(8), "must equal the key length, 32"),
    (E2B, "attention.sliding_window_pattern", None, "required"),
    (E2B, "attention.sliding_window_pattern", array(BOOL, [1] * 8), "has 8 entries, expected 9"),
    (E2B, "attention.sliding_window_pattern", array(BOOL, [2] * 9), "entry 0 is 2"),
    (E2B, "attention.sliding_window", None, "no attention.sliding_window"),
    (E2B, "attention.layer_norm_rms_epsilon", None, "required"),
    (E2B, "attention.shared_kv_layers", u32(9), "outside 0..8"),
    (E2B, "attention.shared_kv_layers", u32(7), "no global one before"),
    (E2B, "attention.shared_kv_layers", typed(STRING, "3"), "is STRING"),
    (E2B, "attention.head_count_kv", array(I32, [1] * 8), "has 8 entries, expected 9"),
    (E2B, "attention.head_count_kv", array(I32, [1] * 8 + [0]), "0 is outside 1..4"),
    (E2B, "attention.head_count_kv", array(I32, [1] * 8 + [-1]), "-1 is outside 1..4"),
    (E2B, "attention.head_count_kv", array(I32, [3] * 9), "3 does not divide the 4"),
    (E2B, "attention.head_count_kv", array(I32, [1] * 8 + [2]), "2 heads in layer 8, 1 in layer 5"),
    (E2B, "feed_forward_length", array(I32, [160] * 8), "has 8 entries, expected 9"),
    (E2B, "feed_forward_length", array(I32, [160] * 8 + [168]), "168 is no multiple of 32"),
    (E2B, "feed_forward_length", array(I32, [160] * 8 + [2**30]), "outside 32"),
    (E2B, "feed_forward_length", array(F32, [160.0] * 9), "is ARRAY"),
    (E2B, "embedding_length_per_layer_input", None, "required"),
    (E2B, "embedding_length_per_layer_input", u32(33), "33 is no multiple of 32"),
    (E2B, "embedding_length_per_layer_input", u32(2**20), "outside 0"),
    (E2B, "attention.causal", typed(BOOL, 0), "is not run so"),
    (E2B, "attention.causal", typed(BOOL, 2), "a BOOL is 0 or 1"),
    (E2B, "final_logit_softcapping", f32(-1), "above 0"),
    (E2B, "final_logit_softcapping", f32(float("nan")), "not finite"),
    (E2B, "final_logit_softcapping", u32(0), "is UINT32"),
    (E2B, "rope.freq_base_swa", f32(0.5), "outside 1"),
    (MOE, "expert_count", u32(2000), "outside 0..1024"),
    (MOE, "expert_used_count", None, "required"),
    (MOE, "expert_used_count", u32(9), "outside 1..8"),
    (MOE, "expert_used_count", u32(0), "outside 1..8"),
    (MOE, "expert_feed_forward_length", None, "required"),
    (MOE, "expert_feed_forward_length", u32(40), "40 is no multiple of 32"),
    (MOE, "expert_feed_forward_length", array(I32, [64] * 5 + [96]), "differs between layers"),
]


@pytest.mark.parametrize(("case", "key", "value", "message"), KEYS, ids=[f"{c}-{k}-{m}" for c, k, _, m in KEYS])
def test_keys(tmp_path: Path, tiny_gguf: TinyGguf, case: str, key: str, value: bytes | None, message: str) -> None:
    error = refused(builder_of(tiny_gguf(case)).set(f"gemma4.{key}", value), tmp_path)
    assert message in str(error) and key.removesuffix("_swa") in str(error)


def test_one_number_for_all_layers_may_be_an_array(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    builder = builder_of(tiny_gguf(MOE)).set("gemma4.expert_feed_forward_length", array(I32, [64] * 6))
    config, _ = read(builder.set("gemma4.feed_forward_length", array(U32, [160] * 6)), tmp_path)
    assert config.experts is not None and config.experts.d_ff == 64
    assert {layer.d_ff for layer in config.layers} == {160}


def test_no_soft_cap_is_said_by_zero_or_not_at_all(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    for value in (None, f32(0)):
        builder = builder_of(tiny_gguf(E2B)).set("gemma4.final_logit_softcapping", value)
        assert read(builder, tmp_path)[0].final_softcap is None


# ---- tensors -----------------------------------------------------------------------------------------------------

ROLES_OF = {
    E2B: [
        "rope_freqs.weight", "per_layer_token_embd.weight", "per_layer_model_proj.weight", "per_layer_proj_norm.weight",
        "blk.1.attn_v.weight", "blk.2.attn_v.weight", "blk.0.attn_k_norm.weight", "blk.8.attn_q_norm.weight",
        "blk.4.inp_gate.weight", "blk.4.proj.weight", "blk.4.post_norm.weight",
    ],
    MOE: [
        "blk.3.ffn_gate_inp.weight", "blk.3.ffn_gate_inp.scale", "blk.3.ffn_gate_up_exps.weight",
        "blk.3.ffn_down_exps.weight", "blk.3.pre_ffw_norm_2.weight", "blk.3.post_ffw_norm_1.weight",
        "blk.3.post_ffw_norm_2.weight", "blk.0.attn_v.weight",
    ],
}  # fmt: skip
TENSORS = [(case, name) for case, names in ROLES_OF.items() for name in names]


@pytest.mark.parametrize(("case", "name"), TENSORS)
def test_a_missing_tensor(tmp_path: Path, tiny_gguf: TinyGguf, case: str, name: str) -> None:
    builder = builder_of(tiny_gguf(case))
    builder.tensors.remove(builder.tensor(name))
    error = refused(builder, tmp_path)
    assert error.field == name and "missing tensors" in str(error)


@pytest.mark.parametrize(
    ("case", "name"),
    [*TENSORS, (E2B, "blk.0.layer_output_scale.weight"), (MOE, "blk.3.ffn_down_exps.scale")],
)
def test_a_misshapen_tensor(tmp_path: Path, tiny_gguf: TinyGguf, case: str, name: str) -> None:
    builder = builder_of(tiny_gguf(case))
    record = builder.tensor(name)
    record.dims, record.data = (*record.dims[:-1], record.dims[-1] + 1), None
    error = refused(builder, tmp_path)
    assert error.field == name and "has shape" in str(error)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (E2B, "rope_freqs.weight"),
        (E2B, "per_layer_proj_norm.weight"),
        (E2B, "blk.0.layer_output_scale.weight"),
        (MOE, "blk.3.ffn_gate_inp.scale"),
        (MOE, "blk.3.ffn_down_exps.scale"),
    ],
)
def test_vectors_are_finite_numbers_in_f32(tmp_path: Path, tiny_gguf: TinyGguf, case: str, name: str) -> None:
    builder = builder_of(tiny_gguf(case))
    record = builder.tensor(name)
    record.data = np.full(record.dims, np.nan, "<f4").tobytes()
    assert "entry 0 is not finite" in str(refused(builder, tmp_path))
    record.type_id, record.data = 1, None
    error = refused(builder, tmp_path)
    assert error.field == name and "must be F32" in str(error)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_factors_of_rotation_are_above_zero(tmp_path: Path, tiny_gguf: TinyGguf, value: float) -> None:
    builder = builder_of(tiny_gguf(E2B))
    record = builder.tensor("rope_freqs.weight")
    record.data = np.array([1.0] * 7 + [value] + [1e30] * 24, "<f4").tobytes()
    assert "entry 7 is not above 0" in str(refused(builder, tmp_path))


def test_experts_in_one_matrix_are_refused(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    builder = builder_of(tiny_gguf(MOE))
    builder.tensor("blk.2.ffn_down_exps.weight").dims = (64, 96 * 8)
    assert "has shape (768, 64), the metadata asks for (8, 96, 64)" in str(refused(builder, tmp_path))


def test_fused_attention_weights_are_refused(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    builder = builder_of(tiny_gguf(E2B))
    builder.tensor("blk.0.attn_q.weight").name = "blk.0.attn_qkv.weight"
    assert "fused attention weights" in str(refused(builder, tmp_path))


def test_experts_without_their_keys_are_refused(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    """Without them another model would be computed; and inputs of layers likewise."""
    builder = builder_of(tiny_gguf(MOE)).set("gemma4.expert_count", None)
    assert "gemma4 has no such tensors: blk.0.ffn_down_exps" in str(refused(builder, tmp_path))
    builder = builder_of(tiny_gguf(E2B)).set("gemma4.embedding_length_per_layer_input", u32(0))
    assert "gemma4 has no such tensors: blk.0.inp_gate" in str(refused(builder, tmp_path))


def test_keys_of_layers_that_share_may_be_there_or_not(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    builder = builder_of(tiny_gguf(E2B))
    _, with_them = read(builder, tmp_path)
    dead = [
        t for t in builder.tensors if str(t.name).startswith(("blk.6.", "blk.7.", "blk.8.")) and "attn_k" in str(t.name)
    ]
    assert len(dead) == 6
    assert with_them.layers[7].get("attn_k") is None and not {t.name for t in dead} & {t.name for t in with_them.bound}
    for record in dead:
        record.dims, record.data = (32,), None  # nobody reads them
    read(builder, tmp_path)
    builder.tensors = [t for t in builder.tensors if t not in dead]
    read(builder, tmp_path)


def test_values_made_as_keys_are_told_by_their_missing_tensors(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    """Of all global layers, or of none: one alone that is missing was lost."""
    config, _ = read(builder_of(tiny_gguf(SINGLE)), tmp_path)
    assert [layer.keys_are_values for layer in config.layers] == [i % 6 == 5 for i in range(12)]
    builder = builder_of(tiny_gguf(E2B))
    assert not any(layer.keys_are_values for layer in read(builder, tmp_path)[0].layers)
    builder.tensors.remove(builder.tensor("blk.2.attn_v.weight"))
    assert refused(builder, tmp_path).field == "blk.2.attn_v.weight"
    builder.tensors.remove(builder.tensor("blk.5.attn_v.weight"))
    assert [i for i, layer in enumerate(read(builder, tmp_path)[0].layers) if layer.keys_are_values] == [2, 5]


def test_towers_of_ollamas_files_are_left_alone(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    builder = builder_of(tiny_gguf(E2B)).set("tokenizer.ggml.pre", typed(STRING, "gemma4"))
    builder.set("gemma4.vision.block_count", u32(16)).set("gemma4.audio.conv_kernel_size", u32(5))
    for name in ("v.blk.0.attn_q.weight", "a.blk.0.ln1.weight", "mm.input_projection.weight", "v.clamp_data"):
        builder.tensors.append(TensorRecord(name, (32,)))
    _, weights = read(builder, tmp_path)
    assert not any(tensor.name.startswith(("v.", "a.", "mm.")) for tensor in weights.bound)


def test_gate_and_up_of_experts_apart(tmp_path: Path) -> None:
    write_gguf(GEMMA4_CASES[MOE], tmp_path / "split.gguf", split_experts=True)
    config, weights = read(builder_of(tmp_path / "split.gguf"), tmp_path)
    assert config.experts is not None and not config.experts.fused
    assert weights.layers[1].ffn_up_exps.shape == (8, 64, 96)
    builder = builder_of(tmp_path / "split.gguf")
    builder.tensors.remove(builder.tensor("blk.1.ffn_up_exps.weight"))
    assert refused(builder, tmp_path).field == "blk.1.ffn_up_exps.weight"
