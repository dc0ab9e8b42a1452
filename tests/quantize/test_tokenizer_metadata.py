"""Tokenizer files -> `tokenizer.*`: tokens, kinds, scores, templates; what is broken is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize import quantize
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import convert, metadata


def test_vocabulary_is_padded_to_the_embedding(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, vocab_size=tiny.VOCAB + 16))
    assert keys["tokenizer.ggml.tokens"][-1] == b"[PAD399]"
    assert keys["tokenizer.ggml.scores"][-1] == -10000.0 and keys["tokenizer.ggml.token_type"][-1] == 5


def test_tokens(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path))
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    scores = keys["tokenizer.ggml.scores"]
    assert tokens[:11] == [
        *(b"<pad>", b"<eos>", b"<bos>", b"<unk>", b"<mask>", b"<unused0>"),
        *(b"<start_of_turn>", b"<end_of_turn>", b"\n", b"\n\n", b"  "),
    ]
    assert types[:11] == [3] * 8 + [4] * 3
    assert scores[:11] == [-1000.0] * 11
    assert types.count(6) == 256 and tokens[types.index(6)] == b"<0x00>"
    assert [s for s, t in zip(scores, types, strict=True) if t == 1] == [s for _, s in tiny.pieces()[267:]]


def test_tokenizer_json_alone_gives_the_same_vocabulary(tmp_path: Path) -> None:
    a = metadata(convert(tmp_path / "a"))
    b = metadata(convert(tmp_path / "b", tokenizer="json"))
    for key in ("tokens", "token_type"):
        assert a[f"tokenizer.ggml.{key}"] == b[f"tokenizer.ggml.{key}"]
    order_a, order_b = (np.array(keys["tokenizer.ggml.scores"]) for keys in (a, b))
    made = [i for i, token in enumerate(a["tokenizer.ggml.tokens"]) if i >= 267 and len(token.decode()) > 1]
    assert np.array_equal(np.argsort(-order_a[made]), np.argsort(-order_b[made]))


def test_added_tokens_of_tokenizer_json_serve_when_the_config_has_none(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf", tokenizer="json")
    (tmp_path / "hf/tokenizer_config.json").write_text("{}")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert metadata(tmp_path / "out.gguf")["tokenizer.ggml.token_type"][:11] == [3] * 8 + [4] * 3


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "list", "chat_template.jinja", "chat_template.json"])
def test_chat_template(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "hf"
    tiny.write_checkpoint(folder)
    config = tiny.tokenizer_config()
    if place == "chat_template.jinja":
        (folder / place).write_text(TEMPLATE)
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        config["chat_template"] = named if place == "list" else TEMPLATE
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    quantize(folder, tmp_path / "out.gguf")
    assert metadata(tmp_path / "out.gguf")["tokenizer.chat_template"] == TEMPLATE


def _break(folder: Path, name: str, change: Any) -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


BROKEN_TOKENIZERS: dict[str, tuple[str, Any, str]] = {
    "no bytes": ("tokenizer.json", lambda d: d["model"].update(byte_fallback=False), "byte_fallback"),
    "not BPE": ("tokenizer.json", lambda d: d["model"].update(type="Unigram"), "only BPE"),
    "id twice": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"the": 300}), "each once"),
    "id negative": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"<pad>": -1}), "each once"),
    "merge of three": ("tokenizer.json", lambda d: d["model"]["merges"].append("a b c"), "not a pair"),
    "no merges": ("tokenizer.json", lambda d: d["model"].pop("merges"), "merges must be a list"),
    "empty token": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"": 384}), "385 tokens|0 bytes"),
    "zero byte": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"content": "<\0>"}}),
        "token 7 has a zero byte",
    ),
    "same text twice": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"content": "<pad>"}}),
        "'<pad>' appears 2 times",
    ),
    "no UTF-8": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"content": "\ud800"}}),
        "no UTF-8 form",
    ),
    "added without text": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"special": True}}),
        "no content",
    ),
    "bos is text": ("tokenizer_config.json", lambda d: d.update(bos_token="\n"), "no control token"),
    "template is a number": ("tokenizer_config.json", lambda d: d.update(chat_template=7), "chat_template"),
    "bos outside": (
        "tokenizer_config.json",
        lambda d: d.update(bos_token=None),
        "bos token 9999 is outside 384 tokens",
    ),
}


@pytest.mark.parametrize("name", BROKEN_TOKENIZERS)
def test_broken_tokenizer(tmp_path: Path, name: str) -> None:
    file, change, message = BROKEN_TOKENIZERS[name]
    tiny.write_checkpoint(tmp_path / "hf", tokenizer="json", bos_token_id=9999)
    _break(tmp_path / "hf", file, change)
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_broken_sentencepiece_model(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(b"\x00\x01 not a protobuf")
    with pytest.raises(CheckpointError, match=r"tokenizer.model: not a sentencepiece model"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")
