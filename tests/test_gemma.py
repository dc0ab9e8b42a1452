"""`Gemma` in every state an application can bring it into: streams left open, threads, cancels, forks, signals."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_gemma
from edge_gemma import ContextOverflowError, EdgeGemmaError, Gemma, MemoryBudgetError, ModelChangedError
from edge_gemma.gemma import Completion
from tests.conftest import TinyGguf

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "aa bb cc"
GREEDY: dict[str, Any] = {"temperature": 0.0}


@pytest.fixture(scope="module")
def path(tiny_gguf: TinyGguf) -> Path:
    return tiny_gguf("gemma2-2b")


@pytest.fixture
def model(path: Path) -> Iterator[Gemma]:
    with Gemma(path, threads=2, chunk=16) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(path: Path) -> Completion:
    with Gemma(path) as opened:
        return opened.generate(PROMPT, max_tokens=24, **GREEDY)


def answer(model: Gemma) -> tuple[str, list[int], str]:
    made = model.generate(PROMPT, max_tokens=24, **GREEDY)
    return made.text, made.token_ids, made.finish_reason


def as_tuple(made: Completion) -> tuple[str, list[int], str]:
    return made.text, made.token_ids, made.finish_reason


_OTHERS: set[threading.Thread] = set()
"""Workers that tests of other files keep."""


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("edge-gemma") and t not in _OTHERS]


@pytest.fixture(scope="module", autouse=True)
def workers_of_other_tests() -> None:
    _OTHERS.update(workers())


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


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


# ---- ended early -----------------------------------------------------------------------------------------------------


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


# ---- the file and the process ----------------------------------------------------------------------------------------


def test_a_file_changed_on_disk(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    with Gemma(copy) as model, Gemma(copy, load="copy") as loaded:
        before = answer(model)
        stream = model.stream(PROMPT)
        next(stream)
        with copy.open("ab") as file:
            file.write(b"x")
        with pytest.raises(ModelChangedError, match=r"copy\.gguf"):
            list(stream)
        with pytest.raises(ModelChangedError):
            model.generate(PROMPT)
        assert answer(loaded) == before


def test_a_file_replaced_by_another(path: Path, tmp_path: Path, expected: Completion) -> None:
    copy, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    copy.write_bytes(path.read_bytes())
    other.write_bytes(b"something else")
    with Gemma(copy) as model:
        other.replace(copy)
        assert answer(model) == as_tuple(expected)


def test_a_fork_is_told_that_it_has_no_model(path: Path, expected: Completion) -> None:
    done = python(f"""
import os
from edge_gemma import ForkError, Gemma

model = Gemma({str(path)!r})
if not os.fork():
    try:
        model.generate("aa")
    except ForkError as error:
        print("child:", error, flush=True)
    model.close()
    with Gemma({str(path)!r}) as own:
        print(own.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids, flush=True)
    os._exit(0)
os.wait()
print(model.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids)
""")
    child, fresh, parent = done.stdout.splitlines()
    assert child.startswith("child: this process was forked")
    assert fresh == parent == str(expected.token_ids)
    assert done.stderr == ""


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = python("import sys, edge_gemma; print({'numba', 'llvmlite', 'numpy'} & {*sys.modules})")
    assert done.stdout == "set()\n"
    assert edge_gemma.Gemma is Gemma
