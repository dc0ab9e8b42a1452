"""Tokenizers of today's models, converted: their ids are those of the `tokenizers` library; unknown kinds are named."""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.gguf.values import string
from edge_gemma.quantize.checkpoint.folder import CheckpointFolder
from edge_gemma.quantize.checkpoint.metadata import tokenizer_metadata
from edge_gemma.quantize.checkpoint.special_tokens import read_special_tokens
from edge_gemma.quantize.checkpoint.vocabulary import read_vocabulary
from edge_gemma.quantize.output.writer import encode_header
from edge_gemma.text.tokenizer import Tokenizer
from tests.quantize.converting import metadata

RECORDING = Path(__file__).parents[1] / "goldens/data/hf_tokenizers.json.xz"
ROLES: dict[str, tuple[str, dict[str, str]]] = {
    "gpt-2": ("llama", {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "smollm": ("llama", {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"}),
    "llama-bpe": ("llama", {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}),
    "gemma4": ("gemma4", {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}),
    "llama": ("llama", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
}
PREFIX = "tokenizer.ggml."


@functools.cache
def recording() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress(RECORDING.read_bytes()))
    return found


def document(name: str) -> dict[str, Any]:
    """A tokenizer.json, to be changed."""
    copy: dict[str, Any] = json.loads(json.dumps(recording()[name]["tokenizer"]))
    return copy


def write(folder: Path, name: str, tokenizer: dict[str, Any], **files: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {f"{role}_token": text for role, text in ROLES[name][1].items()}
    for file, content in {"tokenizer": tokenizer, "tokenizer_config": config, **files}.items():
        (folder / f"{file}.json").write_text(json.dumps(content))


def converted(path: Path, name: str, size: int | None = None) -> tuple[Path, list[str]]:
    """The file of the folder `path`, without weights, and what was told."""
    folder, architecture = CheckpointFolder(path), ROLES[name][0]
    vocabulary = read_vocabulary(folder, size, architecture)
    special = read_special_tokens(folder, vocabulary, {}, architecture)
    keys = {"general.architecture": string(architecture)} | tokenizer_metadata(vocabulary, special, {})
    target = path.with_name("out.gguf")
    target.write_bytes(encode_header(keys, []))
    return target, vocabulary.notices


def convert(tmp_path: Path, name: str, tokenizer: dict[str, Any] | None = None, **files: Any) -> dict[str, Any]:
    write(tmp_path / "hf", name, tokenizer or document(name), **files)
    return metadata(converted(tmp_path / "hf", name)[0])


@pytest.mark.parametrize("name", ROLES)
def test_ids_are_those_of_the_tokenizer_that_was_converted(tmp_path: Path, name: str) -> None:
    write(tmp_path / "hf", name, document(name))
    with GgufFile.open(converted(tmp_path / "hf", name)[0]) as file:
        tokenizer = Tokenizer.from_gguf(file)
    for text, ids in zip(recording()["texts"], recording()[name]["ids"], strict=True):
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == ids, text
        assert tokenizer.decode(ids, special=True) == text


KEYS: dict[str, dict[str, Any]] = {
    "gpt-2": {"model": "gpt2", "pre": "gpt-2", "add_bos_token": False, "bos_token_id": 0, "eos_token_id": 0},
    "smollm": {"model": "gpt2", "pre": "smollm", "add_bos_token": False, "bos_token_id": 1, "padding_token_id": 2},
    "llama-bpe": {"model": "gpt2", "pre": "llama-bpe", "add_bos_token": True, "bos_token_id": 700},
    "gemma4": {"model": "gemma4", "add_bos_token": True, "bos_token_id": 2, "unknown_token_id": 3},
    "llama": {"model": "llama", "pre": "default", "add_bos_token": True, "add_space_prefix": True, "eos_token_id": 2},
}


@pytest.mark.parametrize("name", ROLES)
def test_keys(tmp_path: Path, name: str) -> None:
    keys = convert(tmp_path, name)
    assert {key: keys[PREFIX + key] for key in KEYS[name]} == KEYS[name]
    assert (f"{PREFIX}pre" in keys) == (name != "gemma4")
    assert (f"{PREFIX}scores" in keys) == (name in ("gemma4", "llama"))
    assert keys[f"{PREFIX}add_space_prefix"] == (name == "llama")
    merges = [" ".join(pair).encode() for pair in document(name)["model"]["merges"]]
    assert keys.get(f"{PREFIX}merges", merges) == merges and (f"{PREFIX}merges" in keys) == (name != "llama")


def test_gemma_4s_scores_and_types(tmp_path: Path) -> None:
    """Added tokens that are no control tokens are what merges make; seven that a parser wants to see are marked."""
    tokenizer = document("gemma4")
    added = {"<|tool_call>": True, "<|turn>": True, "<0x41>": False}
    tokens = [*tokenizer["model"]["vocab"]]
    tokens[5] = "<|tool_call>"
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate([*tokens, "<|turn>", "<unused0>"])}
    ids = tokenizer["model"]["vocab"]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 5]
    tokenizer["added_tokens"] += [{"id": ids[text], "content": text, "special": flag} for text, flag in added.items()]
    tokenizer["added_tokens"].append({"id": ids["<unused0>"], "content": "<unused0>", "special": False})
    keys = convert(tmp_path, "gemma4", tokenizer, generation_config={"eos_token_id": [1, 6, 5]})
    types = keys[f"{PREFIX}token_type"]
    assert set(keys[f"{PREFIX}scores"]) == {-1000.0}
    assert [types[ids[text]] for text in ("<|tool_call>", "<|turn>", "<unused0>", "<0x41>")] == [4, 3, 1, 6]
    assert keys[f"{PREFIX}eos_token_ids"] == [1, 6, 5]


def test_suppressed_tokens(tmp_path: Path) -> None:
    keys = convert(tmp_path, "gemma4", generation_config={"suppress_tokens": [5, -1, 10**6, "x", 7]})
    assert keys[f"{PREFIX}suppress_tokens"] == [5, 7]
    assert f"{PREFIX}suppress_tokens" not in convert(tmp_path, "gemma4", generation_config={"suppress_tokens": None})


def test_ids_without_a_token_are_padded(tmp_path: Path) -> None:
    tokenizer = document("llama-bpe")
    for token in tokenizer["added_tokens"]:
        token["id"] += 2
    write(tmp_path / "hf", "llama-bpe", tokenizer)
    keys = metadata(converted(tmp_path / "hf", "llama-bpe", 710)[0])
    tokens, types = keys[f"{PREFIX}tokens"], keys[f"{PREFIX}token_type"]
    assert tokens[700:708] == [
        *(b"[PAD700]", b"[PAD701]", b"<|begin_of_text|>", b"<|end_of_text|>", b"<|eot_id|>", b"[x]"),
        *(b"[PAD706]", b"[PAD707]"),
    ]
    assert types[700:708] == [5, 5, 3, 3, 3, 4, 5, 5]


def test_a_normalizer_is_told(tmp_path: Path) -> None:
    write(tmp_path / "hf", "gpt-2", document("gpt-2") | {"normalizer": {"type": "NFC"}})
    assert converted(tmp_path / "hf", "gpt-2")[1] == [
        "the tokenizer's normalizer is left out, as by llama.cpp: {'type': 'NFC'}"
    ]


@pytest.mark.parametrize("kind", ["model", "json"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_in_front_where_the_tokenizer_puts_one(tmp_path: Path, kind: str, prefix: bool) -> None:
    import io

    import sentencepiece

    if kind == "json":
        tokenizer = document("llama")
        tokenizer["normalizer"] = None if not prefix else tokenizer["normalizer"]
        write(tmp_path / "hf", "llama", tokenizer)
    else:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some text for a vocabulary of byte fallback"] * 9),
            model_writer=model, model_type="bpe", vocab_size=290, byte_fallback=True, add_dummy_prefix=prefix,
            minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        write(tmp_path / "hf", "llama", {})
        (tmp_path / "hf/tokenizer.model").write_bytes(model.getvalue())
    path = converted(tmp_path / "hf", "llama")[0]
    assert metadata(path)[f"{PREFIX}add_space_prefix"] == prefix
    with GgufFile.open(path) as file:
        assert Tokenizer.from_gguf(file).add_space_prefix == prefix


SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s"}, "behavior": "Isolated", "invert": False}
Change = Callable[[dict[str, Any]], Any]
BROKEN: dict[str, tuple[str, Change, str]] = {
    "another way to cut": (
        "llama-bpe", lambda d: d["pre_tokenizer"]["pretokenizers"].__setitem__(0, SPLIT), "not known; known are those",
    ),
    "no way to cut": ("gpt-2", lambda d: d.update(pre_tokenizer=None), "pre_tokenizer None is not known"),
    "steps of no kind": ("gpt-2", lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": 1}), "known"),
    "steps without a type": (
        "gpt-2", lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [7, None]}), "not known",
    ),
    "no steps": ("gpt-2", lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": []}), "not known"),
    "a space in front": ("gpt-2", lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "not known"),
    "digits together": (
        "smollm", lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False), "not known",
    ),
    "no words": ("gpt-2", lambda d: d["pre_tokenizer"].update(use_regex=False), "not known"),
    "words that skip merging": ("gpt-2", lambda d: d["model"].update(ignore_merges=True), "ignore_merges"),
    "no BPE": ("gpt-2", lambda d: d["model"].update(type="WordPiece"), "only BPE is converted, this is 'WordPiece'"),
    "no model": ("gpt-2", lambda d: d.update(model=[]), "only BPE is converted, this is None"),
    "no merges": ("gpt-2", lambda d: d["model"].pop("merges"), "merges must be a list"),
    "a merge of three": ("gpt-2", lambda d: d["model"]["merges"].append("a b c"), "not a pair"),
    "a merge of nothing": ("gpt-2", lambda d: d["model"]["merges"].append(["a", ""]), "not a pair"),
    "a merge of unknown tokens": ("gemma4", lambda d: d["model"]["merges"].append("\u16a0\u16a0 b"), "not of tokens"),
    "a merge that makes none": ("smollm", lambda d: d["model"]["merges"].append("q q"), "'q q': not of tokens"),
    "an id twice": ("gpt-2", lambda d: d["model"]["vocab"].update(zz=5), "each once"),
    "an id far away": ("gpt-2", lambda d: d["model"]["vocab"].update(zz=2**30), "each once"),
    "an id that is no number": ("gpt-2", lambda d: d["model"]["vocab"].update(zz="1"), "each once"),
    "a hole": ("gemma4", lambda d: d["model"]["vocab"].update(zz=5000), "each once"),
    "Gemma without bytes": ("gemma4", lambda d: d["model"].update(byte_fallback=False), "only BPE with byte_fallback"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_converted(tmp_path: Path, case: str) -> None:
    name, change, message = BROKEN[case]
    tokenizer = document(name)
    change(tokenizer)
    write(tmp_path / "hf", name, tokenizer)
    with pytest.raises(CheckpointError, match=message) as caught:
        converted(tmp_path / "hf", name)
    assert str(tmp_path / "hf" / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_role_that_nobody_names(tmp_path: Path, role: str) -> None:
    roles = {f"{other}_token": "<|endoftext|>" for other in ("bos", "eos") if other != role}
    write(tmp_path / "hf", "gpt-2", document("gpt-2"), tokenizer_config=roles)
    with pytest.raises(CheckpointError, match=f"name no {role} token"):
        converted(tmp_path / "hf", "gpt-2")
