"""Gemma 4's vocabulary: merges in place of scores, two dialects, twins; every rule of merges by a breach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma import ModelFormatError
from edge_gemma.gguf.file import GgufFile
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
    USER_DEFINED,
    Builder,
    Entries,
    array,
    runnable_gemma,
    typed,
    u32,
)

K = "tokenizer.ggml."
MERGES = f"{K}merges"
SPACE, A, B, AB, SPACE_A, END = range(260, 266)
NEW = len(SMALL_VOCABULARY)
PAIRS = ["a b", "\u2581 a"]
Load = Callable[[Builder], Tokenizer]


def gemma4(pairs: list[str] | list[bytes], *more: tuple[str | bytes, int]) -> Builder:
    """SMALL_VOCABULARY, with scores that say the contrary of the merges, and `more` tokens with their types."""
    entries: Entries = [(text, -float(i % 7), kind) for i, (text, _, kind) in enumerate(SMALL_VOCABULARY)]
    builder = runnable_gemma("gemma2", [*entries, *((text, -1000.0, kind) for text, kind in more)])
    return builder.set(f"{K}model", typed(STRING, "gemma4")).set(MERGES, array(STRING, pairs))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def tokenizer_of(builder: Builder) -> Tokenizer:
        path = tmp_path / "small.gguf"
        path.write_bytes(builder.build())
        with GgufFile.open(path) as file:
            return Tokenizer.from_gguf(file)

    return tokenizer_of


def test_the_earliest_merge_comes_first(load: Load) -> None:
    assert load(gemma4(["a b", "\u2581 a"])).encode(" ab", add_bos=False) == [SPACE, AB]
    assert load(gemma4(["\u2581 a", "a b"])).encode(" ab", add_bos=False) == [SPACE_A, B]


def test_of_several_merges_that_make_a_piece_the_first_counts(load: Load) -> None:
    more = (("ba", NORMAL), ("aba", NORMAL))
    assert load(gemma4(["a ba", "a b", "b a", "ab a"], *more)).encode("aba", add_bos=False) == [NEW + 1]
    assert load(gemma4(["b a", "a b", "a ba", "ab a"], *more)).encode("bab", add_bos=False) == [NEW, B]
    more = (("aa", NORMAL), ("aab", NORMAL), ("bc", NORMAL), ("c", NORMAL))
    pairs = ["a a", "aa b", "b c", "a b", "a ab"]
    assert load(gemma4(pairs, *more)).encode("aabc", add_bos=False) == [NEW + 1, NEW + 3]


def test_what_no_merge_makes_is_no_part_of_text(load: Load) -> None:
    """<table and > are there, and <table> too: it must not come of them, though nothing else could."""
    more = [(text, NORMAL) for text in ("<", "t", "<t", ">", "<t>", ">>")]
    found = load(gemma4(["< t", "> >"], *more))
    assert found.encode("<t>", add_bos=False) == [NEW + 2, NEW + 3]
    assert found.encode("<t>>", add_bos=False) == [NEW + 2, NEW + 5]
    assert found.decode([NEW + 4]) == "<t>"


def test_scores_may_be_absent(load: Load) -> None:
    assert load(gemma4(PAIRS).set(f"{K}scores", None)).encode("ab", add_bos=False) == [AB]


@pytest.mark.parametrize("key", [None, 0, 1])
def test_bos_is_forced(load: Load, key: int | None) -> None:
    """Early files say no, and the model writes nonsense then."""
    builder = gemma4(PAIRS).set(f"{K}add_bos_token", None if key is None else typed(BOOL, key))
    assert load(builder).encode("ab", add_bos=None) == [2, AB]


@pytest.mark.parametrize("key", [None, 0, 1])
def test_there_is_no_space_in_front(load: Load, key: int | None) -> None:
    builder = gemma4(PAIRS).set(f"{K}add_space_prefix", None if key is None else typed(BOOL, key))
    found = load(builder.set("general.architecture", typed(STRING, "llama")))
    assert found.encode("a", add_bos=False) == [A]
    assert found.decode([SPACE_A]) == " a"


def test_ollamas_dialect(load: Load) -> None:
    """It has ids for scores."""
    builder = (
        gemma4(["a b", "\u2581 a"]).set(f"{K}model", typed(STRING, "llama")).set(f"{K}pre", typed(STRING, "gemma4"))
    )
    found = load(builder.set(f"{K}scores", array(F32, [*map(float, range(NEW))])).set(f"{K}add_space_prefix", None))
    assert found.encode(" ab", add_bos=None) == [2, SPACE, AB]


def test_ends(load: Load) -> None:
    """The metadata names <turn|> in some files; </s> is a tag of HTML."""
    more = (("<turn|>", CONTROL), ("<|tool_response>", USER_DEFINED), ("</s>", NORMAL))
    builder = gemma4(PAIRS, *more).set(f"{K}eos_token_id", u32(NEW))
    assert load(builder).eog_ids == {1, END, NEW, NEW + 1}


def test_early_files_type_eos_as_ordinary(load: Load) -> None:
    types = [NORMAL if text == "<eos>" else kind for text, _, kind in SMALL_VOCABULARY]
    found = load(gemma4(PAIRS).set(f"{K}token_type", array(I32, types)))
    assert found.is_control(1) and 1 in found.eog_ids
    assert 1 not in found.encode("<eos>")


def test_of_twins_the_first_is_meant_and_all_have_their_text(load: Load) -> None:
    """Google's own files of Gemma 4 have three."""
    more = (("ab", NORMAL), ("b", NORMAL), ("<end_of_turn>", CONTROL), ("<0x41>", BYTE), ("\u2581\u2581", NORMAL))
    found = load(gemma4(PAIRS, *more))
    assert found.encode("ab", add_bos=False) == [AB]
    assert found.encode("b<end_of_turn>", add_bos=False, parse_special=True) == [B, END]
    assert found.encode("A", add_bos=False) == [4 + 0x41]
    assert found.decode([NEW, NEW + 1, NEW + 2, NEW + 3]) == "abbA"
    assert found.decode(found.encode("<twin 269 of 263>")) == "<twin 269 of 263>"


BROKEN: dict[str, tuple[Builder, str]] = {
    "no merges": (gemma4([]).set(MERGES, None), "missing"),
    "merges are numbers": (gemma4([]).set(MERGES, array(I32, [1])), "is ARRAY.INT32., expected ARRAY.STRING."),
    "a merge is a text": (gemma4([]).set(MERGES, typed(STRING, "a b")), "is STRING"),
    "one token": (gemma4(["a b", "ab"]), "entry 1, 'ab', is not two tokens with a space between them"),
    "three tokens": (gemma4(["a b a"]), "entry 0, 'a b a', is not two"),
    "nothing": (gemma4(["a b", ""]), "entry 1, '', is not two"),
    "a space alone": (gemma4([" ", "a b"]), "entry 0, ' ', is not two"),
    "nothing on the left": (gemma4([" b"]), "entry 0, ' b', is not two"),
    "nothing on the right": (gemma4(["a b", "a "]), "entry 1, 'a ', is not two"),
    "an unknown left": (gemma4(["a b", "c a"]), "entry 1, 'c a': the first is no token of the vocabulary"),
    "an unknown right": (gemma4(["a c"]), "entry 0, 'a c': the second is no token"),
    "an unknown whole": (gemma4(["a b", "b a"]), "entry 1, 'b a': what they make is no token"),
    "no UTF-8": (gemma4([b"a \xff"]), "entry 0, 'a \ufffd': the second is no token"),
    "more than there can be": (
        gemma4(["a b"] * 3000),
        r"3000 entries, but .* made in \d+ ways at most",
    ),
    "a long one": (gemma4(["a " + "b" * 4096]), "4098 bytes, the limit is 4096"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_merges(load: Load, name: str) -> None:
    builder, message = BROKEN[name]
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(builder)
    assert caught.value.field is not None and caught.value.field.startswith(MERGES)
    assert caught.value.path is not None
    assert (caught.value.offset is None) == (name == "no merges")


def test_ollamas_dialect_has_merges(load: Load) -> None:
    builder = runnable_gemma("gemma2").set(f"{K}pre", typed(STRING, "gemma4"))
    with pytest.raises(ModelFormatError, match="required key is missing") as caught:
        load(builder)
    assert caught.value.field == MERGES
