"""Files of saved sequences that are refused: of other models, cut, changed, made to deceive. It is said why."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma import ContextOverflowError, Gemma, SessionError
from edge_gemma.engine import session_file, session_header, sessions
from edge_gemma.engine.session_file import DIGEST_BYTES, FORMAT, MAGIC, START
from edge_gemma.engine.session_header import MAX_HEADER, Header
from edge_gemma.kernels.layout import SPAN
from tests.conftest import TinyGguf
from tests.engine.saving import CONTEXT, LONG, SHORT, content_of, read, write
from tests.gguf_builder import STRING, runnable_gemma, typed

POSIX = os.name == "posix"


def refusal(model: Gemma, file: Path, kind: type[Exception] = SessionError) -> str:
    """Why it is not loaded. No page is kept of it."""
    before = model.stats().page_bytes
    with pytest.raises(kind) as caught:
        model.load_sequence(file)
    assert type(caught.value) is kind and str(file) in str(caught.value)
    assert model.stats().page_bytes == before
    return str(caught.value)


def test_other_weights(saved: Path, tiny_gguf: TinyGguf, path: Path, tmp_path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    (tmp_path / "tuned.gguf").write_bytes(raw)
    for other in (tiny_gguf("gemma2-27b", "F32"), tiny_gguf("gemma3-4b"), tmp_path / "tuned.gguf"):
        with Gemma(other, CONTEXT, threads=1) as model:
            assert "saved with other weights; open that model" in refusal(model, saved)


def test_another_template(tmp_path: Path) -> None:
    builder = runnable_gemma()
    for name, template in (("none", None), ("one", typed(STRING, "a")), ("two", typed(STRING, "b"))):
        (tmp_path / name).write_bytes(builder.set("tokenizer.chat_template", template).build())
    with Gemma(tmp_path / "one", threads=1) as model:
        read(model, SHORT).save(tmp_path / "saved")
        assert len(model.load_sequence(tmp_path / "saved")) == SHORT
    for name in ("none", "two"):
        with Gemma(tmp_path / name, threads=1) as model:
            assert "another chat template" in refusal(model, tmp_path / "saved")


def test_another_kv_type(saved: Path, path: Path) -> None:
    with Gemma(path, CONTEXT, threads=1, kv_type="f32") as model:
        assert "'f16' in it, and 'f32' here; open the model with that kv_type" in refusal(model, saved)


def test_a_context_that_is_too_small(saved: Path, path: Path) -> None:
    with Gemma(path, SHORT - 1, threads=1) as model:
        text = refusal(model, saved, ContextOverflowError)
        assert f"{SHORT} tokens do not fit the context of {SHORT - 1}" in text
    with Gemma(path, SHORT, threads=1) as model:
        assert len(model.load_sequence(saved)) == SHORT


def test_other_versions(saved: Path, model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    header, content = content_of(saved)
    write(saved, header, content, version=FORMAT + 1)
    assert f"format {FORMAT + 1}" in refusal(model, saved)
    write(saved, header, content)
    monkeypatch.setattr(session_header, "__version__", "9.9")
    assert "this is 9.9, which may compute other bits; have the text read again" in refusal(model, saved)


@pytest.mark.parametrize("content", [b"", b"GGUF" * 100, MAGIC[:-1], b"x" * 10_000])
def test_no_session_at_all(model: Gemma, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert "no saved sequence" in refusal(model, tmp_path / "x")


@pytest.mark.skipif(not POSIX, reason="pipes with names are POSIX's")
def test_what_is_no_file(model: Gemma, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for there in (tmp_path, tmp_path / "pipe"):
        assert "not a regular file" in refusal(model, there)
    refusal(model, tmp_path / "none", FileNotFoundError)
    with pytest.raises(TypeError, match="path: expected a str"):
        model.load_sequence(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null character"):
        model.load_sequence("a\0b")


@pytest.fixture(scope="module")
def sound(model: Gemma, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The bytes of a file, and where to put broken ones."""
    folder = tmp_path_factory.mktemp("broken")
    with read(model, SHORT) as sequence:
        sequence.save(folder / "sound")
    return (folder / "sound").read_bytes(), folder / "broken"


def test_cut_anywhere_or_with_something_behind(model: Gemma, sound: tuple[bytes, Path]) -> None:
    raw, file = sound
    header = START.size + START.unpack_from(raw)[2]
    near = {at + step for at in (0, len(MAGIC), START.size, header, header + 4 * SHORT) for step in (-1, 0, 1)}
    for length in sorted({*near, *range(0, len(raw), 97), len(raw) - DIGEST_BYTES, len(raw) - 1} - {-1}):
        file.write_bytes(raw[:length])
        expected = "cut off" if length >= len(MAGIC) else "no saved sequence"
        assert expected in refusal(model, file), length
    file.write_bytes(raw + b"x")
    assert "1 bytes follow its end" in refusal(model, file)


PLACES = st.integers(0, 2**20) | st.integers(0, 500)
"""Bytes of a file, counted round and round; more of them in its header."""


@settings(max_examples=200)
@given(
    changes=st.lists(
        st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=4, unique_by=lambda change: change[0]
    ),
    end=st.none() | PLACES,
)
def test_changed_bytes(
    model: Gemma, sound: tuple[bytes, Path], changes: list[tuple[int, int]], end: int | None
) -> None:
    raw, file = sound
    changed = bytearray(raw)
    for at, change in changes:
        changed[at % len(raw)] ^= change
    if end is not None:
        del changed[end % len(raw) :]
    if changed == raw:
        return
    file.write_bytes(changed)
    before = model.stats().page_bytes
    with pytest.raises((SessionError, ContextOverflowError), match="broken: "):
        model.load_sequence(file)
    assert model.stats().page_bytes == before


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**33), st.floats(), st.text(max_size=3), st.just(10**5000),
    st.lists(st.integers(-SPAN, 4 * SPAN) | st.sampled_from([SPAN, 2 * SPAN]), max_size=6), st.just([[[]]]),
    st.just({}),
)  # fmt: skip


FIELDS = st.sampled_from([field.name for field in fields(Header)])
COUNTS = st.none() | st.integers(0, CONTEXT + 2)


@settings(max_examples=200)
@given(replaced=st.dictionaries(FIELDS, VALUES, max_size=2), tokens=COUNTS, positions=COUNTS, size=st.integers(0, 2))
def test_headers_made_to_deceive(
    model: Gemma,
    sound: tuple[bytes, Path],
    replaced: dict[str, object],
    tokens: int | None,
    positions: int | None,
    size: int,
) -> None:
    """Their digests are right. What is accepted is a sequence that goes on."""
    raw, file = sound
    file.write_bytes(raw)
    header, content = content_of(file)
    header |= replaced
    header |= {} if tokens is None else {"tokens": tokens}
    header |= {} if positions is None else {"positions": positions}
    sys.set_int_max_str_digits(0)
    try:
        write(file, header, [b"", content[: 4 * SHORT], content][size])
    finally:
        sys.set_int_max_str_digits(4300)
    try:
        loaded = model.load_sequence(file)
    except (SessionError, ContextOverflowError) as error:
        assert str(error).startswith(f"{file}: ") and len(str(error)) < 600
    else:
        loaded.append([1])
        loaded.close()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"[" * MAX_HEADER, "nested too deeply"),
        (b'{"a":' * 5000, "nested too deeply"),
        (b"{}", "other fields"),
        (b"[]", "other fields"),
        (b"\xff\xfe{\0}\0", "ascii"),
        (b'{"tokens": 1, "tokens": 1}', "field twice"),
        (b'{"tokens": NaN}', "NaN for a number"),
        (b'{"tokens": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"tokens": 1', "delimiter"),
        (b" " * (MAX_HEADER + 1), "a header of 65537 bytes"),
    ],
)
def test_headers_that_are_none(model: Gemma, tmp_path: Path, header: bytes, reason: str) -> None:
    write(tmp_path / "x", header, b"")
    assert reason in refusal(model, tmp_path / "x")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("positions", SHORT + 1, f"keys and values of {SHORT + 1} positions, and {SHORT} tokens"),
        ("first_positions", [0] * 4, "4 layers, and the model has 5"),
        ("first_positions", [SPAN, 0, 0, 0, 0], "layer 0 has positions from 256 on, of 21"),
        ("first_positions", [1, 0, 0, 0, 0], "layer 0 has positions from 1 on, of 21"),
        ("first_positions", [0, 0, 0, 0, -1], "first_positions is"),
        ("tokens", True, "tokens is True"),
        ("tokens", 1.0, "tokens is 1.0"),
        ("tokens", SHORT - 1, "keys and values of"),
        ("positions", SHORT - 1, "bytes follow its end"),
        ("tokens", SHORT + 1, "is cut off, 4 bytes are missing"),
    ],
)
def test_numbers_that_do_not_fit(saved: Path, model: Gemma, field: str, value: object, reason: str) -> None:
    header, content = content_of(saved)
    write(saved, header | {field: value}, content)
    assert reason in refusal(model, saved)


def test_positions_of_a_layer_begin_with_a_page(model: Gemma, tmp_path: Path) -> None:
    read(model, LONG).save(tmp_path / "saved")
    header, content = content_of(tmp_path / "saved")
    for first in (2 * SPAN - 1, 3 * SPAN):
        write(tmp_path / "saved", header | {"first_positions": [first, *header["first_positions"][1:]]}, content)
        assert f"layer 0 has positions from {first} on, of {LONG}" in refusal(model, tmp_path / "saved")


@pytest.mark.parametrize("at", [-1, -DIGEST_BYTES, -DIGEST_BYTES - 1])
def test_a_bit_of_the_content(saved: Path, model: Gemma, at: int) -> None:
    raw = bytearray(saved.read_bytes())
    raw[at] ^= 1
    saved.write_bytes(raw)
    assert "damaged: its checksum does not fit its content" in refusal(model, saved)


def test_a_token_that_the_model_has_not(saved: Path, model: Gemma) -> None:
    header, content = content_of(saved)
    vocab = model.config.vocab_size
    write(saved, header, struct.pack("<I", vocab - 1) + content[4:])
    assert model.load_sequence(saved).token_ids[0] == vocab - 1
    write(saved, header, struct.pack("<I", vocab) + content[4:])
    assert f"token id {vocab} is outside 0..{vocab - 1}" in refusal(model, saved)


def test_it_gets_shorter_while_it_is_read(saved: Path, model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sessions.Sessions._read_tokens

    def cut(self: sessions.Sessions, source: session_file.Source, count: int) -> list[int]:
        os.truncate(saved, 1000)
        return tokens(self, source, count)

    monkeypatch.setattr(sessions.Sessions, "_read_tokens", cut)
    assert "became shorter" in refusal(model, saved)
