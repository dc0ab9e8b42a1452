"""What a tokenizer makes of a file's scores, flags and tokens, on a small vocabulary."""

from __future__ import annotations

import pytest

from tests.gguf_builder import BOOL, CONTROL, I32, NORMAL, STRING, USER_DEFINED, array, typed
from tests.text.small_vocabulary import AB, END, PAD, SMALL, SPACE, SPACE_A, TAG, TWO_SPACES, A, B, Load, small_gguf


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
