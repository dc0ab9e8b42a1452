"""What `info` tells about a file, and the memory plan behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_gemma import Gemma
from edge_gemma.engine.memory_plan import memory_plan, require_budget
from edge_gemma.errors import ContextOverflowError, MemoryBudgetError, ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.cache import most_pages
from edge_gemma.measure.info import describe, render
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from tests.gguf_builder import (
    BOOL,
    F32,
    SMALL_VOCABULARY,
    STRING,
    TYPE_Q8_0,
    U32,
    TensorRecord,
    array,
    f32,
    runnable_gemma,
    tiny_gemma,
    typed,
    u32,
)

Model = tuple[Config, Weights]
VOCAB = len(SMALL_VOCABULARY)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gemma("gemma2").set("gemma2.context_length", u32(8192)).build())
    with GgufFile.open(path) as file:
        config = read_config(file)
        return config, Weights.bind(file, config)


@pytest.mark.parametrize(
    ("context", "global_pages", "local_pages"),
    [(1, 1, 1), (256, 1, 1), (257, 2, 2), (320, 2, 2), (513, 3, 3), (8192, 32, 3)],
)
def test_most_pages(model: Model, context: int, global_pages: int, local_pages: int) -> None:
    config, _ = model
    assert (
        config.layers[0].window == 64
    )  # 63 positions before the chunk of 256: in three pages, where they begin inside one
    assert most_pages(config.states[0], context, 256) == local_pages
    assert most_pages(config.states[1], context, 256) == global_pages


def test_pages_without_window(model: Model) -> None:
    config = model[0].with_windows((None,) * 4)
    assert [most_pages(config.states[i], 1000, 256) for i in range(4)] == [4] * 4


def test_memory_plan(model: Model) -> None:
    config, weights = model
    plan = memory_plan(config, weights, 1000)
    assert plan.kv_cache == 2 * 2 * 16 * 2 * (768 + 1024 + 768 + 1024)
    assert memory_plan(config, weights, 1000, kv_type="f32").kv_cache == 2 * plan.kv_cache
    assert 64 * memory_plan(config, weights, 1000, kv_type="q8_0").kv_cache == 34 * plan.kv_cache
    assert plan.weights == sum(t.nbytes for t in weights.tensors())
    assert plan.tokenizer == 200 * config.vocab_size
    assert plan.total == plan.weights + plan.kv_cache + plan.buffers + plan.tokenizer
    for context in (0, -1, 8193):
        with pytest.raises(ContextOverflowError, match=r"outside 1\.\.8192"):
            memory_plan(config, weights, context)


def test_budget_names_the_context_that_fits(model: Model) -> None:
    config, weights = model
    wanted = memory_plan(config, weights, 3000)
    exact = wanted.total - wanted.weights
    assert require_budget(config, weights, 3000, exact) == wanted
    with pytest.raises(MemoryBudgetError, match="a context of 2816 fits"):  # 3000 takes the room of 3072
        require_budget(config, weights, 3000, exact - 1)
    with pytest.raises(MemoryBudgetError, match="no context fits"):
        require_budget(config, weights, 3000, 1000)


def test_describe(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    builder = runnable_gemma("gemma3").set("general.name", typed(STRING, "Tiny"))
    builder.tensors.append(TensorRecord("output.weight", (64, VOCAB), TYPE_Q8_0))
    path.write_bytes(builder.build())
    info = describe(path, 300)
    layer = {"n_kv_heads": 2, "head_dim": 32, "d_ff": 96, "window": 64}
    layer |= {"rope_dims": 32, "rope_base": 10000.0, "rope_scale": 1.0}
    layer |= {"shared_with": None, "keys_are_values": False, "ahead": 0, "rope_factors": None, "rope_neighbours": False}
    assert json.loads(json.dumps(info))["hyper_parameters"]["layers"] == [layer] * 4
    assert (info["name"], info["architecture"], info["file_size"]) == ("Tiny", "gemma3", path.stat().st_size)
    assert (info["gguf_version"], info["tied_output"]) == (3, False)
    assert info["parameters"] == sum(math.prod(t.dims) for t in builder.tensors)
    assert len(info["tensors"]) == len(builder.tensors)
    assert info["types"]["Q8_0"] == {"tensors": 1, "parameters": 64 * VOCAB, "bytes": 2 * VOCAB * 34}
    assert list(info["types"]) == ["F16", "Q8_0", "F32"]  # most bytes first
    assert info["bits_per_weight"] == 8 * sum(t["bytes"] for t in info["tensors"]) / info["parameters"]
    assert info["memory"]["context"] == 300
    assert describe(path)["memory"]["context"] == 512  # the model's limit, below the usual 4096
    with pytest.raises(ContextOverflowError):
        describe(path, 513)


def test_render(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(runnable_gemma("gemma2").set("general.name", typed(STRING, "a\x1b[2Jb\ngrüße")).build())
    text = render(describe(path, 300))
    assert "a\\x1b[2Jb\\ngrüße" in text
    assert "\x1b" not in text
    assert "2 of 4: LGLG" in text
    assert "Memory at a context of 300 (f16 cache)" in text
    lines = text.splitlines()
    assert all(line == line.rstrip() and len(line) < 100 for line in lines[1:])
    assert sum(line.split()[:1] == ["blk.3.ffn_down.weight"] for line in lines) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.model", typed(STRING, "t5")),
        ("tokenizer.ggml.token_type", None),
        ("tokenizer.ggml.scores", array(F32, [0.0])),
        ("tokenizer.ggml.eos_token_id", None),
        ("tokenizer.ggml.bos_token_id", u32(VOCAB)),
        ("tokenizer.ggml.tokens", array(STRING, ["twin"] * VOCAB)),
        ("gemma2.attention.sliding_window_pattern", array(BOOL, [1] * 3)),
        ("gemma2.context_length", u32(0)),
    ],
)
def test_what_a_model_could_not_be_opened_with_is_told(tmp_path: Path, key: str, value: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(runnable_gemma().set(key, value).build())
    for ask in (describe, Gemma):
        with pytest.raises(ModelFormatError) as caught:
            ask(path)
        assert caught.value.field.startswith(key)


def test_heads_that_no_kernel_takes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(runnable_gemma(head_dim=16).build())
    for ask in (describe, Gemma):
        with pytest.raises(ModelFormatError, match="key_length: 16 is no multiple of 32"):
            ask(path)


@pytest.mark.parametrize("value", [u32(7), array(STRING, ["a"]), typed(STRING, b"\xff"), typed(STRING, "x" * 2**21)])
def test_a_name_that_is_no_text_is_none(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(runnable_gemma().set("general.name", value).build())
    assert describe(path)["name"] == ""


NUMBERS = [0, 1, 2, 3, 4, 5, 8, 16, 31, 32, 48, 64, 96, 256, 512, 2**20, 2**31, 2**32 - 1]
REALS = [0.0, -1.0, 1e-45, 1e-6, 1.0, 8.0, 1e4, 3e38, math.inf, -math.inf, math.nan]
VALUES = st.one_of(
    st.none(),
    st.sampled_from(NUMBERS).map(u32),
    st.sampled_from(REALS).map(f32),
    st.lists(st.integers(0, 1), max_size=5).map(lambda bits: array(BOOL, bits)),
    st.lists(st.sampled_from(NUMBERS), max_size=5).map(lambda numbers: array(U32, numbers)),
    st.sampled_from(["", "linear", "none", "yarn", "gemma2"]).map(lambda text: typed(STRING, text)),
)
NAMES = [key for key, _ in runnable_gemma("gemma3").keys] + [
    "gemma3.attention.sliding_window_pattern",
    "gemma3.attention.scale",
    "gemma3.final_logit_softcapping",
    "gemma3.rope.dimension_count",
    "gemma3.rope.freq_base",
    "gemma3.rope.freq_base_swa",
    "gemma3.rope.scaling.factor",
    "gemma3.rope.scaling.type",
    "gemma3.vocab_size",
    "edge_gemma.attention.sliding_window_pattern",
    "edge_gemma.rope.scale_linear",
]


@pytest.mark.filterwarnings("ignore:.*(is|are) ignored")
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=3), st.sampled_from([None, *NUMBERS]))
def test_any_metadata_is_described_or_refused(
    tmp_path: Path, changes: dict[str, bytes | None], context: int | None
) -> None:
    builder = runnable_gemma("gemma3")
    for key, value in changes.items():
        builder.set(key, value)
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(builder.build())
    try:
        render(describe(path, context))
    except (ModelFormatError, ContextOverflowError) as error:
        assert str(error)


def test_real_model(real_model: Path) -> None:
    info = describe(real_model, 4096)
    assert info["parameters"] == 268_098_176
    assert 7.3 < info["bits_per_weight"] < 7.4
    assert {name: row["tensors"] for name, row in info["types"].items()} == {
        "Q8_0": 10,
        "Q5_0": 81,
        "Q4_K": 27,
        "Q6_K": 9,
        "F32": 109,
    }
    # 511 + 256 positions are in 4 pages of each of 15 local layers, 4096 in 16 of 3 global ones; one head of 256, f16
    assert info["memory"]["kv_cache"] == 2 * 256 * 2 * (15 * 1024 + 3 * 4096)
