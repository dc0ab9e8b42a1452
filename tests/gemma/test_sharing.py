"""One model used by several threads, and closed in every state."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest

from edge_gemma import EdgeGemmaError, Gemma
from edge_gemma.gemma import Completion
from tests.gemma.helpers import GREEDY, PROMPT, answer, as_tuple, python, workers

# ---- threads ---------------------------------------------------------------------------------------------------------


def test_calls_from_several_threads_wait_for_each_other(model: Gemma, expected: Completion) -> None:
    results: list[tuple[str, list[int], str]] = []

    def ask() -> None:
        results.extend(answer(model) for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [as_tuple(expected)] * 12


def test_a_call_inside_ones_own_stream_is_refused(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, **GREEDY)
    first = next(stream)
    with pytest.raises(EdgeGemmaError, match="unfinished stream"):
        model.generate(PROMPT)
    with pytest.raises(EdgeGemmaError, match="unfinished stream"):
        model.logits([2])
    assert first + "".join(stream) == expected.text


def test_tokenizing_needs_no_turn(model: Gemma) -> None:
    stream = model.stream(PROMPT, max_tokens=24)
    next(stream)
    assert model.detokenize(model.tokenize(PROMPT)) == PROMPT


def test_a_stream_may_be_read_by_another_thread(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, **GREEDY)
    pieces = [next(stream)]
    thread = threading.Thread(target=lambda: pieces.extend(stream))
    thread.start()
    thread.join()
    assert "".join(pieces) == expected.text
    assert answer(model) == as_tuple(expected)


# ---- closed ----------------------------------------------------------------------------------------------------------


def test_closing_ends_every_thread_and_refuses_calls(path: Path) -> None:
    model = Gemma(path, threads=3)
    assert len(workers()) == 3
    model.close()
    model.close()
    assert workers() == []
    for call in (model.generate, model.stream, lambda text: model.logits([2])):
        with pytest.raises(EdgeGemmaError, match="closed"):
            call(PROMPT)
    model.cancel()


def test_closing_while_a_stream_is_open(path: Path) -> None:
    model = Gemma(path)
    stream = model.stream(PROMPT, max_tokens=100)
    begun = next(stream)
    waiting = model.stream(PROMPT)
    model.close()
    assert workers() == [] and list(stream) == [] and stream.completion.text == begun
    with pytest.raises(EdgeGemmaError, match="closed"):
        next(waiting)


def test_closing_from_another_thread(path: Path) -> None:
    """While one generates and one waits."""
    model = Gemma(path)
    outcomes: list[object] = []
    begun = threading.Event()

    def hold(_done: int, _total: int) -> None:
        """The first to generate is still at it when the model is closed."""
        begun.set()
        while not model._closing:
            time.sleep(0.001)

    def use() -> None:
        try:
            outcomes.append(model.generate([2] * 900, max_tokens=10_000, on_progress=hold, **GREEDY).finish_reason)
        except EdgeGemmaError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(timeout=60)
    model.close()
    for thread in threads:
        thread.join(timeout=60)
    assert workers() == []
    assert sorted(map(str, outcomes)) == ["cancelled", "the model is closed"]


def test_closing_while_another_thread_holds_a_stream(path: Path) -> None:
    model = Gemma(path)
    stream = model.stream(PROMPT, max_tokens=1000)
    thread = threading.Thread(target=next, args=(stream,))
    thread.start()
    thread.join()
    model.close()
    assert workers() == [] and list(stream) == []


def test_closing_inside_a_callback_is_refused(path: Path) -> None:
    with Gemma(path) as model, pytest.raises(EdgeGemmaError, match="a callback of this model cannot close it"):
        model.generate(PROMPT, on_progress=lambda _done, _total: model.close())
    assert workers() == []


def test_leaving_by_an_error_closes(path: Path) -> None:
    def fail() -> None:
        with Gemma(path) as model:
            for _ in model.stream(PROMPT):
                raise RuntimeError("while streaming")

    with pytest.raises(RuntimeError, match="while streaming"):
        fail()
    assert workers() == []


def test_a_dropped_model_frees_its_threads(path: Path) -> None:
    model = Gemma(path)
    assert workers()
    del model
    gc.collect()
    assert workers() == []


def test_a_process_ends_with_its_model_open(path: Path) -> None:
    done = python(f"from edge_gemma import Gemma; m = Gemma({str(path)!r}); s = m.stream('aa'); next(s); print('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
