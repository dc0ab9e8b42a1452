"""A small file with anything done to it opens, or is refused with ModelFormatError."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from tests.gguf.small_files import nested
from tests.gguf_builder import BOOL, F32, I32, STRING, U8, Builder, TensorRecord, array, f32, tiny_gemma, typed, u32


def survive(path: Path, content: bytes) -> None:
    """Open `content` and read every value: success or ModelFormatError, nothing else."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with GgufFile.open(path) as file:
                for key in file.metadata:
                    value = file.metadata[key]
                    if not isinstance(value, str) and hasattr(value, "__iter__"):
                        list(value)
                for tensor in file.tensors.values():
                    file.data(tensor)
    except ModelFormatError as error:
        assert error.field
        assert error.offset is not None and error.offset >= 0
        assert error.offset <= len(content) or "the file is cut off" in str(error)


RICH = Builder(
    keys=[
        ("general.alignment", u32(32)),
        ("t.text", typed(STRING, "grüße")),
        ("t.flag", typed(BOOL, 1)),
        ("t.real", f32(0.5)),
        ("t.strings", array(STRING, ["a", "", "bcd"])),
        ("t.ints", array(I32, [1, -2, 3])),
        ("t.flags", array(BOOL, [0, 1])),
        ("t.floats", array(F32, [0.0, 1.5])),
        ("t.nested", nested(array(STRING, ["a"]), nested(array(U8, [1, 2])))),
    ],
    tensors=[TensorRecord("norm", (32,)), TensorRecord("matrix", (32, 4), 8), TensorRecord("more", (64, 2), 2)],
)


def test_every_prefix_of_the_header(tmp_path: Path) -> None:
    whole, path = RICH.build(), tmp_path / "model.gguf"
    for length in range(len(RICH.header())):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            GgufFile.open(path)


def test_every_byte_of_the_header_at_its_extremes(tmp_path: Path) -> None:
    whole, path = RICH.build(), tmp_path / "model.gguf"
    for position in range(len(RICH.header())):
        for value in (0, 0x7F, 0xFF, whole[position] ^ 1):
            survive(path, whole[:position] + bytes([value]) + whole[position + 1 :])


INTERESTING = [0, 1, 2, 7, 8, 31, 32, 255, 256, 4096, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 32]
Mutation = Callable[[bytearray], None]


@st.composite
def mutation(draw: st.DrawFn) -> Mutation:
    """One edit: a byte, an aligned-looking integer, a removed or repeated stretch, or the end cut off."""
    position = draw(st.integers(0, len(RICH.header())))
    kind = draw(st.sampled_from(["byte", "u32", "u64", "remove", "repeat", "cut"]))
    size = draw(st.integers(1, 24))
    number = draw(st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1)))

    def apply(content: bytearray) -> None:
        if kind == "cut":
            del content[position:]
        elif kind == "remove":
            del content[position : position + size]
        elif kind == "repeat":
            content[position:position] = content[position : position + size]
        else:
            width = {"byte": 1, "u32": 4, "u64": 8}[kind]
            content[position : position + width] = (number % 256**width).to_bytes(width, "little")

    return apply


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(mutation(), min_size=1, max_size=4))
def test_fuzz(tmp_path: Path, mutations: list[Mutation]) -> None:
    content = bytearray(RICH.build())
    for apply in mutations:
        apply(content)
    survive(tmp_path / "fuzz.gguf", bytes(content))


def test_tiny_model_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gemma().build())
    with GgufFile.open(path, strict=True) as file:
        assert len(file.tensors) == 2 + 4 * 11
