"""The Llama family: logits of small random checkpoints against transformers, and what its files may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edge_gemma import Gemma
from edge_gemma.engine.runner import Runner
from edge_gemma.errors import CheckpointError, ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.states import AttentionState
from edge_gemma.graph.step import SequenceRows
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.quantize.checkpoint.hf_config import read_model
from tests.conftest import TinyGguf
from tests.gguf_builder import BOOL, STRING, Builder, TensorRecord, runnable_gemma, typed, u32
from tests.goldens.cases import Floats, token_ids
from tests.goldens.llama_cases import CASES, config, factors_of_llama_3
from tests.goldens.real import DATA

GOLDENS = [(case.name, length) for case in CASES.values() for length in case.lengths]
BLOCK_FORMATS = [name for name in FORMATS if name != "F32"]


@pytest.fixture(scope="module")
def goldens() -> dict[str, Floats]:
    with np.load(DATA / "transformers_llama.npz") as file:
        return dict(file)


def logits(path: Path, ids: list[int], kv_type: Literal["f16", "f32"]) -> Floats:
    with Gemma(path, context=256, threads=2, kv_type=kv_type) as model:
        return model.logits(ids)


def error(found: Floats, expected: Floats) -> float:
    """Largest difference as a fraction of the range of the expected logits."""
    assert found.shape == expected.shape and found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.ptp(expected))


# ---- the forward pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "length"), GOLDENS)
def test_float32_file_gives_the_logits_of_transformers(
    tiny_gguf: TinyGguf, goldens: dict[str, Floats], name: str, length: int
) -> None:
    expected = goldens[f"{name}/{length}"]
    found = logits(tiny_gguf(name), token_ids(CASES[name], length), "f32")
    assert error(found, expected) <= 1e-5
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("name", CASES)
def test_a_half_precision_cache_stays_close(tiny_gguf: TinyGguf, goldens: dict[str, Floats], name: str) -> None:
    """Keys and values are rounded to 11 bits."""
    length = CASES[name].lengths[0]
    found = logits(tiny_gguf(name), token_ids(CASES[name], length), "f16")
    assert error(found, goldens[f"{name}/{length}"]) <= 1e-2


@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_a_quantized_file_stays_close_to_its_float32_twin(tiny_gguf: TinyGguf, format: str) -> None:
    """As those of Gemma, whose bounds these are; heads of 80 dimensions."""
    ids = token_ids(CASES["llama-256"], 45)
    expected = logits(tiny_gguf("llama-256", format, dequantized=True), ids, "f32")
    found = logits(tiny_gguf("llama-256", format), ids, "f32")
    bound = 1e-4 if FORMATS[format].is_float else 2e-2
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) <= bound


def test_cases_cover_every_feature() -> None:
    every = CASES.values()
    assert {c.tied for c in every} == {c.biased for c in every} == {True, False}
    assert {c.heads // c.kv_heads for c in every} >= {1, 2, 3, 4}
    assert {c.head_dim for c in every} >= {8, 16, 24, 32, 64, 80, 120}
    assert {dict(c.scaling).get("rope_type") for c in every} == {None, "linear", "llama3"}
    assert any(c.window and c.window < c.lengths[0] for c in every)


def test_heads_of_any_size_are_kept_whole(tiny_gguf: TinyGguf) -> None:
    with GgufFile.open(tiny_gguf("danube-3")) as file:
        config = read_config(file)
    assert config.states == [AttentionState(1, 128)] * 2 and config.layers[0].head_dim == 120


@pytest.mark.parametrize(("name", "resized"), [("danube-1", 4), ("llama-sheared", 0)])
def test_heads_are_resized_where_they_are_not_whole(tiny_gguf: TinyGguf, name: str, resized: int) -> None:
    """Queries, keys, values and what attention makes of them; nobody else pays for it."""
    runner = Runner(tiny_gguf(name), context=64, chunk=32, threads=1)
    names = [recorded.operation.name for recorded in runner.recording(1).program.recorded]
    assert names.count("resize_heads") == resized * CASES[name].layers
    runner.close()


@pytest.mark.parametrize("name", ["danube-1", "llama-biased"])
def test_inputs_of_every_matrix_are_observed(tiny_gguf: TinyGguf, name: str) -> None:
    """What importance matrices are made of."""
    runner = Runner(tiny_gguf(name), context=64, chunk=32, threads=1, observe=True)
    runner.run([SequenceRows(runner.new_table(), np.array(token_ids(CASES[name], 20), np.int64))])
    matrices = {t.name: t for t in runner.weights.tensors() if len(t.shape) == 2 and t.name != "token_embd.weight"}
    assert runner.activation_stats.keys() == matrices.keys()
    for matrix, sums in runner.activation_stats.items():
        assert sums.shape == (matrices[matrix].shape[1],) and (sums > 0).all(), matrix
    runner.close()


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, builder: Builder) -> Config:
    path = tmp_path / "model.gguf"
    path.write_bytes(builder.build())
    with GgufFile.open(path) as file:
        config = read_config(file)
        Weights.bind(file, config)
    return config


def built(**keys: bytes | None) -> Builder:
    """A file with other values under `llama.`, `__` for a dot."""
    builder = runnable_gemma("llama")
    for name, value in keys.items():
        builder.set("llama." + name.replace("__", "."), value)
    return builder


def test_heads_are_as_wide_as_the_model_says_or_as_fits_it(tmp_path: Path) -> None:
    assert read(tmp_path, built()).layers[0].head_dim == 32  # 4 heads of them in a width of 64
    sizes = {"attention__key_length": None, "attention__value_length": None}
    small = runnable_gemma("llama", head_dim=16)
    for name in sizes:
        small.set("llama." + name.replace("__", "."), None)
    config = read(tmp_path, small)
    assert config.layers[0].head_dim == 16 and config.attn_scale == 0.25
    assert config.layers[0].window is None and config.embedding_scale == 1
    small.set("llama.rope.dimension_count", u32(8))
    with pytest.raises(ModelFormatError, match=r"llama.rope.dimension_count.*must be 16"):
        read(tmp_path, small)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": u32(8)}, "expert_count.*mixture of experts"),
        ({"attention__causal": typed(BOOL, 0)}, "attention.causal.*later tokens"),
        ({"rope__scaling__type": typed(STRING, "yarn")}, "rope.scaling.type.*'yarn' is not supported"),
        ({"rope__scaling__type": typed(STRING, "linear")}, "rope.scaling.factor.*required"),
        ({"rope__dimension_count": u32(16)}, "rope.dimension_count.*must equal"),
        ({"attention__key_length": u32(33)}, "attention.key_length.*odd"),
        ({"attention__key_length": None, "attention__head_count": u32(3)}, "head_count.*cannot be"),
        ({"attention__key_length": None, "attention__head_count": u32(32)}, "head_count.*cannot be"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
        ({"embedding_length": None}, "required keys are missing: llama.embedding_length"),
        ({"attention__sliding_window": typed(STRING, "8")}, "attention.sliding_window"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, keys: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        read(tmp_path, built(**keys))


def test_a_window_is_read_under_either_key_and_those_agree(tmp_path: Path) -> None:
    assert read(tmp_path, built(attention__sliding_window=u32(8))).local_layers == (True,) * 4
    assert read(tmp_path, built(attention__sliding_window=u32(512))).local_layers == (False,) * 4
    both = built(attention__sliding_window=u32(8)).set("edge_gemma.attention.sliding_window", u32(9))
    with pytest.raises(ModelFormatError, match=r"contradicts edge_gemma\.attention\.sliding_window"):
        read(tmp_path, both)


def test_factors_of_the_rotation_are_above_0(tmp_path: Path) -> None:
    for values, message in (
        ([1.0] * 15 + [0.0], "above 0"),
        ([1.0] * 15 + [np.nan], "not finite"),
        ([1.0] * 8, "shape"),
    ):
        builder = built()
        data = np.array(values, "<f4").tobytes()
        builder.tensors.append(TensorRecord("rope_freqs.weight", (len(values),), data=data))
        with pytest.raises(ModelFormatError, match=f"rope_freqs.weight.*{message}"):
            read(tmp_path, builder)


def test_biases_are_finite_vectors_of_their_matrix(tmp_path: Path) -> None:
    for size, value, message in ((128, np.inf, "not finite"), (64, 0, "shape")):
        builder = built()
        data = np.full(size, value, "<f4").tobytes()
        builder.tensors.append(TensorRecord("blk.1.attn_q.bias", (size,), data=data))
        with pytest.raises(ModelFormatError, match=f"blk.1.attn_q.bias.*{message}"):
            read(tmp_path, builder)
    builder = built()
    builder.tensors.append(TensorRecord("blk.1.ffn_up.bias", (96,)))
    with pytest.raises(ModelFormatError, match=r"llama has no such tensors: blk\.1\.ffn_up\.bias"):
        read(tmp_path, builder)


# ---- config.json ---------------------------------------------------------------------------------------------------


def of_json(name: str = "LlamaForCausalLM", **changes: Any) -> Config:
    return read_model({"architectures": [name], **changes}).config


def test_defaults_are_those_of_transformers() -> None:
    llama, mistral = of_json(), of_json("MistralForCausalLM")
    assert (llama.d_model, llama.n_heads, llama.layers[0].n_kv_heads, llama.layers[0].head_dim) == (4096, 32, 32, 128)
    assert (llama.context_length, llama.layers[0].d_ff, llama.layers[0].window) == (2048, 11008, None)
    assert (mistral.layers[0].n_kv_heads, mistral.layers[0].d_ff, mistral.layers[0].window) == (8, 14336, 4096)
    assert mistral.context_length == 131072 and llama.layers[0].rope.base == mistral.layers[0].rope.base == 1e4
    assert of_json("MistralForCausalLM", num_key_value_heads=None).layers[0].n_kv_heads == 32
    assert of_json(hidden_size=320, num_attention_heads=4).layers[0].head_dim == 80


def test_an_output_of_its_own_is_the_default() -> None:
    assert not read_model({"architectures": ["LlamaForCausalLM"]}).tied
    assert read_model({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}).tied


def test_only_mistral_has_a_window() -> None:
    assert of_json(sliding_window=8).layers[0].window is None
    assert of_json("MistralForCausalLM", sliding_window=8).layers[0].window == 8
    assert of_json("MistralForCausalLM", sliding_window=None).layers[0].window is None
    assert of_json("MistralForCausalLM", sliding_window=64, max_position_embeddings=64).layers[0].window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 0}}, "factor must be a number"),
        ({"rope_scaling": {"rope_type": "llama3", "high_freq_factor": 1.0}}, "high_freq_factor is 1, not above"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a number"),
        ({"head_dim": 7}, "head_dim must be an integer in 8"),
        ({"head_dim": 33}, "head_dim is 33"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5"),
    ],
)
def test_what_a_config_may_not_say(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        of_json(**changes)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if factors_of_llama_3(case) is not None])
def test_factors_of_llama_3_are_those_of_the_formula(name: str) -> None:
    """That of llama.cpp's converter computes in float32; both dialects say the same."""
    case = CASES[name]
    for transformers in (4, 5):
        factors = read_model(config(case, transformers=transformers)).config.layers[0].rope.factors
        assert factors is not None and len(factors) == case.head_dim // 2
        np.testing.assert_allclose(factors, np.asarray(factors_of_llama_3(case)), rtol=2e-6)
        assert factors[0] == 1 and factors[-1] == 8
