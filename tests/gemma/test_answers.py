"""What an answer of `Gemma` is, and the arguments that are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_gemma
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
        ({"prompt": bytearray(b"bytes")}, TypeError, "prompt: .* got bytearray"),
        ({"prompt": {2: 3}}, TypeError, "prompt: .* got dict"),
        ({"prompt": []}, ValueError, "prompt: there must be at least one"),
        ({"prompt": [1.5]}, ValueError, r"prompt\[0\]: expected a token id, got 1.5"),
        ({"prompt": ["a"]}, ValueError, r"prompt\[0\]: .* got 'a'"),
        ({"prompt": [2, True]}, ValueError, r"prompt\[1\]: .* got True"),
        ({"prompt": np.array([True])}, ValueError, r"prompt\[0\]: .* got (np\.)?True"),
        ({"prompt": np.array(5)}, ValueError, r"prompt: .* shape \(\)"),
        ({"prompt": np.ones((2, 3), int)}, ValueError, r"prompt: .* shape \(2, 3\)"),
        ({"prompt": [[2], [3, 4]]}, ValueError, r"prompt\[0\]: .* got \[2\]"),
        ({"prompt": [2, -1]}, ValueError, r"prompt\[1\]: token id -1 is outside 0\.\."),
        ({"prompt": [10**6]}, ValueError, r"prompt\[0\]: token id 1000000 "),
        ({"prompt": [2**70]}, ValueError, r"prompt\[0\]: token id 1180591620717411303424 "),
        ({"prompt": [10**5000]}, ValueError, r"prompt\[0\]: token id an integer of 16610 bits "),
        ({"prompt": [2] * 10**5}, ContextOverflowError, "prompt: 100000 tokens do not fit"),
        ({"prompt": "\ud800"}, ValueError, "prompt: .* surrogate"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"max_tokens": 1.5}, ValueError, "max_tokens"),
        ({"max_tokens": True}, ValueError, "max_tokens"),
        ({"max_tokens": None}, ValueError, "max_tokens: None"),
        ({"max_tokens": "9" * 5000}, ValueError, "max_tokens: .{80}[.]{3} is no integer"),
        ({"max_tokens": [10**5000]}, ValueError, "max_tokens: a list is no integer"),
        ({"max_tokens": np.float64(3)}, ValueError, "max_tokens"),
        ({"max_tokens": np.array([3])}, ValueError, "max_tokens"),
        ({"stop": 5}, TypeError, "stop"),
        ({"stop": [5]}, TypeError, "stop"),
        ({"stop": [""]}, ValueError, "stop"),
        ({"temperature": "hot"}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": 10**5000}, ValueError, "temperature"),
        ({"seed": -1}, ValueError, "seed"),
        ({"top_q": 1}, TypeError, "top_q"),
        ({"on_progress": 5}, TypeError, "on_progress"),
        ({"priority": "high"}, ValueError, "priority"),
        ({"deadline": 0}, ValueError, "deadline"),
        ({"deadline": float("inf")}, ValueError, "deadline"),
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
        ({"kv_type": "q4_0"}, ValueError, "kv_type: 'q4_0'.*'q8_0'"),
        ({"kv_type": None}, ValueError, "kv_type: None"),
        ({"kv_type": np.array(["f16", "f32"])}, ValueError, "kv_type: array"),
        ({"load": ["map"]}, ValueError, "load"),
        ({"progress": 5}, TypeError, "progress: 5 cannot be called"),
        ({"load": "download"}, ValueError, "load"),
        ({"slots": 0}, ValueError, "slots"),
        ({"prefix_cache": -1}, ValueError, "prefix_cache"),
        ({"max_stall": 0}, ValueError, "max_stall"),
        ({"path": "nowhere.gguf"}, FileNotFoundError, "nowhere.gguf"),
        ({"path": 5}, TypeError, "path: .* got int"),
        ({"path": None}, TypeError, "path: .* got NoneType"),
        ({"path": b"model.gguf"}, TypeError, "path: .* got bytes"),
        ({"path": "model\0.gguf"}, ValueError, "path: .* null character"),
    ],
)
def test_wrong_ways_to_open(path: Path, arguments: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        Gemma(**({"path": path} | arguments))
    assert workers() == []


@pytest.mark.parametrize("rows", [None, 0, 4097, 1.0, "1", True])
def test_wrong_rows_are_named_at_the_call(model: Gemma, rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows: .* is no integer in 1\.\.4096"):
        model.logits_chunks([2], rows)


@pytest.mark.parametrize("chunk", [0, 17, 1.0, "1", True])
def test_a_wrong_chunk_is_named(model: Gemma, chunk: Any) -> None:
    with pytest.raises(ValueError, match=r"chunk: .* is no integer in 1\.\.16"):
        model.logits([2, 3], chunk=chunk)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in ("add_bos", "parse_special") for value in ("no", 0, 5)]
    + [("parse_special", None)],
)  # fmt: skip
def test_wrong_flags_are_named(model: Gemma, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}: {value!r} is neither True nor False"):
        model.tokenize("aa", **{name: value})


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("text", TypeError, "ids: expected a list of token ids, got str"),
        (b"bytes", TypeError, "ids: .* got bytes"),
        (5, TypeError, "ids: .* got int"),
        (None, TypeError, "ids: .* got NoneType"),
        ([2, True], ValueError, r"ids\[1\]: expected a token id, got True"),
        (["2"], ValueError, r"ids\[0\]: .* got '2'"),
        ([2.0], ValueError, r"ids\[0\]: .* got 2.0"),
        ([2, -1], ValueError, r"ids\[1\]: token id -1 is outside"),
    ],
)
def test_wrong_ids_are_named(model: Gemma, ids: Any, error: type[Exception], message: str) -> None:
    for call in (model.detokenize, model.logits, lambda given: model.logits_chunks(given, 1)):
        with pytest.raises(error, match=message):
            call(ids)


def test_numbers_of_numpy_are_numbers(path: Path, expected: Completion) -> None:
    sizes: Any = {"context": np.int32(64), "threads": np.uint8(1), "chunk": np.int64(16)}
    with Gemma(path, **sizes) as model:
        assert [type(value) for value in (model.context, model.threads)] == [int, int]
        ids: Any = [np.int16(i) for i in model.tokenize(PROMPT, add_bos=np.True_)]  # type: ignore[arg-type]
        many: Any = {"max_tokens": np.int8(24), "top_k": np.int8(127), "temperature": np.float16(0)}
        assert as_tuple(model.generate(ids, **many)) == as_tuple(expected)
        assert model.detokenize(np.array(expected.token_ids, np.uint32)) == expected.text  # type: ignore[arg-type]
        rows, chunk = np.uint8(2), np.int16(3)
        chunks: Any = [*model.logits_chunks(ids, rows)]  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate(chunks), model.logits(ids, chunk=chunk))  # type: ignore[arg-type]


def test_a_context_beyond_the_memory_names_one_that_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2_000_000}))
    with pytest.raises(MemoryBudgetError, match=r"a context of \d+ fits"):
        Gemma(path, context=1024, kv_type="f32", chunk=32)


def test_a_draft_changes_no_token(path: Path, expected: Completion) -> None:
    with Gemma(path, draft=path, threads=1) as model:
        assert as_tuple(model.generate(PROMPT, max_tokens=24, **GREEDY)) == as_tuple(expected)
        assert model.stats().steps < 24, "the same model foretells everything"
        assert len(model.generate(PROMPT, max_tokens=8, temperature=3.0, seed=1).token_ids) == 8
    assert workers() == []


def test_a_draft_of_another_vocabulary_is_refused(path: Path, real_model: Path) -> None:
    with pytest.raises(ValueError, match=r"draft: .* has another vocabulary"):
        Gemma(path, draft=real_model, threads=1)
    assert workers() == []


def test_a_draft_with_a_shorter_context_says_nothing_beyond(path: Path, expected: Completion) -> None:
    with Gemma(path, draft=path, threads=1) as model:
        assert model._draft is not None
        model._draft.context = 12
        assert as_tuple(model.generate(PROMPT, max_tokens=24, **GREEDY)) == as_tuple(expected)


def test_memory_is_planned_from_a_file(path: Path) -> None:
    with Gemma(path, context=64, threads=1) as model:
        assert edge_gemma.plan_memory(path, 64, threads=1) == model.plan
    one, four = (edge_gemma.plan_memory(path, 64, n, threads=1) for n in (1, 4))
    assert four.kv_cache == 4 * one.kv_cache and four.weights == one.weights
