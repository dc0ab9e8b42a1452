"""EmbeddingGemma's facts: from a file and from a folder, and what is wrong with either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma import Gemma
from edge_gemma.errors import CheckpointError, ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.quantize import quantize
from tests.gguf_builder import runnable_gemma, u32
from tests.goldens.embedding_cases import EMBEDDING_CASES, texts, write_checkpoint, write_gguf, write_gguf2
from tests.quantize import tiny_checkpoint as tiny

CASE = EMBEDDING_CASES["embedding-300m"]


def config_of(path: Path) -> Config:
    with GgufFile.open(path) as file:
        config = read_config(file)
        Weights.bind(file, config)
        return config


def test_a_folder_becomes_the_file_of_the_same_weights(tmp_path: Path) -> None:
    write_checkpoint(CASE, tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    write_gguf(CASE, tmp_path / "same.gguf")
    configs = [config_of(tmp_path / name) for name in ("out.gguf", "same.gguf")]
    assert replace(configs[0], attn_scale=configs[1].attn_scale, unused_rope=configs[1].unused_rope) == configs[1]
    assert configs[0].embedding and configs[0].embedding.dense == ((96, 128), (128, 96))
    assert [(layer.window, layer.ahead) for layer in configs[0].layers[:1]] == [(7, 6)]
    found = []
    for name in ("out.gguf", "same.gguf"):
        with Gemma(tmp_path / name, threads=1) as model:
            found.append(model.embed(texts(CASE)))
    assert np.array_equal(*found)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K_M", "Q8_0"])
def test_quantized_files_stay_near(tmp_path: Path, type: str) -> None:
    case = EMBEDDING_CASES["embedding-256"]
    write_checkpoint(case, tmp_path / "hf")
    rows = []
    for name in ("F32", type):
        quantize(tmp_path / "hf", tmp_path / f"{name}.gguf", name)
        with Gemma(tmp_path / f"{name}.gguf", threads=1) as model:
            rows.append(model.embed(texts(case)))
    assert (rows[0] * rows[1]).sum(axis=1).min() > (0.999 if type == "Q8_0" else 0.9)


def test_a_folder_without_modules_tells_so(tmp_path: Path) -> None:
    write_checkpoint(CASE, tmp_path / "hf")
    (tmp_path / "hf/modules.json").unlink()
    notices = quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0").notices
    assert any("no dense layers behind the pooling" in notice for notice in notices)
    assert config_of(tmp_path / "out.gguf").embedding == replace(
        config_of(tmp_path / "out.gguf").embedding,
        dense=(),
        width=96,  # type: ignore[type-var]
    )


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"use_bidirectional_attention": False}, "use_bidirectional_attention is not set"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "pooling is"),
        ("2_Dense/config.json", {"bias": True}, "a bias or an activation"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}, "a bias or an activation"),
        ("2_Dense/config.json", {"in_features": "96"}, "no sizes"),
        ("3_Dense/config.json", {"out_features": 64}, "asks for"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    write_checkpoint(CASE, tmp_path / "hf")
    path = tmp_path / "hf" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_dense_layers_are_two_or_none(tmp_path: Path) -> None:
    write_checkpoint(CASE, tmp_path / "hf")
    path = tmp_path / "hf/modules.json"
    path.write_text(json.dumps([module for module in json.loads(path.read_text()) if module["path"] != "3_Dense"]))
    with pytest.raises(CheckpointError, match=r"layers are 1 in modules\.json; 2 are run, or none"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")


def test_modules_of_a_model_that_continues_texts_are_not_read(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/modules.json").write_text("[")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    assert config_of(tmp_path / "out.gguf").embedding is None


def test_a_file_is_quantized_again(tmp_path: Path) -> None:
    write_gguf(CASE, tmp_path / "one.gguf")
    write_gguf2(tmp_path / "two.gguf")
    for name in ("one", "two"):
        quantize(tmp_path / f"{name}.gguf", tmp_path / f"{name}-again.gguf", "F32")
        assert config_of(tmp_path / f"{name}-again.gguf") == config_of(tmp_path / f"{name}.gguf")


def test_what_is_usual_is_guessed(tmp_path: Path) -> None:
    write_gguf(CASE, tmp_path / "model.gguf")
    config = config_of(tmp_path / "model.gguf")
    assert config.model.guessed(config).layers == config.layers


@pytest.mark.parametrize("text", ["{}", '[{"type": 5, "path": ""}]', '[{"type": "Dense", "path": "../x"}]', "["])
def test_modules_that_are_none(tmp_path: Path, text: str) -> None:
    write_checkpoint(CASE, tmp_path / "hf")
    (tmp_path / "hf/modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")


def dense(*sizes: int) -> dict[str, int]:
    """Keys of as many sizes: inputs and outputs of one layer, then of the other."""
    names = [f"dense_{layer}_feat_{end}" for layer in (2, 3) for end in ("in", "out")]
    return dict(zip(names, sizes, strict=False))


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"pooling_type": 2}, "pooling_type"),
        (dense(64), "dense_2_feat_out"),
        (dense(64, 96), "dense_3_feat_in"),
        (dense(96, 64, 64, 64), "dense_2_feat_in"),
        (dense(64, 96, 64, 64), "dense_3_feat_in"),
        (dense(64, 40, 40, 64), "dense_2_feat_out"),
    ],
)
def test_malformed_keys(tmp_path: Path, keys: dict[str, int], field: str) -> None:
    builder = runnable_gemma("gemma-embedding", d_model=64)
    for name, value in keys.items():
        builder.set(f"gemma-embedding.{name}", u32(value))
    (tmp_path / "model.gguf").write_bytes(builder.build())
    with pytest.raises(ModelFormatError) as caught:
        config_of(tmp_path / "model.gguf")
    assert caught.value.field == f"gemma-embedding.{field}"
