"""The contract of numbers: logits do not depend on threads, on how a prompt is cut, or on decode versus prefill.

Compared bit for bit, on models whose window is smaller than the text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_gemma import Gemma
from edge_gemma.engine.memory_plan import KvType
from tests.conftest import TinyGguf
from tests.goldens.cases import token_ids
from tests.goldens.every_case import CASES
from tests.goldens.real import DATA, windows

Ids = list[int]

CHUNKS = (512, 64, 7, 1)
TINY = [("gemma2-256", "Q4_K"), ("gemma2-256", "Q4_0"), ("gemma2-2b", "Q5_1"), ("gemma2-27b", "F16")]
TINY += [("gemma3-256", "Q6_K"), ("gemma3-270m", "Q8_0"), ("gemma3-4b", "F32"), ("gemma1-mqa", "Q4_1")]
TINY += [("gemma4-moe-256", "Q4_K"), ("gemma4-26b", "Q8_0"), ("gemma4-26b", "F16")]
TINY += [("danube-1", "Q8_0"), ("llama-biased", "F16")]  # heads of 80 dimensions; a window; biases; a SiLU gate


def bits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    return logits.view(np.uint32)


def differing(path: Path, ids: Ids, kv_type: KvType = "f16") -> list[str]:
    """The ways of running `ids` whose logits differ in any bit from those of one thread and one chunk."""
    found: list[str] = []
    expected = None
    for threads in (1, 2):
        with Gemma(path, context=512, threads=threads, kv_type=kv_type, chunk=CHUNKS[0]) as model:
            for chunk in CHUNKS:
                logits = bits(model.logits(ids, chunk=chunk))
                expected = logits if expected is None else expected
                if not np.array_equal(logits, expected):
                    found.append(f"threads={threads} chunk={chunk}")
    return found


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize(("case", "format"), TINY)
def test_logits_do_not_depend_on_threads_or_chunks(
    tiny_gguf: TinyGguf, case: str, format: str, kv_type: KvType
) -> None:
    """139 positions, many windows long; chunk 1 is decoding, chunk 512 takes the text at once."""
    assert differing(tiny_gguf(case, format), token_ids(CASES[case], 139), kv_type) == []


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


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_real_model_threads_and_chunks(real_model: Path, real_text: Ids, kv_type: KvType) -> None:
    assert differing(real_model, real_text, kv_type) == []


def test_real_model_generates_what_its_prefill_logits_say(real_model: Path, real_text: Ids) -> None:
    """Decoding step by step and one prefill of the whole text name the same best tokens, exactly."""
    prompt = real_text[:100]
    with Gemma(real_model, context=256, threads=2) as model:
        generated = model.generate(prompt, max_tokens=32, temperature=0.0).token_ids
        logits = model.logits([*prompt, *generated])
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == list(generated)
