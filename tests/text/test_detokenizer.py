"""The stream of text: whole characters only, and together the same as decoding at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.tokenizer import Tokenizer
from tests.gguf_builder import BOOL, typed
from tests.text.small_vocabulary import small_gguf

FIRST_BYTE = 238  # the id of <0x00> in Gemma 3
BYTES = st.integers(FIRST_BYTE, FIRST_BYTE + 255)
UTF8_BYTES = st.sampled_from([FIRST_BYTE + b for b in "é漢😀".encode() + b"\xff\xc0\xed\xa0"])
CONTROLS = st.sampled_from([0, 1, 2, 3, 105, 106, 255999])
TEXTS = [2, 4 + 0x20, 4 + 0x61, *range(260, 269)]  # of the small vocabulary: whole characters, and control tokens
IDS = st.lists(st.one_of(BYTES, UTF8_BYTES, CONTROLS, st.integers(0, 262143)), max_size=30)


@pytest.fixture(scope="module")
def real(real_model: Path) -> Tokenizer:
    with GgufFile.open(real_model) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary whose texts begin with a space of their own."""
    path = tmp_path_factory.mktemp("prefixed") / "small.gguf"
    path.write_bytes(small_gguf().set("tokenizer.ggml.add_space_prefix", typed(BOOL, 1)).build())
    with GgufFile.open(path) as file:
        return Tokenizer.from_gguf(file)


def stream(tokenizer: Tokenizer, ids: list[int], special: bool = False) -> str:
    detokenizer = Detokenizer(tokenizer, special=special)
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@settings(max_examples=500, deadline=None)
@given(ids=IDS, special=st.booleans())
@example(ids=[FIRST_BYTE + 0xE2, 106, FIRST_BYTE + 0x96, FIRST_BYTE + 0x81], special=False)
@example(ids=[FIRST_BYTE + 0xE2, 106, FIRST_BYTE + 0x96, FIRST_BYTE + 0x81], special=True)
@example(ids=[FIRST_BYTE + 0xF0, FIRST_BYTE + 0x9F], special=False)
def test_the_stream_is_the_decoded_text(real: Tokenizer, ids: list[int], special: bool) -> None:
    assert stream(real, ids, special) == real.decode(ids, special=special)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 268), max_size=12))
@example(ids=[2, 260, 264])
@example(ids=[266, 261])
@example(ids=[4 + 0x20, 4 + 0x20])
def test_the_space_in_front_goes_once(prefixed: Tokenizer, ids: list[int]) -> None:
    for special in (False, True):
        assert stream(prefixed, ids, special) == prefixed.decode(ids, special=special)


@settings(max_examples=300, deadline=None)
@given(before=st.lists(st.integers(0, 268), max_size=6), ids=st.lists(st.sampled_from(TEXTS), max_size=6))
@example(before=[2, 261], ids=[260, 264])
@example(before=[2], ids=[264])
@example(before=[2, 260], ids=[264])
@example(before=[], ids=[260, 260])
def test_a_continuation_keeps_its_first_space(prefixed: Tokenizer, before: list[int], ids: list[int]) -> None:
    """Of whole characters, so that nothing of one text completes in the other. `before` may be without text."""
    for special in (False, True):
        detokenizer = Detokenizer(prefixed, special=special, after=before)
        continued = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
        whole = prefixed.decode(before + ids, special=special)
        assert prefixed.decode(before, special=special) + continued == whole


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=20))
@example(text="⿕👩‍👩‍👧‍👦\U0010ffff")
def test_no_piece_has_a_broken_character(real: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(real)
    pieces = [detokenizer.push(token) for token in real.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


def test_a_character_of_bytes_comes_with_its_last_one(real: Tokenizer) -> None:
    detokenizer = Detokenizer(real)
    assert [detokenizer.push(FIRST_BYTE + b) for b in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_what_cannot_become_a_character_is_replaced(real: Tokenizer) -> None:
    detokenizer = Detokenizer(real)
    hello, start, invalid = 9259, FIRST_BYTE + 0xF0, FIRST_BYTE + 0xFF
    assert [detokenizer.push(i) for i in (start, hello, invalid, start)] == ["", "\ufffdHello", "\ufffd", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(hello) == "Hello"


def test_control_tokens_are_shown_on_demand(real: Tokenizer) -> None:
    assert Detokenizer(real).push(106) == ""
    assert Detokenizer(real, special=True).push(106) == "<end_of_turn>"


def test_an_id_outside_the_vocabulary(real: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id 262144"):
        Detokenizer(real).push(262144)
