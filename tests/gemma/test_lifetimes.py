"""Time limits, what is kept for later, and the end of every object in every state: no thread and no page is left."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_gemma import Completion, Gemma
from tests.conftest import TinyGguf
from tests.gemma.helpers import GREEDY, PROMPT, as_tuple, python, workers
from tests.gemma.test_batches import HOT, endless, pages, soon

# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_an_answer(model: Gemma) -> None:
    endless(model)
    whole = model.generate(PROMPT, max_tokens=1000, **HOT)
    started = time.monotonic()
    made = model.generate(PROMPT, max_tokens=1000, deadline=0.05, **HOT)
    assert time.monotonic() - started < 5
    assert made.finish_reason == "deadline" and whole.text.startswith(made.text)
    assert whole.token_ids[: len(made.token_ids)] == made.token_ids


def test_a_deadline_while_it_waits_and_while_nobody_reads(path: Path) -> None:
    with Gemma(path, threads=1, slots=1) as model:
        endless(model)
        running = model.stream(PROMPT, max_tokens=1000, **HOT)
        next(running)
        waiting = model.stream([5] * 900, max_tokens=50, deadline=0.01, priority=-5)
        paused = model.stream([6], max_tokens=1000, deadline=0.4, **HOT)
        assert list(waiting) == [] and waiting.completion.finish_reason in ("deadline", "length")
        running.close()
        soon(model, 0)
        pieces = list(paused)
        made = paused.completion
        assert made.finish_reason == "deadline" and "".join(pieces) == made.text and made.token_ids


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan"), "1", True])
def test_a_wrong_deadline(model: Gemma, deadline: Any) -> None:
    with pytest.raises(ValueError, match="deadline: "):
        model.generate(PROMPT, deadline=deadline)


def test_a_deadline_of_many_years(model: Gemma, expected: Completion) -> None:
    unread = model.stream(PROMPT, max_tokens=1000, deadline=1e300, **HOT)
    time.sleep(0.1)
    assert as_tuple(model.generate(PROMPT, max_tokens=24, deadline=1e18, **GREEDY)) == as_tuple(expected)
    unread.close()


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def long_context(tiny_gguf: TinyGguf) -> Iterator[Gemma]:
    with Gemma(tiny_gguf("gemma3-270m"), threads=2, chunk=64) as opened:
        endless(opened)
        yield opened


def test_a_prompt_again_is_not_read_again(long_context: Gemma) -> None:
    ids = [3 + n % 200 for n in range(400)]
    first, again = (long_context.generate(ids, max_tokens=40, **HOT) for _ in range(2))
    assert first.token_ids == again.token_ids
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 399)


def test_a_conversation_with_one_new_turn_reads_that(long_context: Gemma) -> None:
    conversation, answer = [7 + n % 300 for n in range(150)], list[int]()
    for turn in range(5):
        conversation += answer + [20 + turn] * 9
        before = long_context.stats().prompt_tokens
        made = long_context.generate(conversation, max_tokens=60, **HOT)
        read = long_context.stats().prompt_tokens - before
        if turn:
            assert read <= 9 + 1, "the last token of an answer was not computed"
            assert made.usage.cached_tokens == len(conversation) - read
        answer = made.token_ids


def test_an_edited_turn_reads_from_there(long_context: Gemma) -> None:
    """From the end of an earlier prompt at the latest, whatever the windows have given back."""
    system = [9 + n % 250 for n in range(200)]
    first = long_context.generate(system, max_tokens=100, **HOT)
    edited = [*system, *first.token_ids[:3], 77, 78, 79]
    made = long_context.generate(edited, max_tokens=10, **HOT)
    assert made.usage.cached_tokens >= 199
    with Gemma(long_context._runner.file.path, threads=1, prefix_cache=0) as fresh:
        endless(fresh)
        assert fresh.generate(edited, max_tokens=10, **HOT).token_ids == made.token_ids


@pytest.mark.parametrize("share", [0, 2, 3])
def test_a_prefix_cache_stays_in_its_budget(path: Path, share: int) -> None:
    """`share` quarters of a context's bytes, by pages that nobody else holds."""
    with Gemma(path, threads=1, context=600) as model:
        budget = model.plan.kv_cache * share // 4
    with Gemma(path, threads=1, context=600, prefix_cache=budget) as model:
        for n in range(12):
            model.generate([4 + n] * (40 + 45 * n), n=1 + n % 3, max_tokens=20, **HOT)
            with model.sequence() as sequence:
                sequence.append([5 + n] * 300)
                held = model.stats().page_bytes
            soon(model)
            assert pages(model) <= budget and held > 0
        model.generate([9] * 20, max_tokens=2)
        soon(model)
        assert (model.stats().checkpoints > 0) == (share > 0)


# ---- the end of everything -------------------------------------------------------------------------------------------

STATES: dict[str, Callable[[Gemma], Any]] = {
    "unread": lambda m: m.stream(PROMPT, max_tokens=1000, **HOT),
    "begun": lambda m: _begun(m.stream(PROMPT, max_tokens=1000, **HOT)),
    "in a prompt": lambda m: m.stream([2] * 1000, max_tokens=3),
    "finished": lambda m: _read(m.stream(PROMPT, max_tokens=3, **HOT)),
    "finished, unread": lambda m: m.stream(PROMPT, max_tokens=3, **HOT),
    "waiting": lambda m: [m.stream([2, 3 + n], max_tokens=1000, **HOT) for n in range(9)],
    "batch": lambda m: _begun(m.generate_many([[2, n] for n in range(3, 30)], max_tokens=5, **HOT)),
    "batch, not begun": lambda m: m.generate_many([[2]], max_tokens=1000),
    "logits": lambda m: _begun(m.logits_chunks([2] * 900, 100)),
    "logits, not begun": lambda m: m.logits_chunks([2] * 900, 100),
    "sequence": lambda m: [_appended(m)],
    "fork": lambda m: _appended(m).fork(),
    "empty sequence": lambda m: m.sequence(),
}


def _begun(iterator: Any) -> Any:
    next(iterator)
    return iterator


def _read(stream: Any) -> Any:
    list(stream)
    return stream


def _appended(model: Gemma) -> Any:
    sequence = model.sequence()
    sequence.append([2] * 300)
    return sequence


@pytest.mark.parametrize("state", STATES)
def test_what_is_dropped_leaves_nothing(path: Path, state: str) -> None:
    with Gemma(path, threads=1, slots=4, chunk=16, prefix_cache=0) as model:
        endless(model)
        thing = STATES[state](model)
        del thing
        gc.collect()
        soon(model)
        assert pages(model) == 0


@pytest.mark.parametrize("state", STATES)
def test_a_model_is_dropped_with_what_was_begun(path: Path, state: str) -> None:
    model = Gemma(path, threads=2, slots=4, chunk=16)
    endless(model)
    thing = STATES[state](model)
    del model, thing
    gc.collect()
    assert workers() == []


@pytest.mark.parametrize("state", STATES)
def test_dropped_in_a_cycle(path: Path, state: str) -> None:
    """Collected by whichever thread runs then, the engine's among them."""
    model = Gemma(path, threads=1, slots=4, chunk=16)
    endless(model)
    cycle: list[Any] = [STATES[state](model), model]
    cycle.append(cycle)
    del model, cycle
    gc.collect()
    end = time.monotonic() + 20
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    assert workers() == []


def test_a_process_ends_in_any_state(path: Path) -> None:
    """With all of it open at once, readers in daemon threads, and an event loop."""
    done = python(f"""
import asyncio, threading
from contextlib import suppress
from edge_gemma import EdgeGemmaError, Gemma
from tests.gemma.test_lifetimes import STATES, endless

model = Gemma({str(path)!r}, threads=2, slots=4, chunk=16)
endless(model)
things = [make(model) for make in STATES.values()]
readers = [model.stream([2, n], max_tokens=100000, temperature=3.0, top_k=0) for n in range(3, 6)]
for reader in readers:
    threading.Thread(target=lambda r=reader: [None for _ in r], daemon=True).start()

def ask():
    with suppress(EdgeGemmaError):  # the model is closed
        model.generate([2] * 1000, n=3, max_tokens=1000)

threading.Thread(target=ask, daemon=True).start()

async def begin():
    global stream
    stream = model.astream([2], max_tokens=1000, temperature=3.0, top_k=0)
    await anext(stream)

asyncio.run(begin())
print("end")
""")
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr


def test_a_thread_that_dies_with_its_stream(model: Gemma, expected: Completion) -> None:
    endless(model)
    errors: list[Any] = []
    hook, threading.excepthook = threading.excepthook, errors.append
    try:

        def die() -> None:
            for _ in model.stream(PROMPT, max_tokens=1000, **HOT):
                raise RuntimeError("in the reader")

        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert len(errors) == 1
    errors.clear()  # the traceback holds the stream
    gc.collect()
    soon(model)


def _in_a_process(path: Path, queue: Any) -> None:
    with Gemma(path, threads=1) as model:
        queue.put(model.generate(PROMPT, max_tokens=24, **GREEDY).token_ids)


def test_a_spawned_process_has_a_model_of_its_own(path: Path, model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, **GREEDY)
    next(stream)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_a_process, args=(path, queue))
    process.start()
    assert queue.get(timeout=100) == expected.token_ids
    process.join(60)
    assert process.exitcode == 0
    list(stream)
    assert stream.completion.token_ids == expected.token_ids
    queue.close()
    queue.join_thread()


def test_an_interrupted_stream_has_no_hole(path: Path) -> None:
    """A piece that Ctrl-C takes out of the reader's hand is not missing in the middle: the answer ends there."""
    done = python(f"""
import os, signal, threading, time
from edge_gemma import Gemma

with Gemma({str(path)!r}, threads=1) as model:
    model.tokenizer.eog_ids = frozenset()
    options = dict(max_tokens=1000, temperature=3.0, top_k=0, seed=5)
    whole = model.generate("aa", **options)
    for i in range(30):
        stream, interrupted = model.stream("aa", **options), False
        timer = threading.Timer(0.001 * i, os.kill, (os.getpid(), signal.SIGINT))
        while not interrupted:
            try:
                if not timer.ident:
                    timer.start()
                for _ in stream:
                    pass
                time.sleep(1)
            except KeyboardInterrupt:
                interrupted = True
        timer.join()
        for _ in stream:
            pass
        made = stream.completion
        assert whole.token_ids[: len(made.token_ids)] == made.token_ids, i
        assert whole.text.startswith(made.text), i
    print("whole")
""")
    assert (done.stdout, done.stderr) == ("whole\n", "")
