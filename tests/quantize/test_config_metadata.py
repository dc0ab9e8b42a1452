"""config.json and its companions -> metadata, in both dialects of config.json."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.graph.states import Rope
from edge_gemma.models.layers import LayerConfig
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint.hf_config import read_model
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import convert, metadata


def test_metadata_of_gemma2(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, "gemma2"))
    expected = {
        "general.architecture": "gemma2",
        "general.type": "model",
        "gemma2.context_length": 512,
        "gemma2.embedding_length": 64,
        "gemma2.block_count": 3,
        "gemma2.feed_forward_length": 96,
        "gemma2.attention.head_count": 4,
        "gemma2.attention.head_count_kv": 2,
        "gemma2.attention.key_length": 32,
        "gemma2.attention.value_length": 32,
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
        "gemma2.attention.sliding_window": 16,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "edge_gemma.attention.sliding_window_pattern": [True, False, True],
        "edge_gemma.rope.freq_base": 10000.0,
        "edge_gemma.rope.freq_base_local": 10000.0,
        "edge_gemma.rope.scale_linear": 1.0,
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert keys["edge_gemma.attention.scale"] == np.float32(32**-0.5)
    assert keys["gemma2.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    assert not [key for key in keys if key.startswith("gemma2.rope") or key.endswith("softcap")]


def test_metadata_of_gemma3_with_scaled_positions(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, "gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert keys["gemma3.rope.freq_base"] == keys["edge_gemma.rope.freq_base"] == 1e6
    assert keys["gemma3.rope.freq_base_swa"] == keys["edge_gemma.rope.freq_base_local"] == 1e4
    assert (keys["gemma3.rope.scaling.type"], keys["gemma3.rope.scaling.factor"]) == ("linear", 8.0)
    assert keys["edge_gemma.rope.scale_linear"] == 8.0
    assert keys["edge_gemma.attention.sliding_window_pattern"] == [True] * 5 + [False, True]
    assert "gemma3.attn_logit_softcapping" not in keys and "gemma3.final_logit_softcapping" not in keys


def test_unusual_layers_are_told_to_every_reader(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    keys = metadata(convert(tmp_path, "gemma2", layer_types=types))
    assert keys["gemma2.attention.sliding_window_pattern"] == [False, True, True]
    assert keys["edge_gemma.attention.sliding_window_pattern"] == [False, True, True]


V5_ROPE = {
    "gemma": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma2": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma3": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_both_dialects_of_config_say_the_same(architecture: str) -> None:
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}} if architecture == "gemma3" else {}
    old = tiny.make_config(architecture, **scaling)
    period = {"gemma": 1, "gemma2": 2, "gemma3": 6}[architecture]
    kinds = ["sliding_attention", "full_attention"]
    layer_types = [kinds[(i + 1) % period == 0] for i in range(old["num_hidden_layers"])]
    left_out = dict.fromkeys(("rope_theta", "rope_local_base_freq", "sliding_window_pattern"), ...)
    new = tiny.make_config(architecture, **left_out, layer_types=layer_types, rope_parameters=V5_ROPE[architecture])
    assert read_model(old) == read_model(new)


def test_old_spelling_of_scaled_positions() -> None:
    config = tiny.make_config("gemma3", rope_scaling={"type": "linear", "factor": 4.0})
    layer = read_model(config).config.of_kind(local=False)
    assert layer is not None and layer.rope.scale == 4.0


def test_defaults_left_out_of_text_config_are_filled_in() -> None:
    """The text_config of the published 4B model, as Hugging Face has it."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    model = read_model({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    config = model.config
    assert (config.n_heads, config.attn_scale, model.vocab_size_given) == (8, 256**-0.5, False)
    assert (config.vocab_size, config.context_length) == (262208, 131072)
    whole = LayerConfig(n_kv_heads=4, head_dim=256, d_ff=10240, rope=Rope(256, 1e6, 8.0))
    local = replace(whole, window=1024, rope=Rope(256, 1e4))
    assert config.layers == (((local,) * 5 + (whole,)) * 6)[:34]


def test_generation_config_and_size(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    settings = {"top_k": 64, "top_p": 0.95, "temperature": "hot", "min_p": None}
    (tmp_path / "hf/generation_config.json").write_text(json.dumps(settings))
    quantize(tmp_path / "hf", tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert keys["general.sampling.top_k"] == 64 and keys["general.sampling.top_p"] == np.float32(0.95)
    assert "general.sampling.temp" not in keys and "general.sampling.min_p" not in keys
    assert keys["general.size_label"] == "154K"
