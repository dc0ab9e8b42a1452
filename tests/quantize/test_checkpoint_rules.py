"""Every rule for safetensors, index and config: broken input gives CheckpointError naming what and where."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint.folder import SAFETENSORS, CheckpointFolder
from edge_gemma.quantize.checkpoint.hf_source import open_folder
from edge_gemma.quantize.checkpoint.safetensors import read_safetensors
from tests.quantize import tiny_checkpoint as tiny

INDEX = SAFETENSORS.index
GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def entry(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


MALFORMED_HEADERS: list[tuple[str, Any, int, str]] = [
    ("dtype float8", {"a": entry(dtype="F8_E4M3")}, 16, "'a' has dtype 'F8_E4M3'"),
    ("dtype missing", {"a": {"shape": [4], "data_offsets": [0, 16]}}, 16, "dtype None"),
    ("zero dimension", {"a": entry(shape=[0, 2], data_offsets=[0, 0])}, 0, "every dimension"),
    ("negative dimension", {"a": entry(shape=[-2, -2])}, 16, "every dimension"),
    ("huge dimension", {"a": entry(shape=[2**32, 2**32])}, 16, "every dimension"),
    ("no dimension", {"a": entry(shape=[], data_offsets=[0, 4])}, 4, "bad shape"),
    ("boolean dimension", {"a": entry(shape=[True, 4])}, 16, "bad shape"),
    ("shape is text", {"a": entry(shape="22")}, 16, "bad shape"),
    ("nine dimensions", {"a": entry(shape=[1] * 8 + [4])}, 16, "bad shape"),
    ("size differs", {"a": entry(shape=[2, 3])}, 16, "takes 24 bytes, not 16"),
    ("offsets swapped", {"a": entry(data_offsets=[16, 0])}, 16, "'a'"),
    ("offset negative", {"a": entry(data_offsets=[-16, 0])}, 16, "data_offsets"),
    ("offset missing", {"a": {"dtype": "F32", "shape": [4]}}, 16, "data_offsets"),
    ("three offsets", {"a": entry(data_offsets=[0, 8, 16])}, 16, "data_offsets"),
    ("entry is a list", {"a": [1]}, 16, "data_offsets"),
    ("hole", {"a": GOOD, "b": entry(data_offsets=[20, 36])}, 36, "'b' begins at byte 20; the one before it ends at 16"),
    ("overlap", {"a": GOOD, "b": entry(data_offsets=[8, 24])}, 24, "'b' begins at byte 8"),
    ("first not at zero", {"a": entry(data_offsets=[4, 20])}, 20, "'a' begins at byte 4"),
    ("beyond the file", {"a": GOOD, "b": entry(data_offsets=[16, 32])}, 20, "'b' ends 12 bytes beyond the file"),
    ("bytes at the end", {"a": GOOD}, 17, "1 bytes after the last tensor"),
]


@pytest.mark.parametrize(("header", "body", "message"), [c[1:] for c in MALFORMED_HEADERS], ids=lambda v: str(v)[:20])
def test_malformed_header(tmp_path: Path, header: Any, body: int, message: str) -> None:
    path = tmp_path / "model.safetensors"
    tiny.write_raw_safetensors(path, json.dumps(header).encode(), bytes(body))
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        read_safetensors(path)
    assert message in str(caught.value)


MALFORMED_FILES = {
    "empty": (b"", "empty"),
    "short": (b"1234567", "too few"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "header of 100 bytes"),
    "header above the limit": (struct.pack("<Q", 2**63) + b"{}", "header of"),
    "not JSON": (struct.pack("<Q", 4) + b"\x80\x02}.", "not valid JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", "expected a JSON object"),
    "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested too deeply"),
    "duplicate key": (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "'a' appears twice"),
    "NaN": (struct.pack("<Q", 9) + b'{"a":NaN}', "NaN is not JSON"),
    "long integer": (struct.pack("<Q", 6006) + b'{"a":' + b"9" * 6000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", MALFORMED_FILES)
def test_malformed_file(tmp_path: Path, name: str) -> None:
    data, message = MALFORMED_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_checkpoint_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    tiny.write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        tensors = read_safetensors(path)
    except CheckpointError:
        return
    assert all(tensor.rows(0, 1).dtype == np.float32 for tensor in tensors.values())


def test_the_reference_writer_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = {"m": np.arange(6, dtype=np.float32).reshape(2, 3), "h": np.arange(4, dtype=np.float16)}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "np"})
    tensors = read_safetensors(tmp_path / "x.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"m": (2, 3), "h": (4,)}
    assert np.array_equal(tensors["m"].rows(1, 2), [[3, 4, 5]])
    assert np.array_equal(tensors["h"].rows(0, 1), [[0, 1, 2, 3]])


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    exact = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    values = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    tiny.write_safetensors(tmp_path / "x.safetensors", {"a": values}, "BF16")
    assert np.array_equal(read_safetensors(tmp_path / "x.safetensors")["a"].rows(0, 4), values)


def _edit_index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return apply


FIRST = "model-00001-of-00003.safetensors"
NORM = "model.norm.weight"


def _add_to_first(folder: Path) -> None:
    tensors = {name: t.rows(0, 1) for name, t in read_safetensors(folder / FIRST).items() if len(t.shape) == 1}
    tiny.write_safetensors(folder / FIRST, {**tensors, "model.extra": np.ones(4, np.float32)})


MALFORMED_INDEX: dict[str, tuple[Callable[[Path], None], str]] = {
    "parent directory": (_edit_index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})), "not a file name"),
    "absolute": (_edit_index(lambda i: i["weight_map"].update({NORM: "/etc/x.safetensors"})), "not a file name"),
    "backslash": (_edit_index(lambda i: i["weight_map"].update({NORM: "a\\x.safetensors"})), "not a file name"),
    "pickle": (_edit_index(lambda i: i["weight_map"].update({NORM: "pytorch_model.bin"})), "not a file name"),
    "number": (_edit_index(lambda i: i["weight_map"].update({NORM: 7})), "not a file name"),
    "no weight_map": (_edit_index(lambda i: i.pop("weight_map")), "weight_map"),
    "unlisted tensor": (_edit_index(lambda i: i["weight_map"].pop(NORM)), NORM),
    "tensor elsewhere": (_edit_index(lambda i: i["weight_map"].update({NORM: FIRST})), NORM),
    "tensor nowhere": (_edit_index(lambda i: i["weight_map"].update({"model.ghost": FIRST})), "model.ghost"),
    "missing shard": (lambda folder: (folder / FIRST).unlink(), FIRST),
    "extra tensor": (_add_to_first, "model-00001"),
}


@pytest.mark.parametrize("name", MALFORMED_INDEX)
def test_malformed_index(tmp_path: Path, name: str) -> None:
    tiny.write_checkpoint(tmp_path, "gemma2", shards=3)
    change, message = MALFORMED_INDEX[name]
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        CheckpointFolder(tmp_path).tensors()


@pytest.mark.parametrize("name", ["model.ckpt", "weights.pkl", "a.npz", "flax_model.msgpack", "tf_model.h5"])
def test_other_kinds_of_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=rf"{name}: files of this kind are not read"):
        CheckpointFolder(tmp_path).tensors()


def test_several_files_need_an_index(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path, shards=2)
    (tmp_path / INDEX).unlink()
    with pytest.raises(
        CheckpointError, match=r"2 files of \.safetensors need model\.safetensors\.index\.json.*00001-of-00002"
    ):
        CheckpointFolder(tmp_path).tensors()


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
    ({"architectures": None}, "architectures"),
    ({"hidden_size": 100}, "hidden_size is 100, no multiple of 32"),
    ({"hidden_size": "64"}, "hidden_size must be an integer"),
    ({"head_dim": 33}, "head_dim is 33; the rotation needs pairs"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "does not divide"),
    ({"rms_norm_eps": 1}, "rms_norm_eps"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 8}}, "yarn"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ({"rope_scaling": 8}, "rope_scaling must be an object"),
    ({"hidden_activation": "relu"}, "relu"),
    ({"attention_bias": True}, "attention_bias"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
    ({"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention", "x", "y"]}, "layer_types"),
    ({"sliding_window": 0}, "sliding_window"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"vocab_size": -1}, "vocab_size"),
]


def first_key(value: Any) -> str:
    return next(iter(value)) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=first_key)
def test_bad_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tiny.write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.make_config("gemma2", **changes)))
    with pytest.raises(CheckpointError, match=message) as caught:
        quantize(tmp_path, tmp_path / "out.gguf")
    assert "config.json" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


DISAGREEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 4}, "11 tensors are missing.*layers.3"),
    ({"num_hidden_layers": 2}, "11 tensors are extra.*layers.2"),
    ({"intermediate_size": 128}, r"gate_proj.weight has shape \(96, 64\); config.json asks for \(128, 64\)"),
    ({"tie_word_embeddings": False}, "missing.*lm_head"),
    ({"vocab_size": 1000}, r"embed_tokens.weight has shape \(384, 64\)"),
    ({"vocab_size": 300}, "384 tokens, but config.json and the embedding have 300"),
]


@pytest.mark.parametrize(("changes", "message"), DISAGREEMENTS, ids=first_key)
def test_config_and_tensors_disagree(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tiny.write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.make_config("gemma2", **changes)))
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path, tmp_path / "out.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite(tmp_path: Path, bad: float, dtype: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"][37, 5] = bad
    tiny.write_weights(tmp_path, tensors, dtype)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: row 37: 1 v"
    ):
        quantize(tmp_path, tmp_path / "out.gguf")


def test_outlier_beyond_float16_is_an_error(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e6
    tiny.write_weights(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"up_proj.weight: row 3: 1e\+06 is too large for Q4_0"):
        quantize(tmp_path, tmp_path / "out.gguf")


ODD = [[], {}, [[1]], {"a": [1]}, 10**400, 1e308, "x", "\ud800", -1, True, None, [None] * 3]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_odd_values_anywhere_are_errors_or_harmless(tmp_path: Path, name: str) -> None:
    """Each key of each file in turn gets each odd value; nothing but CheckpointError may come out."""
    tiny.write_checkpoint(tmp_path, tokenizer="json", rope_scaling=None, rope_parameters=None, layer_types=None)
    path = tmp_path / name
    document = {"top_k": 1, "temperature": 1.0} if not path.exists() else json.loads(path.read_text())
    refused = 0
    for key in [*document, "chat_template", "text_config"]:
        for odd in ODD:
            path.write_text(json.dumps({**document, key: odd}))
            try:
                open_folder(tmp_path)
            except CheckpointError:
                refused += 1
    assert refused > 0 or name == "generation_config.json"


@pytest.mark.parametrize("key", ["type", "vocab", "merges", "unk_token", "byte_fallback"])
def test_odd_values_in_the_tokenizer_model(tmp_path: Path, key: str) -> None:
    tiny.write_checkpoint(tmp_path, tokenizer="json")
    document = tiny.tokenizer_json()
    for odd in ODD:
        changed = {**document, "model": {**document["model"], key: odd}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        try:
            open_folder(tmp_path)
        except CheckpointError:
            continue
        assert key == "unk_token" or (key, odd) in (("byte_fallback", True), ("merges", []))
