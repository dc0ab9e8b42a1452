"""Answers that end early: cancelled, left behind, broken into by errors and signals."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edge_gemma import EdgeGemmaError, Gemma
from edge_gemma.gemma import Completion
from tests.gemma.helpers import GREEDY, PROMPT, answer, as_tuple, python


def test_cancel_during_generation_and_again_usable(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=10_000, **GREEDY)
    first = next(stream)
    thread = threading.Thread(target=model.cancel)
    thread.start()
    thread.join()
    rest = "".join(stream)
    made = stream.completion
    assert made.finish_reason == "cancelled" and made.text == first + rest
    assert len(made.token_ids) < 10
    assert answer(model) == as_tuple(expected)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.05])
def test_cancel_from_another_thread_at_any_time(model: Gemma, expected: Completion, delay: float) -> None:
    def cancel() -> None:
        time.sleep(delay)
        model.cancel()

    for _ in range(3):
        thread = threading.Thread(target=cancel)
        thread.start()
        model.generate([2] * 900, max_tokens=50, **GREEDY)
        thread.join()
    assert answer(model) == as_tuple(expected)


def test_cancel_during_the_prompt(model: Gemma, expected: Completion) -> None:
    def at_second_chunk(done: int, _total: int) -> None:
        if done == 16:
            model.cancel()

    made = model.generate([2] * 900, max_tokens=5, on_progress=at_second_chunk, **GREEDY)
    assert (made.text, made.token_ids, made.finish_reason, made.timings) == ("", [], "cancelled", None)
    assert answer(model) == as_tuple(expected)


def test_cancelled_logits_are_an_error(model: Gemma) -> None:
    done = threading.Event()

    def keep_cancelling() -> None:
        while not done.wait(0.001):
            model.cancel()

    thread = threading.Thread(target=keep_cancelling)
    thread.start()
    with pytest.raises(EdgeGemmaError, match="cancelled"):
        while True:
            model.logits([2] * 900)
    done.set()
    thread.join()
    assert model.logits([2, 3]).shape == (2, model.config.vocab_size)


def test_a_cancel_of_nothing_changes_nothing(model: Gemma, expected: Completion) -> None:
    model.cancel()
    assert answer(model) == as_tuple(expected)


def test_cancel_ends_a_stream_that_nobody_reads(model: Gemma, expected: Completion) -> None:
    """Its thread has ended, or waits for a user."""
    stream = model.stream(PROMPT, max_tokens=100, **GREEDY)
    first = threading.Thread(target=next, args=(stream,))
    first.start()
    first.join()
    model.cancel()
    model.logits([2, 3])
    chunks = model.logits_chunks([2] * 40, 4)
    next(chunks)
    model.cancel()
    model.logits([2, 3])
    assert list(stream) == [] and stream.completion.finish_reason == "cancelled"
    with pytest.raises(EdgeGemmaError, match="cancelled"):
        next(chunks)
    assert list(chunks) == []
    assert answer(model) == as_tuple(expected)


def test_closing_a_stream_ends_what_another_thread_reads_for_it(model: Gemma, expected: Completion) -> None:
    reached = threading.Event()
    seen: list[int] = []

    def on_progress(done: int, _total: int) -> None:
        seen.append(done)
        if done == 16:
            reached.set()
            time.sleep(0.05)

    stream = model.stream([2] * 900, max_tokens=5, on_progress=on_progress, **GREEDY)
    thread = threading.Thread(target=list, args=(stream,))
    thread.start()
    assert reached.wait(timeout=60)
    stream.close()
    thread.join(timeout=60)
    assert not thread.is_alive() and max(seen) < 100 and stream.completion.finish_reason == "cancelled"
    assert answer(model) == as_tuple(expected)


def test_a_stream_left_behind_frees_the_model(model: Gemma, expected: Completion) -> None:
    for _ in model.stream(PROMPT, max_tokens=100):
        break
    assert answer(model) == as_tuple(expected)
    stream = model.stream(PROMPT, max_tokens=100)
    next(stream)
    stream.close()
    stream.close()
    assert answer(model) == as_tuple(expected)
    assert list(stream) == [] and stream.completion.finish_reason == "cancelled"


def test_an_error_in_a_callback_ends_only_that_call(model: Gemma, expected: Completion) -> None:
    def fail(_done: int, _total: int) -> None:
        raise RuntimeError("in the callback")

    with pytest.raises(RuntimeError, match="in the callback"):
        model.generate(PROMPT, on_progress=fail)
    assert answer(model) == as_tuple(expected)


def test_a_cancel_before_the_first_piece_is_not_forgotten(model: Gemma, expected: Completion) -> None:
    stream = model.stream(PROMPT, max_tokens=24, temperature=0.0)
    model.cancel()
    assert list(stream) == []
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.token_ids == []
    assert answer(model) == as_tuple(expected)


def test_keyboard_interrupts_leave_it_usable(path: Path, expected: Completion) -> None:
    """Signals at many times of a generation, in a process of its own; then the answer of a fresh model."""
    done = python(f"""
import os, signal, threading, time
from edge_gemma import Gemma

with Gemma({str(path)!r}, threads=2, chunk=16) as model:
    for i in range(40):
        interrupted = False
        timer = threading.Timer(0.001 * i, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            model.generate([2] * 200, max_tokens=100, temperature=0.0)
            time.sleep(1)
        except KeyboardInterrupt:
            interrupted = True
        assert interrupted
        timer.join()
    print(model.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids)
""")
    assert (done.stdout, done.stderr) == (f"{expected.token_ids}\n", "")
