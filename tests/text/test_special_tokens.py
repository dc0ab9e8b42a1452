"""The ends of an answer; what llama.cpp makes of each file was tried with llama-cpp-python 0.3.36."""

from __future__ import annotations

import pytest

from tests.gguf_builder import (
    BOOL,
    CONTROL,
    F32,
    I32,
    NORMAL,
    STRING,
    U32,
    U64,
    UNUSED,
    USER_DEFINED,
    Builder,
    array,
    typed,
    u32,
)
from tests.text.small_vocabulary import END, SMALL, A, K, Load, small_gguf

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
