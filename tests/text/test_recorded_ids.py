"""Ids of the vocabularies of today's models: those that llama.cpp gives to thousands of texts."""

from __future__ import annotations

import pytest

from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.tokenizer import Tokenizer
from tests.text.recorded_vocabulary import Recording, recording

SIZES = {"gemma4": 3000, "smollm": 1500, "llama-bpe": 800, "llama-spm": 800, "gpt-2": 700, "mpt": 700, "default": 700}

# Where we differ from llama.cpp on purpose, all in Gemma 4's: plain text becomes no control token, and [multimodal]
# is one to us.
VISIBLE = ("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|channel>", "<channel|>")
DIFFERENT = {"gemma4": (*VISIBLE, "[multimodal]")}


@pytest.fixture(scope="module", params=SIZES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recorded(name: str) -> Recording:
    return recording(name)


@pytest.fixture(scope="module")
def tokenizer(recorded: Recording, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("recorded") / "vocabulary.gguf"
    path.write_bytes(recorded.builder().build())
    with GgufFile.open(path) as file:
        return Tokenizer.from_gguf(file)


def test_ids_are_llama_cpps(tokenizer: Tokenizer, recorded: Recording, name: str) -> None:
    texts = [*zip(recorded.texts, recorded.plain, strict=True)]
    same = [(text, ids) for text, ids in texts if not any(part in text for part in DIFFERENT.get(name, ()))]
    assert len(texts) >= SIZES[name] and len(texts) - len(same) < 100
    for text, ids in same:
        assert tokenizer.encode(text, add_bos=False) == ids, text


def test_ids_are_llama_cpps_with_special_tokens_parsed(tokenizer: Tokenizer, recorded: Recording, name: str) -> None:
    assert (recorded.special != recorded.plain) == (name != "default")
    for text, ids in zip(recorded.texts, recorded.special, strict=True):
        if "[multimodal]" not in text:
            assert tokenizer.encode(text, add_bos=False, parse_special=True) == ids, text


def test_the_texts_come_back(tokenizer: Tokenizer, recorded: Recording, name: str) -> None:
    """Also in a stream, token by token. SmolLM2's vocabulary lacks some control characters: they are left out."""
    for text in recorded.texts:
        kept = "".join(char for char in text if name != "smollm" or char not in "\x04\x06\x13\x14\x16\x1d")
        assert tokenizer.decode(tokenizer.encode(text)) == kept
        ids = tokenizer.encode(text, add_bos=False, parse_special=True)
        assert tokenizer.decode(ids, special=True) == kept
        stream = Detokenizer(tokenizer, special=True)
        assert "".join([*map(stream.push, ids), stream.flush()]) == kept


def test_ends_and_the_beginning_are_llama_cpps(tokenizer: Tokenizer, recorded: Recording) -> None:
    assert tokenizer.eog_ids == recorded.ends
    assert tokenizer.add_bos == recorded.add_bos
    assert tokenizer.encode("", add_bos=None) == [tokenizer.bos_id] * recorded.add_bos


def test_every_token_has_bytes(tokenizer: Tokenizer) -> None:
    for i in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(i)
        assert tokenizer.decode([i], special=True) == tokenizer.strip_prefix(tokenizer.token_bytes(i)).decode(
            "utf-8", "replace"
        )


@pytest.mark.parametrize("unit", ["a", "ab ", "\n", "=", "é漢"])
def test_a_long_run_takes_no_quadratic_time(tokenizer: Tokenizer, unit: str) -> None:
    """A quadratic algorithm would take many minutes here."""
    text = unit * (2**16 // len(unit.encode()))
    assert tokenizer.decode(tokenizer.encode(text)) == text
