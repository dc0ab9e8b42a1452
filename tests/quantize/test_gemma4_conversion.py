"""Gemma 4 folders -> GGUF: names, values, keys and formats as llama.cpp has them, and what is told or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.registry import ARCHITECTURES, read_config
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint.hf_config import read_model
from edge_gemma.quantize.convert import plan
from edge_gemma.quantize.recipe import Overrides
from tests.conftest import TinyGguf
from tests.goldens.gemma4_cases import GEMMA4_CASES, Gemma4Case, config, gguf_name, weights, write_checkpoint
from tests.models.test_architectures import without_factors
from tests.quantize.tiny_checkpoint import write_safetensors

DEAD = ("attn_k", "attn_v", "attn_k_norm")

# The keys of google/gemma-4-26B-A4B-it's file, in the order of llama.cpp's converter (models/ggml-vocab-gemma-4.gguf).
KEYS_OF_26B = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "rope.freq_base",
    "rope.freq_base_swa",
    "attention.layer_norm_rms_epsilon",
    "expert_count",
    "expert_used_count",
    "attention.key_length",
    "attention.value_length",
    "final_logit_softcapping",
    "attention.sliding_window",
    "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
    "attention.sliding_window_pattern",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "expert_feed_forward_length",
    "rope.dimension_count",
    "rope.dimension_count_swa",
]


def checkpoint(folder: Path, name: str, **changes: Any) -> Path:
    """A case's folder, with keys of its config.json changed."""
    case = GEMMA4_CASES[name]
    write_checkpoint(case, folder / "hf")
    (folder / "hf/config.json").write_text(json.dumps(config(case) | changes), "utf-8")
    return folder / "hf"


def with_tensors(folder: Path, case: Gemma4Case, changes: dict[str, Any], dtype: str = "F32") -> Path:
    """The folder of a case with tensors replaced, or left out where they are None."""
    tensors = {name: values for name, values in (weights(case) | changes).items() if values is not None}
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    return folder


@pytest.mark.parametrize("form", ["new", "old", "wrapped"])
@pytest.mark.parametrize("name", GEMMA4_CASES)
def test_a_folder_becomes_the_file_of_the_same_weights(
    tmp_path: Path, tiny_gguf: TinyGguf, name: str, form: str
) -> None:
    """Names and values of all tensors but those that nothing reads."""
    case = GEMMA4_CASES[name]
    if form == "old" and not case.old:
        case = replace(case, global_kv_heads=case.kv_heads)
    write_checkpoint(case, tmp_path / "hf", old=form == "old", wrapped=form == "wrapped")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    expected = {gguf_name(key): values for key, values in weights(case).items()}
    dead = {f"blk.{i}.{role}.weight" for i in range(case.layers) if case.shares(i) for role in DEAD}
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert set(file.tensors) == expected.keys() - dead | {"rope_freqs.weight"}
        for tensor in file.tensors.values():
            found = file.data(tensor).view(np.float32).reshape(tensor.shape)
            if tensor.name == "rope_freqs.weight":
                turning, half = int(case.turning * case.global_head_dim // 2), case.global_head_dim // 2
                assert found.tolist() == [1.0] * turning + [float(np.float32(1e30))] * (half - turning)
            else:
                assert np.array_equal(found, expected[tensor.name]), tensor.name


@pytest.mark.parametrize("name", GEMMA4_CASES)
def test_both_readers_make_the_same_configuration(tmp_path: Path, tiny_gguf: TinyGguf, name: str) -> None:
    """Of a checkpoint in both dialects, of the file made of it, and of one made without our code."""
    case = GEMMA4_CASES[name]
    expected = without_factors(read_model(config(case)).config)
    if case.old:
        assert without_factors(read_model(config(case, old=True)).config) == expected
    assert without_factors(read_model(config(case, wrapped=True)).config) == expected
    quantize(checkpoint(tmp_path, name), tmp_path / "out.gguf", "Q8_0")
    for path in (tmp_path / "out.gguf", tiny_gguf(name)):
        with GgufFile.open(path) as file:
            assert replace(read_config(file), rms_eps=expected.rms_eps) == expected


def test_keys_are_those_of_llama_cpps_converter_in_its_order(tmp_path: Path) -> None:
    quantize(checkpoint(tmp_path, "gemma4-26b"), tmp_path / "out.gguf", "F16")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        names = [key.removeprefix("gemma4.") for key in file.metadata if key.startswith("gemma4.")]
        assert names == KEYS_OF_26B
        kinds = {name: file.metadata.kind(f"gemma4.{name}") for name in KEYS_OF_26B}
        assert kinds["attention.head_count_kv"] == "ARRAY[INT32]" and kinds["feed_forward_length"] == "UINT32"
        assert {key for key in file.metadata if key.startswith("edge_gemma.")} >= {"edge_gemma.version"}
        assert not any(key.startswith(("edge_gemma.attention", "edge_gemma.rope")) for key in file.metadata)


def test_layers_of_two_widths_are_listed(tmp_path: Path) -> None:
    quantize(checkpoint(tmp_path, "gemma4-e2b"), tmp_path / "out.gguf", "F16")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert file.metadata.int_array("gemma4.feed_forward_length").tolist() == [160] * 6 + [320] * 3
        assert file.metadata.u32("gemma4.attention.head_count_kv") == 1
        assert file.metadata.u32("gemma4.attention.shared_kv_layers") == 3


def test_all_linear_modules_have_their_place(tmp_path: Path) -> None:
    """What adapters go by; no size has them all."""
    modules: dict[str, str] = {}
    for name in ("gemma4-e2b", "gemma4-26b"):
        specs = read_model(config(GEMMA4_CASES[name])).config.tensors()
        layer = [spec for spec in specs if spec.layer == 0 and len(spec.shape) == 2]
        modules |= {spec.hf_name.removeprefix("layers.0.").removesuffix(".weight"): spec.role for spec in layer}
    assert modules == ARCHITECTURES["gemma4"].matrices


# ---- what is told and refused ------------------------------------------------------------------------------------


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    write_checkpoint(GEMMA4_CASES["gemma4-e2b"], tmp_path / "hf", wrapped=True)
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert report.notices == (
        "vision tower left out: 2 tensors",
        "audio tower left out: 1 tensors",
        "keys and values of layers that use those of others left out: 9 tensors",
    )


def test_a_checkpoint_without_factors_of_layers_is_converted(tmp_path: Path) -> None:
    """They are buffers, which some tools do not save; a reader takes 1."""
    folder, case = checkpoint(tmp_path, "gemma4-12b"), GEMMA4_CASES["gemma4-12b"]
    with_tensors(folder, case, {f"model.layers.{i}.layer_scalar": None for i in range(case.layers)})
    quantize(folder, tmp_path / "out.gguf", "F32")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert not any("layer_output_scale" in name for name in file.tensors)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma4-12b", {"model.layers.5.self_attn.v_proj.weight": np.ones((96, 128), np.float32)}, "extra.*layers.5"),
        ("gemma4-e2b", {"model.layers.2.self_attn.v_proj.weight": None}, "missing.*layers.2.self_attn.v_proj"),
        ("gemma4-26b", {"model.layers.2.router.scale": None}, "missing.*router.scale"),
        ("gemma4-26b", {"model.layers.2.experts.down_proj": np.ones((8, 64, 96), np.float32)}, "has shape"),
        ("gemma4-e2b", {"model.embed_tokens_per_layer.weight": None}, "missing.*embed_tokens_per_layer"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, case: str, changes: dict[str, Any], message: str) -> None:
    folder = with_tensors(checkpoint(tmp_path, case), GEMMA4_CASES[case], changes)
    with pytest.raises(CheckpointError, match=message):
        quantize(folder, tmp_path / "out.gguf", "F32")


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma4-e2b", {"num_kv_shared_layers": 9}, "num_kv_shared_layers must be an integer in 0..8"),
        ("gemma4-e2b", {"num_kv_shared_layers": 7}, "num_kv_shared_layers cannot be: .* no global one"),
        ("gemma4-e2b", {"layer_types": ["full_attention"] * 8 + ["sliding_attention"]}, "must end in full_attention"),
        ("gemma4-e2b", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ("gemma4-e2b", {"attention_bias": True}, "attention_bias is not supported"),
        ("gemma4-e2b", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma4-e2b", {"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input is 300, vocab_size 263"),
        ("gemma4-e2b", {"hidden_size_per_layer_input": 48}, "hidden_size_per_layer_input is 48, no multiple of 32"),
        ("gemma4-26b", {"top_k_experts": 9}, "top_k_experts must be an integer in 1..8"),
        ("gemma4-26b", {"top_k_experts": None}, "top_k_experts must be an integer"),
        ("gemma4-26b", {"num_experts": 0}, "num_experts must be"),
        ("gemma4-26b", {"moe_intermediate_size": 40}, "moe_intermediate_size is 40"),
        ("gemma4-26b", {"per_layer_config": {"6": {}}}, "names layer '6'; there are 6"),
        ("gemma4-26b", {"per_layer_config": {"x": {}}}, "names layer 'x'"),
        ("gemma4-26b", {"per_layer_config": {"1": 3}}, r"per_layer_config\.1 must be an object"),
        ("gemma4-26b", {"per_layer_config": {"1": {"sliding_window": 3}}}, "has sliding_window, which is not"),
        ("gemma4-26b", {"per_layer_config": {"1": {"head_dim": 64}}}, "gives local layers different head sizes"),
        ("gemma4-26b", {"per_layer_config": {"5": {"head_dim": 64}}}, "gives global layers different head sizes"),
        ("gemma4-26b", {"per_layer_config": {"2": {"num_key_value_heads": 3}}}, r"per_layer_config\.2: .*divide 4"),
        ("gemma4-e2b", {"per_layer_config": {"7": {"num_key_value_heads": 2}}}, "2 heads in layer 7, 1 in layer 4"),
        ("gemma4-e2b", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        (
            "gemma4-e2b",
            {"rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 1.5}}},
            "partial_rotary_factor must be a number in 0..1",
        ),
        (
            "gemma4-e2b",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention: rope_type is 'linear'",
        ),
        ("gemma4-e2b", {"rope_parameters": {"full_attention": 3}}, "full_attention must be an object"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_are_refused(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_model(config(GEMMA4_CASES[case]) | changes)


def test_defaults_are_those_of_transformers() -> None:
    """A 12B's class has other ones than the rest."""
    text = read_model({"architectures": ["Gemma4ForCausalLM"]}).config
    unified = {"architectures": ["Gemma4UnifiedForConditionalGeneration"]}
    unified["text_config"] = {"model_type": "gemma4_unified_text"}  # type: ignore[assignment]
    assert (text.per_layer_input, text.context_length, text.layers[0].window) == (256, 131072, 512)
    other = read_model(unified).config
    assert (other.per_layer_input, other.context_length, other.layers[0].window) == (0, 262144, 1024)
    assert text.local_layers == ((True,) * 5 + (False,)) * 5
    at_global, at_local = text.layers[5], text.layers[0]
    assert (at_global.head_dim, at_local.head_dim, at_global.n_kv_heads) == (512, 256, 4)
    assert (at_global.rope.base, at_local.rope.base) == (1e6, 1e4)
    assert at_global.rope.factors == (1.0,) * 64 + (1e30,) * 192 and at_local.rope.factors is None
    assert text.final_softcap is None and text.attn_scale == 1 and text.experts is None


def test_the_last_layer_is_global_where_no_types_are_given() -> None:
    text = read_model({"architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 8}).config
    assert text.local_layers == (True,) * 5 + (False, True, False)


# ---- formats -----------------------------------------------------------------------------------------------------


def formats(folder: Path, type: str, **said: Any) -> dict[str, str]:
    made = plan(folder, type, overrides=Overrides(**said))
    return {info.name: info.format.name for info in made.infos}


def test_the_router_and_the_projection_of_inputs_are_kept(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "gemma4-26b")
    with_tensors(folder, GEMMA4_CASES["gemma4-26b"], {}, "BF16")
    said = (("ffn_gate", "Q5_0"),)
    for type in ("Q4_K_M", "EG4", "F16"):
        found = formats(folder, type, patterns=said)
        assert found["blk.3.ffn_gate_inp.weight"] == found["blk.3.ffn_gate_inp.scale"] == "F32"
        assert found["blk.3.ffn_gate_up_exps.weight"] == "Q5_0"
    with pytest.raises(CheckpointError, match="no matrix of this model has such a name"):
        plan(folder, "Q4_K_M", overrides=Overrides((("ffn_gate_inp", "Q8_0"),)))
    folder = checkpoint(tmp_path, "gemma4-e2b")
    with_tensors(folder, GEMMA4_CASES["gemma4-e2b"], {}, "BF16")
    kept = {type: formats(folder, type)["per_layer_model_proj.weight"] for type in ("Q4_0", "EG4", "F16", "F32")}
    assert kept == {"Q4_0": "BF16", "EG4": "BF16", "F16": "F16", "F32": "F32"}


def test_the_type_of_embeddings_is_that_of_both_tables(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "gemma4-256")
    tables = ("token_embd.weight", "per_layer_token_embd.weight")
    for said, expected in (
        ({}, ("Q6_K", "Q6_K")),
        ({"embedding": "Q5_0"}, ("Q5_0", "Q5_0")),
        ({"output": "Q5_1"}, ("Q5_1", "Q5_1")),
        ({"embedding": "Q5_0", "patterns": (("per_layer_token", "Q4_0"),)}, ("Q5_0", "Q4_0")),
    ):
        found = formats(folder, "Q4_0", **said)  # type: ignore[arg-type]
        assert tuple(found[name] for name in tables) == expected
