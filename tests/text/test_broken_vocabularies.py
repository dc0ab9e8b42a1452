"""Every rule of a vocabulary by a breach."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edge_gemma import ModelFormatError
from tests.gguf_builder import BYTE, CONTROL, F32, I32, NORMAL, STRING, U32, Builder, array, f32, typed, u32
from tests.text.small_vocabulary import AB, SMALL, TWO_SPACES, A, B, K, Load, small_gguf


def replaced(at: int, token: str | bytes, score: float = 0.0, kind: int = NORMAL) -> Builder:
    return small_gguf([*SMALL[:at], (token, score, kind), *SMALL[at + 1 :]])


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


def test_entries_behind_the_last_token_are_ignored(load: Load) -> None:
    builder = small_gguf().set(Y, array(I32, [*(kind for _, _, kind in SMALL), 1, 99]))
    with pytest.warns(UserWarning, match="token_type: 2 entries behind the last token are ignored"):
        assert load(builder).encode("ab", add_bos=False) == [AB]
    builder = small_gguf().set(S, array(F32, [*(score for _, score, _ in SMALL), math.nan]))
    with pytest.warns(UserWarning, match="scores: 1 entries behind the last token are ignored"):
        assert load(builder).encode("ab", add_bos=False) == [AB]


def test_u32_types_are_fine(load: Load) -> None:
    builder = small_gguf().set("tokenizer.ggml.token_type", array(U32, [kind for _, _, kind in SMALL]))
    assert load(builder).encode("ab", add_bos=False) == [AB]
