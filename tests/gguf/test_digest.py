"""The digest of a model: the same for the same numbers, another for others, whatever else the file says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.errors import ModelChangedError
from edge_gemma.gguf import digest
from edge_gemma.gguf.digest import SAMPLE, SAMPLES, model_digest
from edge_gemma.gguf.file import GgufFile
from tests.conftest import TinyGguf
from tests.gguf_builder import STRING, TYPE_F16, U32, Builder, array, f32, runnable_gemma, string, typed

LARGE = "token_embd.weight"


def sha256(word: int) -> bytes:
    return array(U32, [word] * 8)


def model() -> Builder:
    builder = runnable_gemma(d_model=128)
    for i, tensor in enumerate(builder.tensors):
        size = len(tensor.payload())
        if tensor.type_id == TYPE_F16:
            tensor.data = np.random.default_rng(i).integers(0, 60, size, dtype=np.uint8).tobytes()
    return builder.set("edge_gemma.sha256", sha256(7))


def digest_of(builder: Builder, path: Path) -> str:
    path.write_bytes(builder.build())
    with GgufFile.open(path) as file:
        return model_digest(file)


def flipped(name: str, at: int) -> Callable[[Builder], object]:
    def flip(builder: Builder) -> None:
        tensor = builder.tensor(name)
        data = bytearray(tensor.payload())
        data[at] ^= 1
        tensor.data = bytes(data)

    return flip


def swap_two(builder: Builder) -> None:
    first, second = builder.tensor("blk.0.attn_norm.weight"), builder.tensor("blk.1.ffn_norm.weight")
    first.name, second.name = second.name, first.name


OTHER_MODELS: dict[str, Callable[[Builder], object]] = {
    "a norm": flipped("blk.3.attn_norm.weight", 17),
    "the first byte": flipped(LARGE, 0),
    "the last byte": flipped(LARGE, -1),
    "a sample in between": flipped(LARGE, -SAMPLE),
    "a short matrix": flipped("blk.1.attn_k.weight", 5_000),
    "names": swap_two,
    "a hyper-parameter": lambda b: b.set("gemma2.attention.layer_norm_rms_epsilon", f32(1e-5)),
    "the architecture's own text": lambda b: b.set("gemma2.text", typed(STRING, "x")),
    "what a quantizer has noted": lambda b: b.set("edge_gemma.sha256", sha256(8)),
}
SAME_MODEL: dict[str, Callable[[Builder], object]] = {
    "a name": lambda b: b.set("general.name", typed(STRING, "another")),
    "a template, and so all offsets": lambda b: b.set("tokenizer.chat_template", typed(STRING, "x" * 1000)),
    "the alignment": lambda b: (b.set("general.alignment", typed(U32, 64)), setattr(b, "alignment", 64)),
}


@pytest.mark.parametrize("change", OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_another_model(change: Callable[[Builder], object], tmp_path: Path) -> None:
    other = model()
    assert len(other.tensor(LARGE).payload()) > SAMPLE * SAMPLES >= len(other.tensor("blk.1.attn_k.weight").payload())
    change(other)
    assert digest_of(other, tmp_path / "other") != digest_of(model(), tmp_path / "one")


@pytest.mark.parametrize("change", SAME_MODEL.values(), ids=SAME_MODEL)
def test_the_same_model(change: Callable[[Builder], object], tmp_path: Path) -> None:
    other = model()
    change(other)
    assert digest_of(other, tmp_path / "other") == digest_of(model(), tmp_path / "one")


def test_two_quantizations(tiny_gguf: TinyGguf) -> None:
    seen = set()
    for format in ("Q4_0", "Q4_K", "Q8_0"):
        with GgufFile.open(tiny_gguf("gemma2-256", format)) as file:
            seen.add(model_digest(file))
    assert len(seen) == 3


def test_texts_that_are_not_utf_8(tmp_path: Path) -> None:
    made = {
        digest_of(model().set("gemma2.texts", value), tmp_path / "x")
        for value in (
            array(STRING, [b"\xff", b"a"]),
            array(STRING, [b"\xffa", b""]),
            b"\x08\0\0\0" + string(b"\xff\xfe"),
            b"\x08\0\0\0" + string(b"\xff\xfd"),
        )
    }
    assert len(made) == 4


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(model().build())
    with GgufFile.open(path) as file:
        with path.open("ab") as more:
            more.write(b"x")
        with pytest.raises(ModelChangedError, match="modified"):
            model_digest(file)


def test_samples_reach_both_ends() -> None:
    data = np.arange(SAMPLE * SAMPLES + 1, dtype=np.uint32).astype(np.uint8)
    samples = list(digest._samples(data))
    assert len(samples) == SAMPLES and all(len(s) == SAMPLE for s in samples)
    assert np.array_equal(samples[0], data[:SAMPLE]) and np.array_equal(samples[-1], data[-SAMPLE:])
