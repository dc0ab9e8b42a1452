"""Texts that a model writes by itself: each the one it would write alone, however many are written beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_gemma import Gemma, MemoryBudgetError, ModelFormatError
from edge_gemma.engine.sampler import Sampler
from edge_gemma.measure.self_generated_text import BATCH, LENGTH, VARIED, BatchGenerator, self_generated_texts
from tests.conftest import TinyGguf


def alone(path: Path, seed: int, number: int, tokens: int) -> list[int]:
    """Text `number` of a seed: BOS and at most `tokens` tokens."""
    sampler = Sampler(replace(VARIED, seed=seed), choice=number)
    with Gemma(path, context=LENGTH) as model:
        text = [model.tokenizer.bos_id]
        while len(text) <= tokens and text[-1] not in model.tokenizer.eog_ids:
            text.append(sampler.sample(model.logits(text)[-1], None, text, len(text)))
    return text


@pytest.mark.parametrize("case", ["gemma1-mqa", "gemma2-2b", "gemma3-4b"])
def test_each_text_is_what_the_model_writes_alone(tiny_gguf: TinyGguf, case: str) -> None:
    """Longer than the windows of the tiny models."""
    path, count, steps = tiny_gguf(case), 5, 90
    with BatchGenerator(path, count, threads=2) as generator:
        texts = generator.generate(count * steps, seed=7)
    expected = [alone(path, 7, number, steps) for number in range(count)]
    assert max(map(len, expected)) > 64 and len({tuple(text) for text in expected}) == count
    assert all(text in texts for text in expected)


def test_the_real_model_writes_the_same_beside_others(real_model: Path) -> None:
    texts = self_generated_texts(real_model, 16 * 12, seed=3)
    assert len(texts) == BATCH and {len(text) for text in texts} == {13}
    assert texts[5] == alone(real_model, 3, 5, 12)
    assert len({tuple(text) for text in texts}) == BATCH


def test_texts_end_and_others_begin(tiny_gguf: TinyGguf) -> None:
    path, tokens = tiny_gguf("gemma2-2b"), 16 * (LENGTH + 40)
    seen: list[tuple[int, int]] = []
    texts = self_generated_texts(path, tokens, progress=lambda done, total: seen.append((done, total)))
    with Gemma(path) as model:
        ends, bos = model.tokenizer.eog_ids, model.tokenizer.bos_id
    assert 0 <= tokens - sum(len(text) - 1 for text in texts) <= len(texts)  # what LENGTH cuts off was never read
    assert LENGTH in map(len, texts) and len(texts) > BATCH
    assert all(text[0] == bos and 2 <= len(text) <= LENGTH for text in texts)
    assert not any(ends & set(text[:-1]) for text in texts)
    assert len({tuple(text) for text in texts}) == len(texts)
    assert seen[0] == (0, tokens) and seen[-1] == (tokens, tokens)


def test_the_same_texts_for_any_threads_and_others_for_another_seed(tiny_gguf: TinyGguf) -> None:
    path = tiny_gguf("gemma3-4b")
    assert self_generated_texts(path, 200, threads=1) == self_generated_texts(path, 200, threads=2)
    assert self_generated_texts(path, 200) != self_generated_texts(path, 200, seed=1)


def test_a_few_tokens_are_enough(tiny_gguf: TinyGguf) -> None:
    (text,) = self_generated_texts(tiny_gguf("gemma2-2b"), 1)
    assert len(text) == 2


@pytest.mark.parametrize("tokens", [0, -5])
def test_no_tokens_are_an_error(tiny_gguf: TinyGguf, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens: {tokens}"):
        self_generated_texts(tiny_gguf("gemma2-2b"), tokens)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelFormatError):
        self_generated_texts(tmp_path / "m.gguf")


def test_memory_for_all_texts_is_asked_for_first(tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 300_000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(MemoryBudgetError, match=f"a context of {LENGTH} takes"):
        self_generated_texts(tiny_gguf("gemma2-2b"))
