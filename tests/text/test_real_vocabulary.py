"""The tokenizer on the real vocabulary: llama.cpp's ids, and every text comes back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_gemma.gguf.file import GgufFile
from edge_gemma.text import tokenizer
from edge_gemma.text.tokenizer import Tokenizer

CORPUS = Path(__file__).parents[1] / "goldens" / "data" / "tokenizer.jsonl.gz"

# Where we differ from llama.cpp on purpose. It makes image tokens of plain text. And it takes </s>, which Gemma has as
# the end tag of <s>, for another model's end of text: it does not find it in plain text, and ends the answer there.
IMAGES = {"<start_of_image>": 255999, "<end_of_image>": 256000, "[multimodal]": 5}
DIFFERENT = (*IMAGES, "</s>")


@pytest.fixture(scope="module")
def real(real_model: Path) -> Tokenizer:
    with GgufFile.open(real_model) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(CORPUS.read_bytes()).decode().split("\n")]


def test_ids_are_llama_cpps(real: Tokenizer, corpus: list[dict[str, Any]]) -> None:
    same = [record for record in corpus if not any(text in record["text"] for text in DIFFERENT)]
    assert len(same) > 2900
    for record in same:
        assert real.encode(record["text"], add_bos=False) == record["plain"], record["text"]


def test_ids_are_llama_cpps_with_special_tokens_parsed(real: Tokenizer, corpus: list[dict[str, Any]]) -> None:
    assert sum("special" in record for record in corpus) > 300
    for record in corpus:
        expected = record.get("special", record["plain"])
        assert real.encode(record["text"], add_bos=False, parse_special=True) == expected, record["text"]


def test_the_corpus_comes_back(real: Tokenizer, corpus: list[dict[str, Any]]) -> None:
    for record in corpus:
        text = record["text"]
        assert real.decode(real.encode(text, add_bos=False)) == text
        assert real.decode(real.encode(text, add_bos=False, parse_special=True), special=True) == text


@pytest.mark.parametrize("text", IMAGES)
def test_images_are_plain_text_unless_parsed(real: Tokenizer, text: str) -> None:
    assert IMAGES[text] not in real.encode(f"a{text}b")
    assert real.encode(text, add_bos=False, parse_special=True) == [IMAGES[text]]
    assert real.is_control(IMAGES[text])


def test_the_end_of_strikethrough_is_a_tag_of_html(real: Tokenizer) -> None:
    assert real.encode("<s>x</s>", add_bos=False) == [203, 236781, 212]
    assert real.decode([203, 236781, 212]) == "<s>x</s>"
    assert 212 not in real.eog_ids


ANY_TEXT = st.text(max_size=40)
NASTY = st.lists(
    st.sampled_from(
        ["\u2581", " ", "  ", "\0", "\n", "\n\n", "<bos>", "<", ">", "<0x41>", "é", "\ufffd", "\ufeff", "▁▁", "a"]
    )
).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(ANY_TEXT, NASTY))
@example(text="\u2581")
@example(text="\0")
@example(text="a\0b")
def test_every_text_comes_back(real: Tokenizer, text: str) -> None:
    assert real.decode(real.encode(text, add_bos=False)) == text
    assert real.decode(real.encode(text, add_bos=True)) == text


def test_the_space_character_of_sentencepiece_survives(real: Tokenizer) -> None:
    assert [real.token_text(i) for i in real.encode("a\u2581b", add_bos=False)] == [
        "a",
        "<0xE2>",
        "<0x96>",
        "<0x81>",
        "b",
    ]
    assert real.decode(real.encode(" \u2581 \u2581\u2581", add_bos=False)) == " \u2581 \u2581\u2581"


def test_plain_text_never_becomes_a_control_token(real: Tokenizer) -> None:
    names = [real.token_text(i) for i in range(real.vocab_size) if real.is_control(i)]
    assert len(names) == 6249 + len(IMAGES)
    for name in names:
        for text in (name, f" {name}\n", name + name, name[: len(name) // 2] + name + name[len(name) // 2 :]):
            ids = real.encode(text, add_bos=False)
            assert not any(map(real.is_control, ids)), text
            assert real.decode(ids) == text


def test_every_control_token_is_found_when_parsed(real: Tokenizer) -> None:
    ids = [i for i in range(real.vocab_size) if real.is_control(i)]
    for i in ids:
        name = real.token_text(i)
        assert real.encode(f"x{name}{name}", add_bos=False, parse_special=True)[-2:] == [i, i]
        assert real.decode([i]) == ""
        assert real.decode([i], special=True) == name


def test_special_ids(real: Tokenizer) -> None:
    assert (real.vocab_size, real.bos_id, real.eos_id) == (262144, 2, 1)
    assert real.eog_ids == {1, 106}
    assert real.add_bos
    assert not real.add_space_prefix


def test_one_bos_and_only_where_asked_for(real: Tokenizer) -> None:
    assert real.encode("Hello") == [2, 9259]
    assert real.encode("Hello", add_bos=None) == [2, 9259]
    assert real.encode("Hello", add_bos=False) == [9259]
    assert real.encode("") == [2]
    assert real.encode("", add_bos=False) == []
    assert real.encode("<bos>Hello", parse_special=True) == [2, 9259]
    assert real.encode("<bos><bos>Hello", parse_special=True) == [2, 2, 9259]  # what the text itself says
    assert real.encode("<bos>").count(2) == 1


def test_token_bytes_and_text(real: Tokenizer) -> None:
    assert real.token_bytes(9259) == b"Hello"
    assert (real.token_bytes(1902), real.token_text(1902)) == (b" world", "\u2581world")
    assert (real.token_bytes(248), real.token_text(248)) == (b"\x0a", "<0x0A>")
    assert real.token_bytes(2) == b"<bos>"
    assert real.token_bytes(138) == b"  "


@pytest.mark.parametrize("bad", [-1, 262144])
def test_ids_outside_the_vocabulary(real: Tokenizer, bad: int) -> None:
    for call in (real.token_bytes, real.token_text, real.is_control, lambda i: real.decode([2, i])):
        with pytest.raises(ValueError, match=rf"token id {bad} is outside 0\.\.262143"):
            call(bad)


@pytest.mark.parametrize("text", ["a\ud800", "a\udfff b"])
def test_a_lone_surrogate(real: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match=rf"lone surrogate, U\+{ord(text[1]):04X} at character 1"):
        real.encode(text)


def test_text_of_a_wrong_kind(real: Tokenizer) -> None:
    wrong: Any = b"bytes"
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        real.encode(wrong)


def test_text_that_is_too_long(real: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "MAX_TEXT_BYTES", 4)
    assert real.encode("éé", add_bos=False)
    with pytest.raises(ValueError, match="has 5 bytes in UTF-8, the limit is 4"):
        real.encode("ééa")


@pytest.mark.parametrize("unit", ["a", "\n", "\ufdfa", "<un", "\u2581a", "ab ", "\U0010ffff"])
def test_a_long_run_takes_no_quadratic_time(real: Tokenizer, unit: str) -> None:
    """A quadratic algorithm would take hours here, and no limit of seconds is needed to notice."""
    text = unit * (2**19 // len(unit.encode()))
    assert real.decode(real.encode(text, add_bos=False, parse_special=True)) == text
