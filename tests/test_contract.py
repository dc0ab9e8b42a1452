"""The contract of numbers: logits do not depend on threads, on how a prompt is cut, or on decode versus prefill.

Compared bit for bit, on models whose window is smaller than the text, so that the local ring of keys wraps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_gemma import Gemma
from tests.conftest import TinyGguf
from tests.goldens.cases import CASES, token_ids
from tests.goldens.real import DATA, windows

Ids = list[int]

CHUNKS = [1, 7, 64, 512]
TINY = [("gemma2-256", "Q4_K"), ("gemma2-256", "Q4_0"), ("gemma2-2b", "Q5_1"), ("gemma2-27b", "F16")]
TINY += [("gemma3-256", "Q6_K"), ("gemma3-270m", "Q8_0"), ("gemma3-4b", "F32"), ("gemma1-mqa", "Q4_1")]


def bits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    return logits.view(np.uint32)


def run(path: Path, ids: Ids, *, threads: int, chunk: int, kv_type: str = "f16") -> npt.NDArray[np.uint32]:
    with Gemma(path, context=1024, threads=threads, kv_type=kv_type) as model:
        return bits(model.logits(ids, chunk=chunk)).copy()


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize(("case", "format"), TINY)
def test_logits_do_not_depend_on_threads_or_chunks(tiny_gguf: TinyGguf, case: str, format: str, kv_type: str) -> None:
    """139 positions, many windows long; chunk 1 is decoding, chunk 512 takes the text at once."""
    path, ids = tiny_gguf(case, format), token_ids(CASES[case], 139)
    expected = run(path, ids, threads=1, chunk=512, kv_type=kv_type)
    for threads in (1, 2):
        for chunk in CHUNKS:
            found = run(path, ids, threads=threads, chunk=chunk, kv_type=kv_type)
            assert np.array_equal(found, expected), f"threads={threads} chunk={chunk}"


@pytest.mark.parametrize(("case", "format"), TINY[:1] + TINY[4:5])
def test_a_prefix_gives_the_same_logits_as_within_a_longer_text(tiny_gguf: TinyGguf, case: str, format: str) -> None:
    ids = token_ids(CASES[case], 139)
    with Gemma(tiny_gguf(case, format), context=256, threads=2) as model:
        whole = bits(model.logits(ids)).copy()
        for n in (1, 2, 17, 64, 100):
            assert np.array_equal(bits(model.logits(ids[:n])), whole[:n]), f"the first {n} ids alone"


@pytest.fixture(scope="module")
def real_text() -> Ids:
    with np.load(DATA / "text_ids.npz") as file:
        ids: Ids = windows(file["ids"])[0, :300].tolist()
    return ids


def test_real_model_threads_and_chunks(real_model: Path, real_text: Ids) -> None:
    expected = run(real_model, real_text, threads=2, chunk=512)
    for threads, chunk in [(1, 512), (2, 64), (1, 7), (2, 1)]:
        found = run(real_model, real_text, threads=threads, chunk=chunk)
        assert np.array_equal(found, expected), f"threads={threads} chunk={chunk}"


def test_real_model_generates_what_its_prefill_logits_say(real_model: Path, real_text: Ids) -> None:
    """Decoding step by step and one prefill of the whole text name the same best tokens, exactly."""
    prompt = real_text[:100]
    with Gemma(real_model, context=256, threads=2) as model:
        generated = model.generate(prompt, max_tokens=32).token_ids
        logits = model.logits([*prompt, *generated])
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == list(generated)
