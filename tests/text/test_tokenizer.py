"""The tokenizer: llama.cpp's ids on the real vocabulary, exact round trips, every rule of a vocabulary by a breach."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_gemma import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text import tokenizer
from edge_gemma.text.sentencepiece_model import MAX_PIECE_BYTES, bpe_model
from edge_gemma.text.tokenizer import Tokenizer
from tests.gguf_builder import (
    BOOL,
    BYTE,
    CONTROL,
    F32,
    I32,
    NORMAL,
    SMALL_VOCABULARY,
    STRING,
    U32,
    U64,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Builder,
    array,
    f32,
    runnable_gemma,
    typed,
    u32,
)

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


# A small vocabulary, in which each rule can be broken.

SMALL = SMALL_VOCABULARY
SPACE, A, B, AB, SPACE_A, END, TWO_SPACES, TAG, PAD = range(260, 269)


def small_gguf(entries: list[tuple[str | bytes, float, int]] = SMALL) -> Builder:
    return runnable_gemma("gemma2", entries)


Load = Callable[[Builder], Tokenizer]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def tokenizer_of(builder: Builder) -> Tokenizer:
        path = tmp_path / "small.gguf"
        path.write_bytes(builder.build())
        with GgufFile.open(path) as file:
            return Tokenizer.from_gguf(file)

    return tokenizer_of


def test_the_small_vocabulary(load: Load) -> None:
    small = load(small_gguf())
    assert small.encode("ab a", add_bos=False) == [AB, SPACE_A]
    assert small.encode("  a<b>", add_bos=False) == [TWO_SPACES, A, TAG]
    assert small.encode("é", add_bos=False) == [4 + 0xC3, 4 + 0xA9]
    assert small.eog_ids == {1, END}
    assert small.decode([PAD, 3, A]) == "a"


def test_best_score_first_and_left_of_equals(load: Load) -> None:
    found = load(small_gguf([*SMALL, ("aa", -5.0, NORMAL), ("ba", -0.5, NORMAL)]))
    assert found.encode("aaa", add_bos=False) == [269, A]
    assert found.encode("aba", add_bos=False) == [AB, A]
    assert found.encode("baa", add_bos=False) == [270, A]


def replaced(at: int, token: str | bytes, score: float = 0.0, kind: int = NORMAL) -> Builder:
    return small_gguf([*SMALL[:at], (token, score, kind), *SMALL[at + 1 :]])


K = "tokenizer.ggml."
T, S, Y = f"{K}tokens", f"{K}scores", f"{K}token_type"
BROKEN: dict[str, tuple[Builder, str, str]] = {
    "another model": (small_gguf().set(f"{K}model", typed(STRING, "t5")), f"{K}model", "'t5' is not supported"),
    "no model": (small_gguf().set(f"{K}model", None), f"{K}model", "missing"),
    "no tokens key": (small_gguf().set(T, None), T, "missing"),
    "no scores": (small_gguf().set(S, None), S, "missing"),
    "no types": (small_gguf().set(Y, None), Y, "missing"),
    "tokens are numbers": (small_gguf().set(T, array(I32, [0])), T, "ARRAY"),
    "scores are ints": (small_gguf().set(S, array(I32, [0] * len(SMALL))), S, "ARRAY"),
    "types are floats": (small_gguf().set(Y, array(F32, [1.0] * len(SMALL))), Y, "ARRAY"),
    "a score too few": (small_gguf().set(S, array(F32, [0.0] * (len(SMALL) - 1))), S, "entries"),
    "a type too few": (small_gguf().set(Y, array(I32, [1] * (len(SMALL) - 1))), Y, "entries"),
    "score NaN": (replaced(B, "b", math.nan), S, f"token {B} is nan"),
    "score inf": (replaced(B, "b", -math.inf), S, f"token {B} is -inf"),
    "type 0": (replaced(B, "b", 0.0, 0), Y, f"token {B} is 0"),
    "type 7": (replaced(B, "b", 0.0, 7), Y, f"token {B} is 7"),
    "type negative": (replaced(B, "b", 0.0, -1), Y, f"token {B} is -1"),
    "empty token": (replaced(B, ""), f"{T}[{B}]", "empty"),
    "no tokens": (small_gguf([]), T, "no tokens"),
    "zero byte": (replaced(B, "b\0"), f"{T}[{B}]", "zero byte"),
    "not UTF-8": (replaced(B, b"\xff"), f"{T}[{B}]", "not UTF-8"),
    "a character cut between two tokens": (
        small_gguf([*SMALL, (b"\xc3", 0.0, NORMAL), (b"\xa9", 0.0, NORMAL)]), f"{T}[269]", "not UTF-8",
    ),
    "a character cut at the end": (small_gguf([*SMALL, (b"\xe2\x96", 0.0, NORMAL)]), f"{T}[269]", "not UTF-8"),
    "twins": (replaced(B, "a"), f"{T}[{B}]", f"same as token {A}"),
    "twins of two types": (replaced(B, "<pad>"), f"{T}[{B}]", "same as token 0"),
    "twins by spelling": (replaced(B, "\u2581\u2581"), f"{T}[{TWO_SPACES}]", f"same as token {B}"),
    "a byte missing": (replaced(4 + 0x41, "c"), Y, "<0x41>"),
    "a byte that is normal": (replaced(4 + 0x41, "<0x41>"), Y, "<0x41>"),
    "a byte too many": (replaced(B, "<0x100>", 0.0, BYTE), Y, "is no byte"),
    "no bos": (small_gguf().set(f"{K}bos_token_id", None), f"{K}bos_token_id", "missing"),
    "no eos": (small_gguf().set(f"{K}eos_token_id", None), f"{K}eos_token_id", "missing"),
    **{
        f"{name} outside": (
            small_gguf().set(f"{K}{name}_token_id", u32(len(SMALL))), f"{K}{name}_token_id", "outside",
        )
        for name in ("bos", "eos")
    },
    "eos is a letter": (small_gguf().set(f"{K}eos_token_id", u32(A)), f"{K}eos_token_id", f"token {A} .'a'. is ordin"),
    "bos is a byte": (small_gguf().set(f"{K}bos_token_id", u32(4)), f"{K}bos_token_id", "token 4 .* is ordinary"),
    "bos is a float": (small_gguf().set(f"{K}bos_token_id", f32(2)), f"{K}bos_token_id", "FLOAT32"),
    "add_bos is a number": (small_gguf().set(f"{K}add_bos_token", u32(1)), f"{K}add_bos_token", "UINT32"),
    "no unknown token": (
        replaced(3, "<?>", 0.0, CONTROL).set(f"{K}unknown_token_id", None), f"{K}unknown_token_id", "<unk>",
    ),
    "no unknown token in sight of its id": (
        replaced(3, "<?>", 0.0, CONTROL).set(f"{K}unknown_token_id", u32(A)), f"{K}unknown_token_id", "<unk>",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*unknown_token_id is ignored")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_vocabulary(load: Load, name: str) -> None:
    builder, field, message = BROKEN[name]
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(builder)
    assert caught.value.field == field
    assert caught.value.path is not None
    if "missing" not in message and name != "no unknown token":
        assert caught.value.offset is not None


def test_the_offset_is_where_the_token_lies(load: Load, tmp_path: Path) -> None:
    builder = replaced(B, b"\xffmark")
    with pytest.raises(ModelFormatError) as caught:
        load(builder)
    assert caught.value.offset == (tmp_path / "small.gguf").read_bytes().index(b"\xffmark")


def test_metadata_of_other_converters(load: Load) -> None:
    """Ollama's: no add_space_prefix, no unknown id, a list of ends, turn tokens typed as ordinary, spaces as U+2581."""
    entries = [*SMALL, ("<start_of_turn>", 0.0, USER_DEFINED), ("\u2581\u2581\u2581", 0.0, USER_DEFINED)]
    entries[END] = ("<end_of_turn>", 0.0, NORMAL)
    builder = small_gguf(entries).set("tokenizer.ggml.add_space_prefix", None)
    builder.set("tokenizer.ggml.unknown_token_id", None).set("tokenizer.ggml.eos_token_ids", array(I32, [1, END]))
    found = load(builder)
    assert found.eog_ids == {1, END}
    assert found.encode("   a", add_bos=False) == [270, A]
    assert found.decode([270, A]) == "   a"
    assert found.is_control(269)
    assert 269 not in found.encode("<start_of_turn>")
    assert found.encode("a") == [2, A]


def test_the_longest_control_token_is_found(load: Load) -> None:
    found = load(small_gguf([*SMALL, ("<c>", 0.0, CONTROL), ("<c>>", 0.0, CONTROL), ("!", 0.0, CONTROL)]))
    assert found.encode("a<c>>a<c>!<c", add_bos=False, parse_special=True)[:5] == [A, 270, A, 269, 271]


# ---- the ends of an answer; what llama.cpp makes of each file was tried with llama-cpp-python 0.3.36 -----------------

TURNS = ("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<EOT>")
TURNS += ("<|end_of_text|>", "<end_of_utterance>", "<|return|>", "<|call|>", "<|fim_pad|>", "<PAD>", "<|file_sep|>")
BARE = ("[EOT]", "[EOS]", "[PAD]", "[e~[", "_<EOT>")
NEW = len(SMALL)
TYPES = {"NORMAL": NORMAL, "CONTROL": CONTROL, "USER_DEFINED": USER_DEFINED, "UNUSED": UNUSED}


def with_token(text: str, kind: int, **ids: int) -> Builder:
    """SMALL and one more token, NEW; `ids`: of the metadata, such as eot=NEW. END is another than <end_of_turn>."""
    builder = small_gguf([*SMALL[:END], ("<start>", 0.0, CONTROL), *SMALL[END + 1 :], (text, 0.0, kind)])
    for role, i in ids.items():
        builder.set(f"{K}{role}_token_id", u32(i))
    return builder


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("text", TURNS)
def test_ends_of_turns_end_an_answer_whatever_their_type(load: Load, text: str, kind: str) -> None:
    found = load(with_token(text, TYPES[kind]))
    assert found.eog_ids == {1, NEW}
    assert found.is_control(NEW) and NEW not in found.encode(f"a{text}b")
    assert found.encode(text, add_bos=False, parse_special=True) == [NEW]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("text", BARE)
def test_texts_without_angle_brackets_are_ends_unless_they_are_ordinary(load: Load, text: str, kind: str) -> None:
    found = load(with_token(text, TYPES[kind]))
    assert found.eog_ids == ({1} if kind == "NORMAL" else {1, NEW})
    assert found.is_control(NEW) == (kind != "NORMAL")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("text", ["<|im_start|>", "<unused1>", "<start_of_turn>", "the end", "<s>", "end_of_turn"])
def test_other_texts_are_no_ends(load: Load, text: str, kind: str) -> None:
    assert load(with_token(text, TYPES[kind])).eog_ids == {1}


def test_the_end_of_strikethrough_ends_an_answer_where_the_file_says_so(load: Load) -> None:
    assert load(with_token("</s>", USER_DEFINED)).eog_ids == {1}
    assert load(with_token("</s>", CONTROL)).eog_ids == {1, NEW}
    assert load(with_token("</s>", USER_DEFINED, eos=NEW)).eog_ids == {1, NEW}
    assert load(with_token("</s>", NORMAL, eot=NEW)).eog_ids == {1, NEW}


@pytest.mark.parametrize(
    ("end", "others"),
    [
        ("<|end|>", ("<|return|>", "<|call|>")),
        ("<|end|>", ("<|calls|>", "<|flush|>")),
        ("</s>", ("<|tool_response>",)),
    ],
)
def test_ends_of_parts_of_an_answer(load: Load, end: str, others: tuple[str, ...]) -> None:
    entries = [*SMALL, (end, 0.0, CONTROL), *((text, 0.0, CONTROL) for text in others)]
    assert load(small_gguf(entries)).eog_ids == {1, END, *range(NEW + 1, NEW + 1 + len(others))}
    assert load(small_gguf(entries[:-1])).eog_ids == {1, END, *range(NEW, NEW + len(others))}


@pytest.mark.parametrize("role", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
@pytest.mark.parametrize("kind", ["CONTROL", "USER_DEFINED", "UNUSED"])
def test_the_metadata_names_an_end(load: Load, role: str, kind: str) -> None:
    found = load(with_token("### End", TYPES[kind], **{role: NEW}))
    assert found.eog_ids == {1, NEW}  # token 1 reads <eos>
    assert found.is_control(NEW) and NEW not in found.encode("### End")


@pytest.mark.parametrize("values", [array(I32, [1, NEW]), array(U32, [NEW]), array(U64, [NEW]), u32(NEW)])
def test_the_metadata_lists_ends(load: Load, values: bytes) -> None:
    assert load(with_token("<|done|>", NORMAL).set(f"{K}eos_token_ids", values)).eog_ids == {1, NEW}


IGNORED: dict[str, tuple[str, bytes, str]] = {
    "padding outside": ("padding_token_id", u32(NEW + 1), "270 is outside 0..269"),
    "padding 2^32-1": ("padding_token_id", u32(2**32 - 1), "4294967295 is outside"),
    "padding -1": ("padding_token_id", typed(I32, -1), "-1 is outside"),
    "padding a letter": ("padding_token_id", u32(A), "token 261 .'a'. is ordinary text"),
    "padding a text": ("padding_token_id", typed(STRING, "<pad>"), "no token id"),
    "padding a flag": ("padding_token_id", typed(BOOL, 1), "no token id"),
    "unknown outside": ("unknown_token_id", u32(NEW + 1), "outside"),
    "unknown a letter": ("unknown_token_id", u32(A), "ordinary text"),
    **{
        f"{role} {what}": (f"{role}_token_id", u32(i), reason)
        for role in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
        for what, i, reason in (("outside", 10**6, "outside"), ("a letter", A, "ordinary"), ("a byte", 4, "ordinary"))
    },
    "ends outside": ("eos_token_ids", array(I32, [1, 10**6, -1]), "1000000 is outside 0..269; -1 is outside"),
    "ends letters": ("eos_token_ids", array(I32, [1, A]), "token 261 .'a'. is ordinary text"),
    "ends floats": ("eos_token_ids", array(F32, [1.0]), "no token id"),
    "ends a text": ("eos_token_ids", typed(STRING, "<eos>"), "no token id"),
    "ends texts": ("eos_token_ids", array(STRING, ["<eos>"]), "no token id"),
}


@pytest.mark.parametrize("name", IGNORED)
def test_ids_that_cannot_be_meant_are_ignored_with_a_warning(load: Load, name: str) -> None:
    key, value, reason = IGNORED[name]
    with pytest.warns(UserWarning, match=f"{key} is ignored where it cannot be meant: .*{reason}") as caught:
        found = load(with_token("<|im_end|>", CONTROL).set(K + key, value))
    assert len(caught) == 1
    assert found.eog_ids == {1, NEW}
    assert found.encode("a", add_bos=False) == [A] and not found.is_control(A)


@pytest.mark.parametrize("role", ["mask", "cls", "seperator", "prefix", "suffix", "middle", "fim_pre", "image"])
def test_ids_that_nobody_reads(load: Load, role: str) -> None:
    for value in (u32(2**32 - 1), u32(A), typed(STRING, "x"), array(STRING, [])):
        assert load(small_gguf().set(f"{K}{role}_token_id", value)).eog_ids == {1, END}


def test_entries_behind_the_last_token_are_ignored(load: Load) -> None:
    builder = small_gguf().set(Y, array(I32, [*(kind for _, _, kind in SMALL), 1, 99]))
    with pytest.warns(UserWarning, match="token_type: 2 entries behind the last token are ignored"):
        assert load(builder).encode("ab", add_bos=False) == [AB]
    builder = small_gguf().set(S, array(F32, [*(score for _, score, _ in SMALL), math.nan]))
    with pytest.warns(UserWarning, match="scores: 1 entries behind the last token are ignored"):
        assert load(builder).encode("ab", add_bos=False) == [AB]


def test_add_bos_of_the_file(load: Load) -> None:
    builder = small_gguf().set("tokenizer.ggml.add_bos_token", typed(BOOL, 0))
    assert load(builder).encode("a", add_bos=None) == [2, A]  # a Gemma, none of which makes sense without
    found = load(builder.set("general.architecture", typed(STRING, "llama")))
    assert found.encode("a", add_bos=None) == [A]
    assert found.encode("a") == [2, A]


@pytest.mark.parametrize(("architecture", "expected"), [("llama", True), ("gemma3", False), ("gemma-embedding", False)])
def test_a_file_that_says_nothing_of_a_space_in_front(load: Load, architecture: str, expected: bool) -> None:
    """All vocabularies of sentencepiece have one but Gemma's."""
    builder = small_gguf().set("tokenizer.ggml.add_space_prefix", None)
    assert load(builder.set("general.architecture", typed(STRING, architecture))).add_space_prefix == expected


@pytest.mark.parametrize("text", ["a", " a", "  a", "", " ", "b a", "\u2581", "<bos>a"])
def test_a_space_in_front(load: Load, text: str) -> None:
    found = load(small_gguf().set("tokenizer.ggml.add_space_prefix", typed(BOOL, 1)))
    assert found.encode("a", add_bos=False) == [SPACE_A]
    assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<bos>a", [2, SPACE_A]),
        ("<end_of_turn>a", [2, END, SPACE_A]),
        ("<bos><end_of_turn> a", [2, END, SPACE, SPACE_A]),
        ("a<end_of_turn>a", [2, SPACE_A, END, SPACE_A]),
        ("<bos>", [2]),
        (" <end_of_turn>a", [2, SPACE, SPACE, END, SPACE_A]),
        ("a  ab", [2, SPACE_A, TWO_SPACES, SPACE_A, B]),
        ("  a", [2, TWO_SPACES, SPACE_A]),
        ("<b>", [2, TAG]),
    ],
)
def test_the_space_in_front_is_in_front_of_text(load: Load, text: str, ids: list[int]) -> None:
    """Of each text that control or added tokens cut off, as in llama.cpp (tried with llama-cpp-python 0.3.36)."""
    found = load(small_gguf().set("tokenizer.ggml.add_space_prefix", typed(BOOL, 1)))
    assert found.encode(text, parse_special=True) == ids
    assert found.decode(found.encode(text, add_bos=False, parse_special=True), special=True) == text


def test_u32_types_are_fine(load: Load) -> None:
    builder = small_gguf().set("tokenizer.ggml.token_type", array(U32, [kind for _, _, kind in SMALL]))
    assert load(builder).encode("ab", add_bos=False) == [AB]


def test_the_model_bytes_hold_every_piece() -> None:
    """Texts of one to two length bytes, through sentencepiece's own parser."""
    lengths = [1, 113, 114, 115, 127, 128, 129, 4096, 7999]  # sentencepiece takes no more
    pieces = [bytes([i]) + b"x" * (n - 1) for i, n in zip(b"abcdefghi", lengths, strict=True)] + [b"<unk>"]
    scores = np.linspace(-3, 1, len(pieces), dtype=np.float32)
    types = np.array([NORMAL] * len(lengths) + [UNKNOWN], dtype=np.uint8)
    text = np.frombuffer(b"".join(pieces), np.uint8)
    model = bpe_model(text, np.array([len(p) for p in pieces]), scores, types)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.replace(b"\x98\x02\x01", b"\x98\x02\x00"))  # no byte pieces here
    assert [processor.id_to_piece(i).encode() for i in range(len(pieces))] == pieces
    assert [np.float32(processor.get_score(i)) for i in range(len(pieces))] == scores.tolist()
    assert processor.unk_id() == len(pieces) - 1


def test_a_piece_too_long_for_its_length_bytes() -> None:
    with pytest.raises(ValueError, match=f"the limit is {MAX_PIECE_BYTES}"):
        bpe_model(np.zeros(2**14, np.uint8), np.array([2**14]), np.zeros(1, np.float32), np.ones(1, np.uint8))
