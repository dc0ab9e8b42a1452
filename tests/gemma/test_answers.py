"""What an answer of `Gemma` is, and the arguments that are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma import ContextOverflowError, Gemma, MemoryBudgetError
from edge_gemma.gemma import Completion
from tests.gemma.helpers import GREEDY, PROMPT, as_tuple, workers

# ---- what an answer is -----------------------------------------------------------------------------------------------


def test_stream_and_generate_give_the_same(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, **GREEDY)
    assert "".join(stream) == expected.text
    assert as_tuple(stream.completion) == as_tuple(expected)


def test_usage_and_timings(model: Gemma) -> None:
    made = model.generate(PROMPT, max_tokens=10, **GREEDY)
    ids = model.tokenize(PROMPT)
    assert made.finish_reason == "length" and len(made.token_ids) == 10
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(ids), 10)
    assert made.usage.total_tokens == len(ids) + 10
    timings = made.timings
    assert timings is not None and timings.prompt > 0 and timings.completion > 0
    assert timings.prompt_per_second == pytest.approx(len(ids) / timings.prompt)
    assert timings.completion_per_second == pytest.approx(9 / timings.completion)


def test_the_text_is_that_of_the_ids(model: Gemma, expected: Completion) -> None:
    assert model.detokenize(expected.token_ids) == expected.text


def test_greedy_tokens_are_the_best_of_the_logits(model: Gemma, expected: Completion) -> None:
    ids = [*model.tokenize(PROMPT), *expected.token_ids]
    best = model.logits(ids).argmax(axis=1)
    assert best[-len(expected.token_ids) - 1 : -1].tolist() == expected.token_ids


def test_a_prompt_of_ids(model: Gemma, expected: Completion) -> None:
    ids = model.tokenize(PROMPT)
    for prompt in (ids, tuple(ids), np.array(ids)):
        assert as_tuple(model.generate(prompt, max_tokens=24, **GREEDY)) == as_tuple(expected)


def test_a_stop_string_ends_the_text_before_it(model: Gemma, expected: Completion) -> None:
    stop = expected.text[5:8]
    made = model.generate(PROMPT, max_tokens=24, stop=stop, **GREEDY)
    assert made.text == expected.text[: expected.text.index(stop)] and made.finish_reason == "stop"
    again = model.generate(PROMPT, max_tokens=24, stop=["never in it", stop], **GREEDY)
    assert as_tuple(again) == as_tuple(made)


def test_an_end_of_generation_token_ends_it(model: Gemma, expected: Completion) -> None:
    last = expected.token_ids[3]
    first = expected.token_ids.index(last)
    model.tokenizer.eog_ids = frozenset({last})
    made = model.generate(PROMPT, max_tokens=24, **GREEDY)
    assert made.finish_reason == "stop"
    assert made.token_ids == expected.token_ids[: first + 1]
    assert made.text == model.detokenize(expected.token_ids[:first])


def test_a_seed_decides_and_zero_is_one(model: Gemma) -> None:
    def texts(**seed: int) -> list[str]:
        return [model.generate(PROMPT, max_tokens=16, temperature=3.0, top_k=0, **seed).text for _ in range(3)]

    zero, one, free = texts(seed=0), texts(seed=1), texts()
    assert len(set(zero)) == len(set(one)) == 1 and zero != one
    assert len(set(free)) == 3


def test_one_token(model: Gemma, expected: Completion) -> None:
    made = model.generate(PROMPT, max_tokens=1, **GREEDY)
    assert (made.token_ids, made.finish_reason) == (expected.token_ids[:1], "length")
    assert made.timings is not None and made.timings.completion_per_second == 0


def test_the_context_ends_it(path: Path) -> None:
    with Gemma(path, context=16) as model:
        ids = [2, *range(10, 22)]  # 13
        made = model.generate(ids, max_tokens=1000, **GREEDY)
        assert made.finish_reason == "length" and len(made.token_ids) == 4  # the last one need not be fed
        assert len(model.generate([*ids, 5, 6, 7], max_tokens=1000, **GREEDY).token_ids) == 1
        with pytest.raises(ContextOverflowError, match="17 tokens do not fit the context of 16"):
            model.stream([*ids, 5, 6, 7, 8])
        with pytest.raises(ContextOverflowError):
            model.logits([*ids, 5, 6, 7, 8])


def test_progress_of_the_prompt(model: Gemma) -> None:
    seen: list[tuple[int, int]] = []
    model.generate([2] * 40, max_tokens=1, on_progress=lambda done, total: seen.append((done, total)), **GREEDY)
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]


# ---- wrong arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"prompt": 5}, TypeError, "prompt"),
        ({"prompt": b"bytes"}, TypeError, "prompt"),
        ({"prompt": None}, TypeError, "prompt"),
        ({"prompt": []}, ValueError, "tokens"),
        ({"prompt": [1.5]}, ValueError, "tokens"),
        ({"prompt": ["a"]}, ValueError, "tokens"),
        ({"prompt": [-1]}, ValueError, "tokens"),
        ({"prompt": [10**6]}, ValueError, "tokens"),
        ({"prompt": [2**70]}, ValueError, "tokens"),
        ({"prompt": "\ud800"}, ValueError, "surrogate"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"max_tokens": 1.5}, ValueError, "max_tokens"),
        ({"max_tokens": True}, ValueError, "max_tokens"),
        ({"stop": 5}, TypeError, "stop"),
        ({"stop": [5]}, TypeError, "stop"),
        ({"stop": [""]}, ValueError, "stop"),
        ({"temperature": "hot"}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"seed": -1}, ValueError, "seed"),
        ({"top_q": 1}, TypeError, "top_q"),
        ({"on_progress": 5}, TypeError, "on_progress"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(
    model: Gemma, arguments: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        model.stream(**({"prompt": PROMPT} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"context": 0}, ValueError, "context"),
        ({"context": "many"}, ValueError, "context"),
        ({"context": 2**21}, ContextOverflowError, "2097152"),
        ({"threads": 0}, ValueError, "threads"),
        ({"threads": 2.0}, ValueError, "threads"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"kv_type": "q8_0"}, ValueError, "kv_type"),
        ({"load": "download"}, ValueError, "load"),
        ({"path": "nowhere.gguf"}, FileNotFoundError, "nowhere.gguf"),
        ({"path": 5}, TypeError, "int"),
    ],
)
def test_wrong_ways_to_open(path: Path, arguments: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        Gemma(**({"path": path} | arguments))
    assert workers() == []


def test_a_context_beyond_the_memory_names_one_that_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2_000_000}))
    with pytest.raises(MemoryBudgetError, match=r"a context of \d+ fits"):
        Gemma(path, context=1024, kv_type="f32", chunk=32)
