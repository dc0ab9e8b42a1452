"""`Gemma.sequence()`: texts under their owner's hands have the logits, bit for bit, of any other way to read them."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma import (
    Cancelled,
    ContextOverflowError,
    EdgeGemmaError,
    Gemma,
    MemoryBudgetError,
    SamplingParams,
    TokenSequence,
)
from edge_gemma.engine.sampler import Sampler
from tests.conftest import TinyGguf
from tests.gemma.helpers import GREEDY, PROMPT, python

Ids = list[int]


@pytest.fixture(scope="module")
def windowed(tiny_gguf: TinyGguf) -> Iterator[Gemma]:
    """With windows of 8 keys, and longer texts than a page."""
    with Gemma(tiny_gguf("gemma2-2b"), threads=2, chunk=64, context=1000) as opened:
        yield opened


@pytest.fixture
def uncached(tiny_gguf: TinyGguf) -> Iterator[Gemma]:
    with Gemma(tiny_gguf("gemma2-2b"), threads=1, prefix_cache=0) as opened:
        yield opened
        assert pages(opened) == 0


def text(length: int, seed: int = 0) -> Ids:
    choose = random.Random(seed)
    return [choose.randrange(4, 260) for _ in range(length)]


def last_logits(model: Gemma, ids: Ids) -> NDArray[np.float32]:
    return model.logits(ids)[-1]


def pages(model: Gemma) -> int:
    """Bytes that somebody holds when everything that was dropped is gone."""
    gc.collect()
    return model.stats().page_bytes


def test_logits_are_those_of_the_model(windowed: Gemma) -> None:
    ids = text(700)
    whole = windowed.logits(ids)
    with windowed.sequence() as sequence:
        done = 0
        for count in (1, 1, 5, 64, 200, 1, 300, 128):
            sequence.append(ids[done : done + count])
            done += count
            np.testing.assert_array_equal(sequence.logits, whole[done - 1])
        assert sequence.token_ids == ids and len(sequence) == done == 700


def test_text_is_read_with_one_bos(windowed: Gemma) -> None:
    with windowed.sequence() as sequence:
        sequence.append("aa bb")
        sequence.append(" cc")
        ids = windowed.tokenize("aa bb") + windowed.tokenize(" cc", add_bos=False)
        assert sequence.token_ids == ids
        np.testing.assert_array_equal(sequence.logits, last_logits(windowed, ids))


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"seed": 3, "temperature": 1.5, "repetition_penalty": 1.3}])
def test_sampling_by_hand_is_generating(windowed: Gemma, params: dict[str, float]) -> None:
    made = windowed.generate(PROMPT, max_tokens=24, **params)  # type: ignore[arg-type]
    with windowed.sequence() as sequence:
        sequence.append(PROMPT)
        sampled: Ids = []
        while len(sampled) < len(made.token_ids):
            sampled.append(sequence.sample(**params))  # type: ignore[arg-type]
            assert sequence.sample(**params) == sampled[-1]  # type: ignore[arg-type]
            sequence.append([sampled[-1]])
        assert sampled == made.token_ids


@pytest.mark.parametrize("length", [699, 690, 600, 512, 511, 257, 256, 100, 9, 1, 0])
def test_going_back(windowed: Gemma, length: int) -> None:
    """Within the slack of windows, before what they have given back, and at the ends of pages."""
    ids, others = text(700), text(30, 1)
    with windowed.sequence() as sequence:
        sequence.append(ids)
        sequence.truncate(length)
        assert len(sequence) == length
        if length:
            np.testing.assert_array_equal(sequence.logits, last_logits(windowed, ids[:length]))
            sequence.truncate(length)
        sequence.append(others)
        np.testing.assert_array_equal(sequence.logits, last_logits(windowed, ids[:length] + others))
        assert sequence.token_ids == ids[:length] + others


def test_forks_go_their_own_ways(windowed: Gemma) -> None:
    ids = text(300)
    with windowed.sequence() as one, one.fork() as empty:
        one.append(ids)
        before = pages(windowed)
        with one.fork() as two:
            assert pages(windowed) == before, "shared"
            np.testing.assert_array_equal(one.logits, two.logits)
            one.append([5] * 40)
            two.append([6] * 70)
            three = two.fork()
            two.truncate(200)
            for sequence, tokens in (
                (one, ids + [5] * 40), (two, ids[:200]), (three, ids + [6] * 70),
            ):  # fmt: skip
                assert sequence.token_ids == tokens
                np.testing.assert_array_equal(sequence.logits, last_logits(windowed, tokens))
            three.close()
        empty.append([7])
        np.testing.assert_array_equal(empty.logits, last_logits(windowed, [7]))


def test_logits_belong_to_the_caller(windowed: Gemma) -> None:
    """Who writes to them changes no text, and of two forks none the other's."""
    with windowed.sequence() as one:
        one.append(PROMPT)
        want = one.sample(**GREEDY)
        one.logits[:] = -np.inf
        assert one.sample(**GREEDY) == want
        with one.fork() as two:
            assert two._state[1] is not one._state[1]
            two.logits[:] = 0
            np.testing.assert_array_equal(one.logits, two.logits)


def test_forks_sample_at_the_same_time(windowed: Gemma) -> None:
    """With penalties, for which logits are changed for a while."""
    params = {"seed": 1, "temperature": 2.0, "repetition_penalty": 5.0, "penalty_last_n": -1}
    with windowed.sequence() as first:
        first.append(text(200))
        want = Sampler(SamplingParams(**params)).sample(first.logits, None, first.token_ids, 200)  # type: ignore[arg-type]
        forks = [first.fork() for _ in range(3)]
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda s=s: got.extend(s.sample(**params) for _ in range(100))) for s in forks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(got) == {want} and len(got) == 300


def test_many_threads_use_one_sequence(windowed: Gemma) -> None:
    """Each call is whole: the text is some order of what they appended."""
    with windowed.sequence() as sequence:

        def use(n: int) -> None:
            for _ in range(10):
                sequence.append([10 + n, 20 + n])
                sequence.sample(temperature=1.0)
                sequence.fork().close()

        threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = sequence.token_ids
        pairs = list(zip(ids[::2], ids[1::2], strict=True))
        assert len(ids) == 80 and all(b == a + 10 for a, b in pairs) and len(set(pairs)) == 4
        np.testing.assert_array_equal(sequence.logits, last_logits(windowed, ids))


def test_what_is_wrong_is_named(windowed: Gemma) -> None:
    with windowed.sequence() as sequence:
        with pytest.raises(ValueError, match="there are no logits before the first token"):
            sequence.logits  # noqa: B018
        with pytest.raises(ValueError, match="there are no logits"):
            sequence.sample()
        with pytest.raises(ValueError, match="tokens: there must be at least one token"):
            sequence.append([])
        with pytest.raises(ValueError, match=r"tokens\[1\]: token id 9999"):
            sequence.append([2, 9999])
        with pytest.raises(TypeError, match="tokens"):
            sequence.append(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="temperature"):
            sequence.sample(temperature=-1)
        with pytest.raises(TypeError, match="heat"):
            sequence.sample(heat=1)  # type: ignore[call-arg]
        with pytest.raises(ContextOverflowError, match="tokens: 1001 tokens do not fit the context of 1000"):
            sequence.append([2] * 1001)
        sequence.append([2, 3])
        for length in (3, -1, 1.0, "1"):
            with pytest.raises(ValueError, match="length"):
                sequence.truncate(length)  # type: ignore[arg-type]
        assert sequence.token_ids == [2, 3]


def test_the_whole_context_can_be_used(windowed: Gemma) -> None:
    with windowed.sequence() as sequence:
        sequence.append(text(999))
        sequence.append([5])
        np.testing.assert_array_equal(sequence.logits, last_logits(windowed, [*text(999), 5]))
        with pytest.raises(ContextOverflowError):
            sequence.append([5])


def test_closing(uncached: Gemma) -> None:
    sequence = uncached.sequence()
    sequence.append([5])
    assert pages(uncached) > 0
    fork = sequence.fork()
    sequence.close()
    sequence.close()
    for call in (lambda: sequence.append([2]), lambda: sequence.logits, sequence.sample, sequence.fork):
        with pytest.raises(EdgeGemmaError, match="the sequence is closed"):
            call()
    np.testing.assert_array_equal(fork.logits, last_logits(uncached, [5]))
    fork.close()
    assert pages(uncached) == 0


def test_a_dropped_sequence_gives_its_pages_back(uncached: Gemma) -> None:
    sequence = uncached.sequence()
    sequence.append([5, 6])
    forks = [sequence.fork() for _ in range(3)]
    for fork in forks:
        fork.append([7])
    assert pages(uncached) > 0
    del sequence, fork, forks
    assert pages(uncached) == 0


def test_closing_while_another_thread_appends(tiny_gguf: TinyGguf) -> None:
    """That one is told; an answer beside it is whole."""
    with Gemma(tiny_gguf("gemma2-2b"), threads=1, chunk=16, prefix_cache=0) as model:
        want = model.generate(PROMPT, max_tokens=100, seed=1)
        for delay in (0.0, 0.001, 0.003, 0.01):
            sequence, told = model.sequence(), list[str]()

            def append(sequence: TokenSequence = sequence, told: list[str] = told) -> None:
                try:
                    sequence.append(text(1000))
                except EdgeGemmaError as error:
                    told.append(str(error))

            stream = model.stream(PROMPT, max_tokens=100, seed=1)
            thread = threading.Thread(target=append)
            thread.start()
            time.sleep(delay)
            sequence.close()
            thread.join(60)
            assert not thread.is_alive() and told == ["the sequence is closed"]
            assert "".join(stream) == want.text
        assert pages(model) == 0


def test_a_cancelled_append_leaves_it_as_it_was(windowed: Gemma) -> None:
    with windowed.sequence() as sequence:
        sequence.append(text(20))
        done = threading.Event()

        def keep_cancelling() -> None:
            while not done.wait(0.002):
                windowed.cancel()

        thread = threading.Thread(target=keep_cancelling)
        thread.start()
        with pytest.raises(Cancelled):
            for n in range(1000):
                sequence.append(text(900, n))
                sequence.truncate(20)
        done.set()
        thread.join()
        assert sequence.token_ids == text(20)
        sequence.append([9, 8])
        np.testing.assert_array_equal(sequence.logits, last_logits(windowed, [*text(20), 9, 8]))


def test_a_closed_model(tiny_gguf: TinyGguf) -> None:
    model = Gemma(tiny_gguf("gemma2-2b"), threads=1)
    sequence = model.sequence()
    sequence.append(PROMPT)
    model.close()
    for call in (lambda: sequence.append([2]), sequence.fork, sequence.sample, lambda: sequence.truncate(0)):
        with pytest.raises(EdgeGemmaError, match="the model is closed"):
            call()
    sequence.close()
    with pytest.raises(EdgeGemmaError, match="the model is closed"):
        model.sequence()


def test_memory_that_ends(tiny_gguf: TinyGguf) -> None:
    """An append for which there are no pages leaves the text as it was, and answers beside it are whole."""
    with Gemma(tiny_gguf("gemma2-2b"), threads=1, context=600, slots=1, prefix_cache=0) as model:
        want = model.generate(PROMPT, max_tokens=24, **GREEDY).token_ids
        sequences = []
        with pytest.raises(MemoryBudgetError, match="pages of the key-value cache"):
            for n in range(50):
                sequences.append(model.sequence())
                sequences[-1].append(text(300, n))
        assert len(sequences[-1]) == 0 and len(sequences) > 1
        sequences[0].close()
        sequences[-1].append(text(200, 99))
        np.testing.assert_array_equal(sequences[-1].logits, last_logits_alone(model, sequences, text(200, 99)))
        assert model.generate(PROMPT, max_tokens=24, **GREEDY).token_ids == want


def last_logits_alone(model: Gemma, others: list[TokenSequence], ids: Ids) -> NDArray[np.float32]:
    for other in others[:-1]:
        other.close()
    return last_logits(model, ids)


def test_keyboard_interrupts(tiny_gguf: TinyGguf) -> None:
    """At many times of many calls, several soon after each other: the text and its logits belong together."""
    done = python(f"""
import os, random, signal, threading, time
import numpy as np
from edge_gemma import Gemma

def interrupts(delay, count):
    time.sleep(delay)
    for _ in range(count):
        os.kill(os.getpid(), signal.SIGINT)

with Gemma({str(tiny_gguf("gemma2-2b"))!r}, threads=2, chunk=16) as model:
    sequence, choose, seen = model.sequence(), random.Random(1), 0
    sequence.append([2, 3])
    for i in range(30):
        thread = threading.Thread(target=interrupts, args=(0.001 * i, 1 + i % 3))
        try:
            thread.start()
            while True:
                sequence.append([choose.randrange(4, 200) for _ in range(choose.choice([1, 40, 300]))])
                sequence.truncate(choose.randrange(2, min(60, len(sequence))))
                sequence.fork().append([7])
        except KeyboardInterrupt:
            seen += 1
        for _ in range(5):
            try:
                thread.join()
                break
            except KeyboardInterrupt:
                pass
        ids = sequence.token_ids
        assert np.array_equal(sequence.logits, model.logits(ids)[-1]), i
    print(seen, len(ids) >= 2)
""")
    assert (done.stdout, done.stderr) == ("30 True\n", "")


def test_a_forked_child_is_told(tiny_gguf: TinyGguf) -> None:
    """Also while a thread of the parent's is in a call, and holds the sequence's lock."""
    done = python(f"""
import os, threading
from edge_gemma import ForkError, Gemma

model = Gemma({str(tiny_gguf("gemma2-2b"))!r}, threads=2, chunk=16)
sequence, busy = model.sequence(), model.sequence()
sequence.append([2, 3])
many = model.generate_many(["aa", "bb"], max_tokens=3)
next(many)
go_on = threading.Event()
model._engine._commands.put(go_on.wait)
thread = threading.Thread(target=busy.append, args=([2] * 50,))
thread.start()
while not busy._lock.locked():
    pass
if not os.fork():
    for call in (lambda: sequence.append([2]), lambda: sequence.logits, lambda: busy.append([2]), busy.sample,
                 lambda: busy.truncate(0), sequence.fork, model.sequence, model.stats, lambda: next(many),
                 lambda: model.generate_many(["a"]), lambda: model.generate("aa", n=2)):
        try:
            call()
        except ForkError:
            print("told", flush=True)
    for each in (sequence, busy, many, model):
        each.close()
    raise SystemExit
go_on.set()
print(os.waitstatus_to_exitcode(os.wait()[1]))
thread.join()
print(len(busy), len(list(many)))
""")
    assert (done.stdout, done.stderr) == ("told\n" * 11 + "0\n50 1\n", "")


def test_a_sequence_keeps_its_model(tiny_gguf: TinyGguf, windowed: Gemma) -> None:
    sequence = Gemma(tiny_gguf("gemma2-2b"), threads=1).sequence()
    gc.collect()
    sequence.append([2, 3])
    np.testing.assert_array_equal(sequence.logits, last_logits(windowed, [2, 3]))


def test_a_process_that_ends_with_sequences(tiny_gguf: TinyGguf) -> None:
    done = python(f"""
import threading
from edge_gemma import Gemma
model = Gemma({str(tiny_gguf("gemma2-2b"))!r})
sequence = model.sequence()
sequence.append([2, 3])
threading.Thread(target=lambda: [sequence.fork().append([5] * 1000) for _ in range(50)], daemon=True).start()
print("end")
""")
    assert (done.returncode, done.stdout) == (0, "end\n")
