"""What callers and memory do to the engine at the worst moment: it ends nobody else, and nothing is left."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest

from edge_gemma.engine.channel import Channel
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sampler import SamplingParams
from edge_gemma.engine.sequence import AllLogits, Extension, Generation, Held, PromptRead
from edge_gemma.engine.speculation import Speculation
from edge_gemma.errors import EdgeGemmaError, MemoryBudgetError
from edge_gemma.graph.step import SequenceRows
from tests.engine.fake_requests import alone, deltas, generation, prompts, submitted, tokens_of
from tests.engine.fake_runner import VOCABULARY, FakeRunner, logits_after, slow


def lasting(prompt: list[int], count: int) -> SamplingParams:
    """With these an answer of so many tokens has no end before."""
    every = (SamplingParams(seed=seed, temperature=5.0) for seed in range(1000))
    return next(params for params in every if len(alone(prompt, count, params)) == count)


ENDLESS = lasting([2, 3], 100)


def limited(limit: int, **options: Any) -> tuple[FakeRunner, Engine]:
    runner = FakeRunner(limit=limit)
    return runner, Engine(runner, **{"slots": 4, "prefix_cache": 0, **options})


def quiet(engine: Engine, runner: FakeRunner) -> None:
    """Return when the engine computes nothing any more."""
    steps = -1
    while steps != len(runner.steps):
        steps = len(runner.steps)
        time.sleep(0.03)


def read_extension(engine: Engine, tokens: list[int], known: int, held: Held) -> Any:
    channel: Channel[Any] = Channel(1, engine.wake)
    engine.submit(Extension(tokens, known, held, channel))
    return next(channel)


# ---- memory that ends ------------------------------------------------------------------------------------------------


def test_an_answer_that_nobody_reads_gives_up_its_memory() -> None:
    """And is continued all the same when its reader comes back."""
    runner, engine = limited(60)
    params = lasting([2] * 30, 29)
    unread = submitted(engine, [2] * 30, 29, params=params, backlog=5)
    quiet(engine, runner)
    for prompt in ([3] * 40, [4] * 40):
        assert tokens_of(submitted(engine, prompt, 15)) == alone(prompt, 15)
    assert tokens_of(unread) == alone([2] * 30, 29, params)
    engine.close()
    assert runner.pool.tables == 0


def test_two_that_do_not_fit_together_take_turns_by_their_readers() -> None:
    _, engine = limited(70)
    params = [lasting([2 + n] * 20, 30) for n in range(2)]
    made = [submitted(engine, [2 + n] * 20, 30, params=p, backlog=2) for n, p in enumerate(params)]
    readers = [(item for item in each.channel if not isinstance(item, PromptRead)) for each in made]
    got: list[list[int]] = [[], []]
    for _ in range(30):
        for reader, tokens in zip(readers, got, strict=True):
            tokens.extend(delta.token_ids[0] for delta in [next(reader, None)] if delta)
    assert got == [alone([2 + n] * 20, 30, p) for n, p in enumerate(params)]
    engine.close()


def test_choices_that_wait_give_up_their_memory() -> None:
    runner, engine = limited(80, slots=1)
    prompt, params = [5] * 30, [SamplingParams(seed=n, temperature=5.0) for n in range(3)]
    params[0] = lasting(prompt, 25)
    others = [generation(engine, prompt, 25, params=p) for p in params[1:]]
    first = submitted(engine, prompt, 25, params=params[0], choices=others)
    assert [tokens_of(m) for m in (first, *others)] == [alone(prompt, 25, p) for p in params]
    engine.close()
    assert runner.pool.tables == 0


@pytest.mark.parametrize("rows", [3, 5, 16, 70])
def test_logits_that_are_computed_again_are_handed_out_once(rows: int) -> None:
    runner, engine = limited(100)
    tokens = (prompts(1, 5)[0] * 40)[:70]
    params = [lasting([2 + n] * 8, 40) for n in range(2)]
    channel: Channel[Any] = Channel(100, engine.wake)
    runner.on_step = slow(0.001)
    answers = [submitted(engine, [2 + n] * 8, 40, params=params[n]) for n in range(2)]
    engine.submit(AllLogits(tokens, rows, 7, lambda n: np.empty((n, VOCABULARY), np.float32), channel))
    parts = list(channel)
    assert [len(part) for part in parts] == [len(tokens[i : i + rows]) for i in range(0, 70, rows)]
    np.testing.assert_array_equal(np.concatenate(parts), [logits_after(tokens[: i + 1]) for i in range(70)])
    assert [tokens_of(a) for a in answers] == [alone([2 + n] * 8, 40, params[n]) for n in range(2)]
    assert sum(map(sum, runner.steps)) > 70 + 2 * 47, "something was computed again"
    engine.close()


def test_progress_goes_forward_and_what_was_cached_is_of_the_prompt() -> None:
    runner, engine = limited(100, prefix_cache=1000)
    runner.on_step = slow(0.0005)
    made = [submitted(engine, [n] * 30, 25, params=lasting([n] * 30, 25)) for n in range(2, 8)]
    for each in made:
        items = list(each.channel)
        done = [item.done for item in items if isinstance(item, PromptRead)]
        assert done == sorted(set(done)) and done[-1] == 30, done
        assert all(item.cached_tokens == 0 for item in items if not isinstance(item, PromptRead))
    engine.close()


def test_a_prefix_cache_keeps_its_budget() -> None:
    """Also where sequences end by errors, and where texts are held by somebody else."""
    runner, engine = limited(10**6, prefix_cache=100)
    held = Held()
    read_extension(engine, [9] * 300, 0, held)
    for prompt in ([2] * 60, [3] * 30, [4] * 60, [5] * 20):
        tokens_of(submitted(engine, prompt, 5))
        assert engine.call(lambda: runner.pool.bytes_in_use) <= 100 + 300
        assert tokens_of(submitted(engine, prompt, 5)) == alone(prompt, 5)
    assert deltas(submitted(engine, [5] * 20, 1))[-1].cached_tokens == 19, "there is a budget beside what is held"
    bad = generation(engine, [6] * 90, 5)
    bad.sampler.sample = lambda *_: 1 / 0  # type: ignore[method-assign]
    engine.submit(bad)
    with pytest.raises(ZeroDivisionError):
        tokens_of(bad)
    assert engine.call(lambda: runner.pool.bytes_in_use) <= 100 + 300
    engine.close()


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_a_chunk_of_one_row() -> None:
    """A reader comes back to its answer while a prompt is read."""
    runner = FakeRunner(chunk=1)
    engine = Engine(runner, slots=4, prefix_cache=0)
    first = submitted(engine, [2, 3], 60, params=ENDLESS, backlog=2)
    quiet(engine, runner)
    runner.on_step = slow(0.001)
    second = submitted(engine, [5] * 40, 3)
    time.sleep(0.01)
    assert tokens_of(first) == alone([2, 3], 60, ENDLESS)
    assert tokens_of(second) == alone([5] * 40, 3)
    engine.close()


def test_a_prompt_of_low_priority_is_read_beside_many_of_a_higher() -> None:
    runner = FakeRunner(chunk=8)
    engine = Engine(runner, slots=2, prefix_cache=0)
    runner.on_step = slow(0.001)
    low = submitted(engine, [2] * 60, 1)
    others = [submitted(engine, [3] * 60, 1, priority=5) for _ in range(40)]
    assert tokens_of(low) == alone([2] * 60, 1)
    assert sum(other.ended for other in others) < 20
    engine.close()


class Foretold:
    """A proposer that knows the text; `fails`: the call that raises."""

    seconds = 0.0

    def __init__(self, text: list[int], fails: int = -1) -> None:
        self.text, self.fails, self.calls, self.closed = text, fails, 0, 0

    def propose(self, tokens: Any, most: int) -> list[int]:
        self.calls += 1
        if self.calls == self.fails:
            raise MemoryBudgetError("no room for the draft model's pages")
        return self.text[len(tokens) : len(tokens) + most]

    def close(self) -> None:
        self.closed += 1


def speculating(engine: Engine, prompt: list[int], count: int, proposer: Foretold, params: Any = ENDLESS) -> Generation:
    return submitted(engine, prompt, count, params=params, speculation=Speculation(proposer, engine.step_times))


def test_a_proposal_of_a_step_that_was_broken_off_is_forgotten(engine: Engine, runner: FakeRunner) -> None:
    """Else the next step, with another's rows in it, has more rows than there may be."""
    text = [2, 3, *alone([2, 3], 40, ENDLESS)]
    started, go_on = threading.Event(), threading.Event()

    def wait(rows: list[SequenceRows]) -> None:
        if len(rows[0].tokens) == 16 and not started.is_set():
            started.set()
            go_on.wait(10)

    runner.on_step = wait
    one = speculating(engine, [2, 3], 40, Foretold(text))
    assert started.wait(10)
    other = submitted(engine, [4] * 40, 3)
    runner.cancel()
    go_on.set()
    assert tokens_of(one) == text[2:]
    assert tokens_of(other) == alone([4] * 40, 3)


def test_a_proposer_that_fails_ends_no_answer(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    text = [2, 3, *alone([2, 3], 40, ENDLESS)]
    proposer = Foretold(text, fails=2)
    assert tokens_of(speculating(engine, [2, 3], 40, proposer)) == text[2:]
    assert proposer.closed == 1 and "proposing tokens has failed" in caplog.text


def test_a_proposal_for_which_there_is_no_memory_ends_no_answer() -> None:
    every = (SamplingParams(seed=seed, temperature=5.0) for seed in range(1000))
    params = next(p for p in every if 10 < len(alone([2, 3], 60, p)) < 20)
    text = [2, 3, *alone([2, 3], 60, params)]
    _, engine = limited(len(text) - 1)
    assert tokens_of(speculating(engine, [2, 3], 60, Foretold([*text, *[5] * 20]), params)) == text[2:]
    engine.close()


def test_a_cancel_just_before_a_step_is_heard(engine: Engine, runner: FakeRunner) -> None:
    """Between the look at cancelled sequences and the step."""
    made = generation(engine, [2] * 16, 3)
    compute = engine._propose

    def cancel_then(step: Any) -> None:
        engine._propose = compute  # type: ignore[method-assign]
        engine.cancel(made)
        compute(step)

    engine._propose = cancel_then  # type: ignore[method-assign]
    engine.submit(made)
    assert tokens_of(made) == [] and runner.steps == []


# ---- callers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1e10, 1e300])
def test_a_deadline_in_the_far_future(engine: Engine, runner: FakeRunner, seconds: float) -> None:
    unread = submitted(engine, [2, 3], 100, params=ENDLESS, backlog=2, deadline=time.monotonic() + seconds)
    quiet(engine, runner)
    assert tokens_of(submitted(engine, [4])) == alone([4])
    assert tokens_of(unread) == alone([2, 3], 100, ENDLESS)


def test_a_listener_that_fails_ends_no_engine(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    made = generation(engine, [2, 3])
    made.channel.on_item = lambda: 1 / 0  # type: ignore[assignment, return-value]
    engine.submit(made)
    assert tokens_of(made) == alone([2, 3]) and tokens_of(submitted(engine, [4])) == alone([4])
    assert "could not be told" in caplog.text


def test_an_error_while_a_sequence_begins_is_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generation(engine, [2, 3])
    monkeypatch.setattr(made, "begin", lambda _cached: 1 / 0)
    engine.submit(made)
    with pytest.raises(ZeroDivisionError):
        tokens_of(made)
    assert tokens_of(submitted(engine, [4])) == alone([4])


def test_a_call_from_the_engines_own_thread_is_an_error(engine: Engine) -> None:
    """What a finalizer or a log handler may do there would wait for itself."""
    for call in (engine.stats, lambda: engine.submit(generation(engine, [2]))):
        with pytest.raises(EdgeGemmaError, match="by its own thread"):
            engine.call(call)


def test_a_fault_at_the_end_leaves_nobody_waiting(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    caught: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", caught.append)
    monkeypatch.setattr(runner, "close", fail)
    engine = Engine(runner, slots=2, prefix_cache=0)
    engine.close()
    late = generation(engine, [3])
    engine._do(lambda: engine._admit(late))  # it looked whether the engine is open before that was closed
    assert late.channel.ended and len(caught) == 1


def test_choices_of_an_answer_that_was_cancelled_are_cancelled(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.005)
    other = generation(engine, [2] * 100)
    first = submitted(engine, [2] * 100, choices=[other])
    next(first.channel)
    engine.cancel_all()
    assert tokens_of(first) == tokens_of(other) == []
    assert other.cancelled and other.writer.finish_reason == "cancelled"


# ---- texts that somebody holds ---------------------------------------------------------------------------------------


def test_a_held_text_that_is_closed_ends_no_step_of_others(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.002)
    other = submitted(engine, [2, 3], 60, params=ENDLESS)
    next(d for d in other.channel if not isinstance(d, PromptRead))
    held, channel = Held(), Channel[Any](1, engine.wake)
    engine.submit(Extension([4] * 400, 0, held, channel))
    time.sleep(0.02)
    engine.later(held.close)
    with pytest.raises(EdgeGemmaError, match="the sequence is closed"):
        next(channel)
    assert tokens_of(other) == alone([2, 3], 60, ENDLESS)[1:]
    with pytest.raises(EdgeGemmaError, match="the sequence is closed"):
        read_extension(engine, [4, 5], 0, held)


def test_extensions_that_were_left_behind(engine: Engine, runner: FakeRunner) -> None:
    """At any time, as by Ctrl-C; the next one is of the text, whatever of the last was read, and so is the cache."""
    choose, held, text = random.Random(3), Held(), [2, 3, 4]
    runner.on_step = slow(0.0003)
    for n in range(60):
        wrong = [*text, *[10 + n % 20] * choose.randrange(1, 60)]
        channel: Channel[Any] = Channel(1, engine.wake)
        left = Extension(wrong, len(text), held, channel)
        engine.submit(left)
        time.sleep(choose.choice([0, 0.0005, 0.002]))
        if choose.random() < 0.5:
            engine.cancel(left)
        new = [*text, *(choose.randrange(2, VOCABULARY) for _ in range(choose.choice([1, 3, 40])))]
        np.testing.assert_array_equal(read_extension(engine, new, len(text), held), logits_after(new))
        text = new[: choose.randrange(3, len(new) + 1)][:50]
        assert tokens_of(submitted(engine, new, 3)) == alone(new, 3)
    engine.later(held.close)


def test_a_text_that_grows_token_by_token_leaves_the_cache_to_others(engine: Engine) -> None:
    prompt = list(range(2, 35))
    tokens_of(submitted(engine, prompt))
    held = Held()
    for length in range(1, 300):
        read_extension(engine, [5] * length, length - 1, held)
    assert engine.stats().checkpoints < 10
    assert deltas(submitted(engine, prompt, 1))[-1].cached_tokens == len(prompt) - 1
    engine.later(held.close)


def test_stats_count_prompts_answers_and_what_was_kept(engine: Engine) -> None:
    prompt = list(range(2, 35))
    first = tokens_of(submitted(engine, prompt))
    second = tokens_of(submitted(engine, prompt))
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (33 + 1, 32)
    assert stats.completion_tokens == len(first) + len(second) and stats.running == stats.waiting == 0
