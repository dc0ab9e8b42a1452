"""One model used by several threads, and closed in every state."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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


def test_a_call_inside_ones_own_stream(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, **GREEDY)
    pieces = [next(stream)]
    assert answer(model) == as_tuple(expected)
    pieces.append(next(stream))
    assert model.logits([2, 3]).shape == (2, model.config.vocab_size)
    assert "".join([*pieces, *stream]) == expected.text
    assert as_tuple(stream.completion) == as_tuple(expected)


def test_chunks_of_logits_go_on_after_another_call(model: Gemma, expected: Completion) -> None:
    ids = model.tokenize(PROMPT) * 5
    whole = model.logits(ids)
    chunks = model.logits_chunks(ids, 7)
    parts = [next(chunks), next(chunks)]
    assert answer(model) == as_tuple(expected)
    assert np.array_equal(np.concatenate([*parts, *chunks]), whole)


def test_answers_are_made_side_by_side(model: Gemma) -> None:
    """The first of two that take long has not ended when the second has pieces."""
    model.tokenizer.eog_ids = frozenset()
    streams = [model.stream(PROMPT, max_tokens=10_000, temperature=3.0, top_k=0, seed=n) for n in range(2)]
    for _ in range(5):
        for stream in streams:
            next(stream)
    stats = model.stats()
    assert (stats.running, stats.waiting) == (2, 0) and stats.completion_tokens >= 10
    for stream in streams:
        stream.close()


def test_a_stream_that_nobody_reads_holds_up_nobody(model: Gemma, expected: Completion) -> None:
    model.tokenizer.eog_ids = frozenset()
    forgotten = [model.stream(PROMPT, max_tokens=10_000, temperature=3.0, top_k=0) for _ in range(2 * model.slots)]
    while model.stats().waiting:
        time.sleep(0.01)
    assert answer(model) == as_tuple(expected)
    assert model.stats().running == len(forgotten)
    assert len({next(stream) for stream in forgotten}) > 1


def test_clients_of_an_async_server(model: Gemma, expected: Completion) -> None:
    """Each piece is asked for by whatever thread of a pool is free: a stream is a caller of its own."""

    async def read(number: int) -> str:
        await asyncio.sleep(0.02 * number)
        stream, end, pieces = model.stream(PROMPT, max_tokens=24, **GREEDY), object(), []
        while (piece := await asyncio.to_thread(next, stream, end)) is not end:
            pieces.append(str(piece))
            await asyncio.sleep(0.002)
        return "".join(pieces)

    async def ask(number: int) -> str:
        await asyncio.sleep(0.02 * number)
        made = await asyncio.to_thread(model.generate, PROMPT, max_tokens=24, **GREEDY)
        return made.text

    async def all_of_them() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(10))
        return await asyncio.gather(*(read(i) for i in range(4)), *(ask(i) for i in range(4)))

    assert asyncio.run(all_of_them()) == [expected.text] * 8


def test_a_pool_that_is_too_small_is_slow_and_no_end(model: Gemma) -> None:
    """Each of its threads waits for a stream's next piece, and the others' go on all the same."""

    async def read() -> str:
        stream, end, pieces = model.stream(PROMPT, max_tokens=6, **GREEDY), object(), []
        while (piece := await asyncio.to_thread(next, stream, end)) is not end:
            pieces.append(str(piece))
        return "".join(pieces)

    async def all_of_them() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        return await asyncio.gather(*(read() for _ in range(4)))

    assert len(set(asyncio.run(all_of_them()))) == 1


@pytest.mark.parametrize("call", [lambda m: m.generate("a"), lambda m: m.logits([2]), lambda m: next(m.stream("a"))])
def test_a_call_inside_a_callback(model: Gemma, expected: Completion, call: Callable[[Gemma], object]) -> None:
    done: list[object] = []
    made = model.generate(PROMPT, max_tokens=24, on_progress=lambda _done, _total: done.append(call(model)), **GREEDY)
    assert as_tuple(made) == as_tuple(expected) and len(done) == 2


def test_tokenizing_beside_a_stream(model: Gemma) -> None:
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
    assert len(workers()) == 4, "and the engine's"
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
    """While two generate; what has come so far is an answer."""
    model = Gemma(path)
    outcomes: list[str] = []
    begun = threading.Barrier(3)

    def use(seed: int) -> None:
        stream = model.stream(PROMPT, max_tokens=100_000, temperature=3.0, top_k=0, seed=seed)
        next(stream)
        begun.wait(60)
        for _ in stream:
            pass
        outcomes.append(stream.completion.finish_reason)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    model.close()
    for thread in threads:
        thread.join(timeout=60)
    assert workers() == [] and outcomes == ["cancelled"] * 2


def test_closing_while_another_thread_holds_a_stream(path: Path) -> None:
    model = Gemma(path)
    stream = model.stream(PROMPT, max_tokens=1000)
    thread = threading.Thread(target=next, args=(stream,))
    thread.start()
    thread.join()
    model.close()
    assert workers() == [] and list(stream) == []


def test_closing_inside_a_callback(path: Path) -> None:
    model = Gemma(path)
    with pytest.raises(EdgeGemmaError, match="the model is closed"):
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


def test_a_stream_keeps_its_model(path: Path, expected: Completion) -> None:
    stream = Gemma(path).stream(PROMPT, max_tokens=24, **GREEDY)
    gc.collect()
    assert "".join(stream) == expected.text


def test_a_call_at_the_end_of_the_process_is_refused(path: Path) -> None:
    """What was registered before the model was opened runs after its threads have ended."""
    done = python(f"""
import atexit
from edge_gemma import EdgeGemmaError, Gemma

def late():
    try:
        model.generate("aa", max_tokens=3)
    except EdgeGemmaError as error:
        print(error)

atexit.register(late)
model = Gemma({str(path)!r}, threads=2)
model.generate("aa", max_tokens=3)
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the model is closed\n", "")


def test_a_process_ends_with_its_model_open(path: Path) -> None:
    done = python(f"from edge_gemma import Gemma; m = Gemma({str(path)!r}); s = m.stream('aa'); next(s); print('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
