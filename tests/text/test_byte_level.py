"""Byte-level BPE: its merger beside a slow one, words, bytes, what comes before merging; rules by a breach."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_gemma import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text import byte_level
from edge_gemma.text.byte_level import merged
from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.pre_tokenizers import PRE_TOKENIZERS
from edge_gemma.text.tokenizer import Tokenizer
from tests.gguf_builder import BOOL, CONTROL, I32, NORMAL, STRING, UNUSED, USER_DEFINED, Builder, array, typed, u32

K = "tokenizer.ggml."
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
SPELLED = {byte: chr(byte) for byte in VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
TEXT, END, ADDED, SPACES, AB, ABC, BC, SPACE_A, PAD = range(256, 265)
TOKENS = [
    *((SPELLED[byte], NORMAL) for byte in range(256)),
    ("<|text|>", CONTROL), ("<|im_end|>", CONTROL), ("[x]", USER_DEFINED), ("  ", USER_DEFINED), ("ab", NORMAL),
    ("abc", NORMAL), ("bc", NORMAL), ("\u0120a", NORMAL), ("[PAD]", UNUSED),
]  # fmt: skip
MERGES = ["b c", "a b", "ab c", "\u0120 a"]
Load = Callable[[Builder], Tokenizer]


def bpe(pre: str | None = "gpt-2", merges: list[str] = MERGES, tokens: list[tuple[str, int]] = TOKENS) -> Builder:
    builder = Builder([("general.architecture", typed(STRING, "llama")), (f"{K}model", typed(STRING, "gpt2"))])
    builder.set(f"{K}tokens", array(STRING, [text for text, _ in tokens]))
    builder.set(f"{K}token_type", array(I32, [kind for _, kind in tokens])).set(f"{K}merges", array(STRING, merges))
    builder.set(f"{K}bos_token_id", u32(TEXT)).set(f"{K}eos_token_id", u32(END))
    return builder if pre is None else builder.set(f"{K}pre", typed(STRING, pre))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def tokenizer_of(builder: Builder) -> Tokenizer:
        path = tmp_path / "small.gguf"
        path.write_bytes(builder.build())
        with GgufFile.open(path) as file:
            return Tokenizer.from_gguf(file)

    return tokenizer_of


def slowly_merged(ids: list[int], merges: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """The definition: the earliest merge, the leftmost of equals, again and again."""
    while True:
        pairs = [(*merges[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in merges]
        if not pairs:
            return [i for i in ids if i >= 0]
        _, made, at = min(pairs)
        ids = [*ids[:at], made, *ids[at + 2 :]]


@settings(max_examples=500, deadline=None)
@given(
    ids=st.lists(st.integers(-1, 3), max_size=20),
    pairs=st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=25, unique_by=lambda pair: pair[:2]),
)
@example(ids=[0, 1, 2, 3], pairs=[(1, 2, 4), (0, 1, 9), (4, 3, 5), (0, 4, 6)])  # a merge in its place, not a lost one's
def test_merging_is_by_the_order_of_pairs_and_from_left_to_right(
    ids: list[int], pairs: list[tuple[int, int, int]]
) -> None:
    merges = {(left, right): (place, made) for place, (left, right, made) in enumerate(pairs)}
    packed = {left << 32 | right: place << 32 | made for (left, right), (place, made) in merges.items()}
    assert merged(ids, packed) == slowly_merged(ids, merges)


def test_merges_are_of_pairs(load: Load) -> None:
    found = load(bpe())
    assert found.encode("abc", add_bos=False) == [ord("a"), BC]
    assert load(bpe(merges=["a b", "b c", "ab c"])).encode("abc", add_bos=False) == [ABC]
    assert load(bpe(merges=["b c", "a bc", "a b"])).encode("abc ab", add_bos=False)[0] == ABC
    assert load(bpe(merges=["a b", "b c", "a bc"])).encode("abc", add_bos=False) == [AB, ord("c")]


def test_of_equal_merges_the_first_counts(load: Load) -> None:
    assert load(bpe(merges=["a b", "b c", "a b"])).encode("abc", add_bos=False) == [AB, ord("c")]


def test_words_are_not_merged_with_each_other(load: Load) -> None:
    tokens = [*TOKENS, ("a1", NORMAL)]
    assert load(bpe(merges=["a 1"], tokens=tokens)).encode("a1", add_bos=False) == [ord("a"), ord("1")]


def test_a_word_that_is_a_token_skips_merging_where_its_model_says_so(load: Load) -> None:
    assert load(bpe("llama-bpe")).encode("abc", add_bos=False) == [ABC]
    assert load(bpe("llama-bpe", [*MERGES[:2]])).encode("abcb", add_bos=False) == [ord("a"), BC, ord("b")]
    assert load(bpe("gpt-2")).encode("abc", add_bos=False) == [ord("a"), BC]


@pytest.mark.parametrize(("pre", "key", "expected"), [("gpt-2", None, False), ("llama-bpe", None, True)] + [
    (pre, key, key) for pre in ("gpt-2", "llama-bpe") for key in (True, False)
])  # fmt: skip
def test_bos(load: Load, pre: str, key: bool | None, expected: bool) -> None:
    builder = bpe(pre).set(f"{K}add_bos_token", None if key is None else typed(BOOL, key))
    assert load(builder).encode("a", add_bos=None) == [TEXT] * expected + [ord("a")]


def test_plain_text_never_becomes_a_control_token(load: Load) -> None:
    """Nor an unused one, even where a merge makes it or a word is one."""
    tokens = [*TOKENS, ("zz", CONTROL), ("PAD", UNUSED)]
    for pre in ("gpt-2", "llama-bpe"):
        found = load(bpe(pre, ["z z"], tokens))
        for text in ("<|text|>", "<|im_end|>", "zz", "PAD", "[PAD]"):
            ids = found.encode(text, add_bos=False)
            assert not any(map(found.is_control, ids)) and found.decode(ids) == text
        assert found.encode("a<|im_end|>zz", add_bos=False, parse_special=True) == [ord("a"), END, len(TOKENS)]


def test_added_tokens_come_before_words(load: Load) -> None:
    found = load(bpe())
    assert found.encode("a[x]b", add_bos=False) == [ord("a"), ADDED, ord("b")]
    assert found.encode("a    b", add_bos=False) == [ord("a"), SPACES, SPACES, ord("b")]
    assert found.decode([SPACES, ADDED]) == "  [x]"


def test_bytes_without_a_token_are_left_out(load: Load) -> None:
    """As in SmolLM2's vocabulary. Nothing merges across the gap."""
    tokens = [("\u01ff" if text == SPELLED[4] else text, kind) for text, kind in TOKENS]
    found = load(bpe("gpt-2", ["b c", "a b"], tokens))
    assert found.encode("\x04b\x04c\x04", add_bos=False) == [ord("b"), ord("c")]
    assert found.decode([4]) == "\u01ff"  # what is no byte is text


def test_every_single_byte_and_what_is_no_utf_8(load: Load) -> None:
    found = load(bpe())
    for byte in range(256):
        assert found.token_bytes(byte) == bytes([byte])
        assert found.decode([byte]) == bytes([byte]).decode("utf-8", "replace")
    assert found.token_text(ord(" ")) == "\u0120"
    assert found.decode([0xE2, 0x96, AB, 0xFF]) == "\ufffdab\ufffd"
    stream = Detokenizer(found)
    assert [stream.push(i) for i in "é😀".encode()] == ["", "é", "", "", "", "😀"]


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(text: str) -> None:
    assert ALL_BYTES.decode(ALL_BYTES.encode(text)) == text


@pytest.fixture(autouse=True, scope="module")
def _all_bytes(tmp_path_factory: pytest.TempPathFactory) -> None:
    global ALL_BYTES  # noqa: PLW0603
    path = tmp_path_factory.mktemp("bpe") / "all.gguf"
    path.write_bytes(bpe("llama-bpe").build())
    with GgufFile.open(path) as file:
        ALL_BYTES = Tokenizer.from_gguf(file)


ALL_BYTES: Tokenizer


def test_a_very_long_word_is_cut(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_level, "MAX_WORD", 3)
    assert load(bpe()).encode("ababab", add_bos=False) == [AB, ord("a"), ord("b"), AB]


def test_the_cache_of_words_is_bounded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_level, "MAX_CACHED", 2)
    found = load(bpe())
    for _ in range(2):
        for word in ("ab", "ba", "bc", "cb", "a" * 100):
            assert found.decode(found.encode(word)) == word
            assert len(found._segmenter._cache) <= 2  # type: ignore[attr-defined]


def test_an_unknown_way_to_cut_words(load: Load) -> None:
    message = "'tekken' is no known way to cut words; known are default, gpt-2, olmo, mpt, smollm, llama-bpe"
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(bpe("tekken"))
    assert caught.value.field == f"{K}pre" and caught.value.offset is not None


def test_no_way_to_cut_words_is_the_default_one(load: Load) -> None:
    text = "don't <a+b> 12345"
    assert load(bpe(None)).encode(text) == load(bpe("default")).encode(text)
    assert PRE_TOKENIZERS["default"].split(text) == ["don", "'", "t", " ", "<", "a", "+", "b", ">", " ", "123", "45"]


BROKEN: dict[str, tuple[Builder, str, str]] = {
    "no merges": (bpe().set(f"{K}merges", None), "merges", "missing"),
    "a merge of three": (bpe(merges=["a b c"]), "merges", "entry 0, 'a b c', is not two tokens"),
    "an unknown merge": (bpe(merges=["a b", "b a"]), "merges", "entry 1, 'b a': what they make"),
    "twins": (bpe(tokens=[*TOKENS, ("ab", NORMAL)]), f"tokens[{len(TOKENS)}]", f"same as token {AB}"),
    "pre is a number": (bpe().set(f"{K}pre", u32(1)), "pre", "is UINT32"),
    "no eos": (bpe().set(f"{K}eos_token_id", None), "eos_token_id", "missing"),
    "no types": (bpe().set(f"{K}token_type", None), "token_type", "missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_vocabulary(load: Load, name: str) -> None:
    builder, field, message = BROKEN[name]
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(builder)
    assert caught.value.field == f"{K}{field}"


WORDS = {
    "gpt-2": ["I", "'ll", " say", " 1234", "  ", " \u00bd", "!?", "\n\n", " x", " \x1c"],
    "smollm": ["I", "'ll", " say", " ", "1", "2", "3", "4", "   ", "\u00bd", "!?", "\n\n", " x", " \x1c"],
    "llama-bpe": ["I", "'ll", " say", " ", "123", "4", "  ", " ", "\u00bd", "!?\n\n", " x", " \x1c"],
}


@pytest.mark.parametrize("pre", WORDS)
def test_words(pre: str) -> None:
    assert PRE_TOKENIZERS[pre].split("".join(WORDS["gpt-2"])) == WORDS[pre]
    assert PRE_TOKENIZERS[pre].split("") == []


def test_separators_of_files_are_no_white_space() -> None:
    """Though Python's \\s has them."""
    for pre in PRE_TOKENIZERS:
        assert PRE_TOKENIZERS[pre].split("a \x1cb") == ["a", " \x1c", "b"]


def test_contractions() -> None:
    assert PRE_TOKENIZERS["llama-bpe"].split("x'LL'\u017f") == ["x", "'LL", "'\u017f"]
    assert PRE_TOKENIZERS["gpt-2"].split("x'LL") == ["x", "'", "LL"]


def test_letters_and_numbers_are_those_of_unicode_15_whatever_python_knows() -> None:
    """A letter of Unicode 15.1 is known to Python 3.13 only. Categories of a dozen characters changed since."""
    split = PRE_TOKENIZERS["llama-bpe"].split
    assert split("\U0002ebf0\U0002ebf1") == ["\U0002ebf0\U0002ebf1"] and split("\U0001e4f0!") == ["\U0001e4f0", "!"]
    known = [char for char in map(chr, (*range(0xD800), *range(0xE000, 0x110000))) if category(char) != "Cn"]
    letters, numbers = ([char for char in known if category(char)[0] == kind] for kind in "LN")
    assert len(split("".join(letters))) < 30 and len(split("".join(numbers))) < len(numbers) / 3 + 30
    others = [char for char in known if category(char)[0] not in "LNZ" and not char.isspace() and char != "'"]
    assert len(split("a".join(others))) < len(others) + 30
    assert len(split("1".join(others))) > 2 * len(others) - 30
