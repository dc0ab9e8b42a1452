"""GGUF metadata -> `Config`: defaults, both dialects, and every limit at its edge and one beyond."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.states import Rope
from edge_gemma.models.architecture import Config
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.registry import ARCHITECTURES, read_config
from tests.gguf_builder import BOOL, F64, I32, STRING, U32, U64, Builder, array, f32, tiny_gemma, typed, u32


def configure(builder: Builder, folder: Path) -> Config:
    path = folder / "model.gguf"
    path.write_bytes(Builder(keys=builder.keys).build())  # no tensors: the configuration does not look at them
    with GgufFile.open(path) as file:
        return read_config(file)


def window_of(config: Config) -> int | None:
    layer = config.of_kind(local=True)
    return layer and layer.window


def ropes_of(config: Config) -> dict[str, float]:
    """Of each kind of layers, or what is said of a kind that there is not."""
    (whole, local) = (
        layer.rope if (layer := config.of_kind(local=local)) else config.unused_rope for local in (False, True)
    )
    assert whole is not None and local is not None and local.scale == 1
    return {"rope_base": whole.base, "rope_base_local": local.base, "rope_scale": whole.scale}


def softcaps_of(config: Config) -> tuple[float | None, float | None]:
    return config.attn_softcap, config.final_softcap


def roles_of(config: Config) -> set[str]:
    return {spec.role for spec in config.tensors()}


def refused(builder: Builder, folder: Path) -> ModelFormatError:
    with pytest.raises(ModelFormatError) as caught:
        configure(builder, folder)
    assert caught.value.path == str(folder / "model.gguf")
    return caught.value


def published(
    architecture: str, *, layers: int, d_model: int, heads: int, kv: int, head_dim: int, context: int
) -> Builder:
    builder = tiny_gemma(architecture, n_layers=0, d_model=d_model, n_heads=heads, n_kv_heads=kv, head_dim=head_dim)
    builder.set(f"{architecture}.block_count", u32(layers)).set(f"{architecture}.context_length", u32(context))
    return builder


GEMMA2_27B = {"layers": 46, "d_model": 4608, "heads": 32, "kv": 16, "head_dim": 128, "context": 8192}
GEMMA3_1B = {"layers": 26, "d_model": 1152, "heads": 4, "kv": 1, "head_dim": 256, "context": 32768}
GEMMA3_4B = {"layers": 34, "d_model": 2560, "heads": 8, "kv": 4, "head_dim": 256, "context": 131072}
GEMMA3_27B = {"layers": 62, "d_model": 5376, "heads": 32, "kv": 16, "head_dim": 128, "context": 131072}


def test_gemma(tmp_path: Path) -> None:
    config = configure(tiny_gemma("gemma"), tmp_path)
    assert config == Config(
        model=ARCHITECTURES["gemma"],
        d_model=64,
        n_heads=4,
        vocab_size=48,
        context_length=512,
        rms_eps=float(np.float32(1e-6)),
        attn_scale=0.25,
        attn_softcap=None,
        final_softcap=None,
        embedding_scale=8,
        layers=(LayerConfig(n_kv_heads=2, head_dim=16, d_ff=96, rope=Rope(16, 10000)),) * 4,
        unused_rope=Rope(16, 10000),
    )


def test_gemma2(tmp_path: Path) -> None:
    config = configure(tiny_gemma("gemma2"), tmp_path)
    assert (window_of(config), config.local_layers) == (64, (True, False, True, False))
    assert (config.attn_softcap, config.final_softcap) == (50, 30)
    assert ropes_of(config) == {"rope_base": 10000, "rope_base_local": 10000, "rope_scale": 1}
    assert "post_ffw_norm" in roles_of(config) and "attn_q_norm" not in roles_of(config)


def test_gemma3(tmp_path: Path) -> None:
    config = configure(tiny_gemma("gemma3", n_layers=7), tmp_path)
    assert config.local_layers == (True,) * 5 + (False, True)
    assert softcaps_of(config) == (None, None)
    assert ropes_of(config) == {"rope_base": 1e6, "rope_base_local": 1e4, "rope_scale": 1}
    assert {"post_ffw_norm", "attn_q_norm"} <= roles_of(config)


def test_very_old_gemma2_lacks_window_and_softcaps(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2").set("gemma2.attention.sliding_window", None)
    assert window_of(configure(builder, tmp_path)) == 512  # 4096, but no larger than the context
    builder.set("gemma2.context_length", u32(8192))
    config = configure(builder, tmp_path)
    assert (window_of(config), config.attn_softcap, config.final_softcap) == (4096, 50, 30)


@pytest.mark.parametrize("window", [511, 512, 513, 4096, 2**32 - 1])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_a_window_is_at_most_the_context(tmp_path: Path, architecture: str, window: int) -> None:
    builder = tiny_gemma(architecture).set(f"{architecture}.attention.sliding_window", u32(window))
    config = configure(builder, tmp_path)
    assert (window_of(config), config.local_layers[0]) == (min(window, 512), True)


def test_a_vocabulary_size_is_not_read(tmp_path: Path) -> None:
    """The tokens are counted, as llama.cpp does. Some converters write the size of the embedding before it was cut."""
    for value in (u32(49), typed(STRING, "many")):
        assert configure(tiny_gemma("gemma3").set("gemma3.vocab_size", value), tmp_path).vocab_size == 48


def test_softcaps_are_read(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2").set("gemma2.attn_logit_softcapping", f32(20))
    config = configure(builder.set("gemma2.final_logit_softcapping", f32(10)), tmp_path)
    assert (config.attn_softcap, config.final_softcap) == (20, 10)
    assert configure(tiny_gemma("gemma3").set("gemma3.final_logit_softcapping", f32(30)), tmp_path).final_softcap == 30


def test_gemma3_without_window_is_global_everywhere(tmp_path: Path) -> None:
    for value in (None, u32(0)):
        config = configure(tiny_gemma("gemma3").set("gemma3.attention.sliding_window", value), tmp_path)
        assert (window_of(config), config.local_layers) == (None, (False,) * 4)


@pytest.mark.parametrize(
    ("architecture", "sizes", "scale"),
    [("gemma2", GEMMA2_27B, 144), ("gemma3", GEMMA3_27B, 168), ("gemma3", GEMMA3_4B, 256), ("gemma", GEMMA3_1B, 256)],
)
def test_attention_scale(tmp_path: Path, architecture: str, sizes: dict[str, int], scale: int) -> None:
    builder = published(architecture, **sizes)
    assert configure(builder, tmp_path).attn_scale == 1 / math.sqrt(scale)
    assert configure(builder.set("edge_gemma.attention.scale", f32(0.125)), tmp_path).attn_scale == 0.125


def test_our_keys_win_over_what_would_be_guessed(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma3")
    builder.set("edge_gemma.attention.scale", f32(0.5))
    builder.set("edge_gemma.attention.sliding_window_pattern", array(BOOL, [0, 1, 1, 0]))
    builder.set("edge_gemma.rope.freq_base", f32(20000))
    builder.set("edge_gemma.rope.freq_base_local", f32(30000))
    builder.set("edge_gemma.rope.scale_linear", f32(4))
    config = configure(builder, tmp_path)
    assert config.local_layers == (False, True, True, False)
    assert config.attn_scale == 0.5
    assert ropes_of(config) == {"rope_base": 20000, "rope_base_local": 30000, "rope_scale": 4}


@pytest.mark.parametrize(
    ("pattern", "local"),
    [
        (u32(1), (False, False, False, False)),
        (u32(2), (True, False, True, False)),
        (u32(3), (True, True, False, True)),
        (u32(256), (True, True, True, True)),
        (array(BOOL, [0, 0, 1, 1]), (False, False, True, True)),
    ],
)
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_window_pattern(tmp_path: Path, architecture: str, pattern: bytes, local: tuple[bool, ...]) -> None:
    builder = tiny_gemma(architecture).set(f"{architecture}.attention.sliding_window_pattern", pattern)
    assert configure(builder, tmp_path).local_layers == local


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("gemma3.rope.freq_base", "rope_base"),
        ("gemma3.rope.global.freq_base", "rope_base"),
        ("gemma3.rope.local.freq_base", "rope_base_local"),
        ("gemma3.rope.freq_base_swa", "rope_base_local"),
        ("gemma3.rope.scaling.factor", "rope_scale"),
        ("gemma3.rope.scale_linear", "rope_scale"),
        ("gemma3.attention.scale", "attn_scale"),
    ],
)
def test_spellings_of_both_dialects(tmp_path: Path, key: str, field: str) -> None:
    config = configure(tiny_gemma("gemma3").set(key, f32(12)), tmp_path)
    assert (ropes_of(config) | {"attn_scale": config.attn_scale})[field] == 12


def test_gemma2_local_base_follows_the_global_one(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2").set("gemma2.rope.freq_base", f32(500))
    assert ropes_of(configure(builder, tmp_path))["rope_base_local"] == 500
    assert ropes_of(configure(builder.set("gemma2.rope.freq_base_swa", f32(600)), tmp_path))["rope_base_local"] == 600


def test_rope_scaling_type(tmp_path: Path) -> None:
    linear = tiny_gemma("gemma3").set("gemma3.rope.scaling.type", typed(STRING, "linear"))
    assert "required key is missing" in str(refused(linear, tmp_path))
    assert ropes_of(configure(linear.set("gemma3.rope.scaling.factor", f32(8)), tmp_path))["rope_scale"] == 8
    none = published("gemma3", **GEMMA3_4B).set("gemma3.rope.scaling.type", typed(STRING, "none"))
    assert ropes_of(configure(none, tmp_path))["rope_scale"] == 1
    assert "contradicts" in str(refused(none.set("gemma3.rope.scaling.factor", f32(8)), tmp_path))
    yarn = tiny_gemma("gemma3").set("gemma3.rope.scaling.type", typed(STRING, "yarn"))
    assert "'yarn' is not supported" in str(refused(yarn, tmp_path))


def test_early_ollama_files(tmp_path: Path) -> None:
    """They have no position scale, no epsilon, and a soft-cap of 30 in the 1B."""
    for sizes in (GEMMA3_4B, GEMMA3_27B):
        builder = published("gemma3", **sizes).set("gemma3.attention.layer_norm_rms_epsilon", None)
        config = configure(builder, tmp_path)
        assert (ropes_of(config)["rope_scale"], config.rms_eps) == (8, 1e-6)
    builder = published("gemma3", **GEMMA3_1B).set("gemma3.final_logit_softcapping", f32(30))
    config = configure(builder, tmp_path)
    assert (ropes_of(config)["rope_scale"], config.final_softcap) == (1, None)


def test_kv_heads_per_layer(tmp_path: Path) -> None:
    key = "gemma3.attention.head_count_kv"
    assert configure(tiny_gemma("gemma3").set(key, array(U32, [2] * 4)), tmp_path).layers[0].n_kv_heads == 2
    assert configure(tiny_gemma("gemma3").set(key, None), tmp_path).layers[0].n_kv_heads == 4
    for values in ([2] * 3, [2] * 5, [2, 2, 2, 1], [0] * 4, [8] * 4, [3] * 4):
        assert refused(tiny_gemma("gemma3").set(key, array(U32, values)), tmp_path).field == key


def test_missing_keys_are_listed(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2").set("gemma2.block_count", None).set("gemma2.attention.key_length", None)
    error = refused(builder, tmp_path)
    assert "gemma2.block_count, gemma2.attention.key_length" in str(error)
    assert error.offset is None
    for key in ("general.architecture", "tokenizer.ggml.tokens", "gemma2.attention.layer_norm_rms_epsilon"):
        assert refused(tiny_gemma("gemma2").set(key, None), tmp_path).field == key


# key, type and value at the edge (accepted), type and value just outside (refused)
EDGES: list[tuple[str, bytes, bytes]] = [
    ("block_count", u32(1), u32(0)),
    ("block_count", u32(256), u32(257)),
    ("embedding_length", u32(32), u32(0)),
    ("embedding_length", u32(64), u32(65)),
    ("embedding_length", u32(16384), u32(16416)),
    ("attention.head_count", u32(2), u32(0)),
    ("attention.head_count", u32(256), u32(258)),
    ("attention.head_count_kv", u32(1), u32(0)),
    ("attention.head_count_kv", u32(4), u32(5)),
    ("attention.head_count_kv", u32(2), u32(3)),
    ("feed_forward_length", u32(32), u32(0)),
    ("feed_forward_length", u32(96), u32(97)),
    ("feed_forward_length", u32(2**18), u32(2**18 + 32)),
    ("context_length", u32(64), u32(0)),
    ("context_length", u32(2**22), u32(2**22 + 1)),
    ("attention.sliding_window", u32(1), typed(I32, -1)),
    ("attention.sliding_window_pattern", u32(1), u32(0)),
    ("attention.sliding_window_pattern", u32(256), u32(257)),
    ("attention.sliding_window_pattern", array(BOOL, [1] * 4), array(BOOL, [1] * 3)),
    ("attention.sliding_window_pattern", array(BOOL, [0] * 4), array(BOOL, [1] * 5)),
    ("attention.layer_norm_rms_epsilon", f32(1e-12), f32(0.99e-12)),
    ("attention.layer_norm_rms_epsilon", f32(1e-2), f32(1.01e-2)),
    ("attention.layer_norm_rms_epsilon", f32(1e-5), f32(float("nan"))),
    ("rope.freq_base", f32(1), f32(0.99)),
    ("rope.freq_base", f32(1e9), f32(1.01e9)),
    ("rope.freq_base", f32(1e4), f32(float("inf"))),
    ("rope.freq_base_swa", f32(1), f32(-1)),
    ("rope.freq_base_swa", f32(1e9), f32(float("nan"))),
    ("rope.scaling.factor", f32(1), f32(0.99)),
    ("rope.scaling.factor", f32(1024), f32(1025)),
    ("rope.scaling.factor", f32(2), f32(float("nan"))),
    ("rope.dimension_count", u32(16), u32(8)),
    ("attn_logit_softcapping", f32(1e-3), f32(0)),
    ("attn_logit_softcapping", f32(50), f32(float("inf"))),
    ("final_logit_softcapping", f32(1e-3), f32(-30)),
    ("final_logit_softcapping", f32(30), f32(float("nan"))),
    ("attention.scale", f32(1), f32(0)),
    ("attention.scale", f32(0.0625), f32(float("nan"))),
]
HEAD_DIMS = [(8, True), (7, False), (6, False), (1024, True), (1026, False), (10, True), (9, False)]


@pytest.mark.parametrize(("name", "inside", "outside"), EDGES)
def test_limits(tmp_path: Path, name: str, inside: bytes, outside: bytes) -> None:
    key = f"gemma2.{name}"
    configure(tiny_gemma("gemma2").set(key, inside), tmp_path)
    error = refused(tiny_gemma("gemma2").set(key, outside), tmp_path)
    assert error.offset is not None
    assert error.field == key


@pytest.mark.parametrize(("head_dim", "accepted"), HEAD_DIMS)
def test_head_dim(tmp_path: Path, head_dim: int, accepted: bool) -> None:
    builder = tiny_gemma("gemma3", head_dim=head_dim)
    if accepted:
        assert configure(builder, tmp_path).layers[0].head_dim == head_dim
    else:
        assert refused(builder, tmp_path).field == "gemma3.attention.key_length"


def test_value_length_equals_key_length(tmp_path: Path) -> None:
    key = "gemma.attention.value_length"
    assert configure(tiny_gemma("gemma").set(key, None), tmp_path).layers[0].head_dim == 16
    assert refused(tiny_gemma("gemma").set(key, u32(18)), tmp_path).field == key


WRONG_TYPES = [
    ("general.architecture", u32(2)),
    ("gemma2.block_count", typed(I32, 4)),
    ("gemma2.block_count", typed(I32, -4)),
    ("gemma2.block_count", typed(U64, 4)),
    ("gemma2.block_count", typed(BOOL, 1)),
    ("gemma2.block_count", f32(4)),
    ("gemma2.block_count", typed(STRING, "4")),
    ("gemma2.block_count", array(U32, [4])),
    ("gemma2.attention.head_count_kv", array(BOOL, [1] * 4)),
    ("gemma2.attention.head_count_kv", array(STRING, ["2"] * 4)),
    ("gemma2.attention.layer_norm_rms_epsilon", typed(F64, 1e-6)),
    ("gemma2.attention.layer_norm_rms_epsilon", u32(1)),
    ("gemma2.attention.sliding_window_pattern", array(U32, [1] * 4)),
    ("gemma2.attention.sliding_window_pattern", typed(BOOL, 1)),
    ("gemma2.attn_logit_softcapping", u32(50)),
    ("gemma2.rope.scaling.type", u32(1)),
    ("edge_gemma.attention.scale", typed(F64, 0.25)),
    ("edge_gemma.rope.freq_base", u32(10000)),
    ("tokenizer.ggml.tokens", array(U32, [1, 2])),
    ("tokenizer.ggml.tokens", typed(STRING, "token")),
    ("tokenizer.ggml.tokens", array(STRING, [])),
]


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_types_are_never_converted(tmp_path: Path, key: str, value: bytes) -> None:
    error = refused(tiny_gemma("gemma2").set(key, value), tmp_path)
    assert error.field == key
    assert error.offset is not None


@pytest.mark.parametrize(
    ("architecture", "first", "second"),
    [
        ("gemma3", ("edge_gemma.rope.freq_base", f32(1e6)), ("gemma3.rope.freq_base", f32(1e4))),
        ("gemma3", ("gemma3.rope.freq_base_swa", f32(1e6)), ("gemma3.rope.local.freq_base", f32(1e4))),
        ("gemma3", ("edge_gemma.rope.scale_linear", f32(8)), ("gemma3.rope.scaling.factor", f32(4))),
        ("gemma3", ("edge_gemma.attention.scale", f32(0.5)), ("gemma3.attention.scale", f32(0.25))),
        (
            "gemma2",
            ("edge_gemma.attention.sliding_window_pattern", array(BOOL, [1, 1, 0, 0])),
            ("gemma2.attention.sliding_window_pattern", u32(2)),
        ),
    ],
)
def test_contradictions(tmp_path: Path, architecture: str, first: tuple[str, bytes], second: tuple[str, bytes]) -> None:
    error = refused(tiny_gemma(architecture).set(*first).set(*second), tmp_path)
    assert error.field == second[0]
    assert f"contradicts {first[0]}" in str(error)
    same = tiny_gemma(architecture).set(*first)
    configure(same.set(second[0], first[1]), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("gemma", "gemma.attention.sliding_window", u32(64)),
        ("gemma", "gemma.attn_logit_softcapping", f32(50)),
        ("gemma", "gemma.final_logit_softcapping", f32(30)),
        ("gemma", "gemma.attention.sliding_window_pattern", u32(2)),
    ],
)
def test_gemma_1_has_no_local_attention(tmp_path: Path, architecture: str, key: str, value: bytes) -> None:
    assert refused(tiny_gemma(architecture).set(key, value), tmp_path).field == key


def test_pattern_without_window(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma3").set("gemma3.attention.sliding_window", None)
    key = "gemma3.attention.sliding_window_pattern"
    assert refused(builder.set(key, array(BOOL, [1, 0, 1, 0])), tmp_path).field == key
    assert window_of(configure(builder.set(key, array(BOOL, [0] * 4)), tmp_path)) is None


@pytest.mark.parametrize("architecture", ["gemma3n", "qwen3", "Gemma2", "", "gemma2\0"])
def test_other_architectures(tmp_path: Path, architecture: str) -> None:
    builder = tiny_gemma("gemma2").set("general.architecture", typed(STRING, architecture))
    assert f"{architecture!r} is not supported ({', '.join(ARCHITECTURES)} are)" in str(refused(builder, tmp_path))


def test_real_model(real_model: Path) -> None:
    with GgufFile.open(real_model) as file:
        config = read_config(file)
    assert (config.architecture, config.d_model, config.n_heads, config.vocab_size) == ("gemma3", 640, 4, 262144)
    assert (config.context_length, config.attn_scale) == (32768, 0.0625)
    local = LayerConfig(n_kv_heads=1, head_dim=256, d_ff=2048, window=512, rope=Rope(256, 1e4))
    assert config.layers == ((local,) * 5 + (replace(local, window=None, rope=Rope(256, 1e6)),)) * 3
