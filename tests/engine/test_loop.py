"""The engine on a model without kernels: whatever happens beside it, a sequence is what it is alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.engine.answer import Delta
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sampler import SamplingParams
from edge_gemma.engine.sequence import AllLogits, PromptRead
from edge_gemma.errors import Cancelled, EdgeGemmaError, MemoryBudgetError, NumericalError
from edge_gemma.graph.step import SequenceRows
from tests.engine import fake_runner
from tests.engine.fake_requests import alone, deltas, generation, prompts, submitted, tokens_of
from tests.engine.fake_runner import VOCABULARY, FakeRunner, logits_after, slow
from tests.engine.fake_schedules import differences


def test_many_at_once_are_what_each_is_alone(engine: Engine, runner: FakeRunner) -> None:
    given = prompts(12)
    made = [submitted(engine, prompt) for prompt in given]
    assert [tokens_of(m) for m in made] == [alone(prompt) for prompt in given]
    assert max(map(len, runner.steps)) > 1, "they ran together"


def test_rows_of_answers_and_a_piece_of_a_prompt_share_a_step(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.001)
    first = submitted(engine, [2, 3, 4], 200, params=SamplingParams(seed=1, temperature=0.01))
    next(d for d in first.channel if isinstance(d, Delta))
    second = submitted(engine, [5] * 30)
    assert tokens_of(second) == alone([5] * 30)
    assert any(1 in step and max(step) > 1 for step in runner.steps)
    engine.cancel(first)


def test_an_answer_that_nobody_reads_holds_up_nobody(engine: Engine, runner: FakeRunner) -> None:
    unread = submitted(engine, [2, 3], 10_000, params=SamplingParams(seed=7, temperature=5.0), backlog=3)
    for prompt in prompts(5):
        assert tokens_of(submitted(engine, prompt)) == alone(prompt)
    steps = len(runner.steps)
    time.sleep(0.05)
    assert len(runner.steps) == steps, "it waits for its reader"
    params = SamplingParams(seed=7, temperature=5.0)
    read = []
    for delta in deltas(unread):
        read += delta.token_ids
        if len(read) >= 30:
            break
    assert read == alone([2, 3], 30, params)[: len(read)]


def test_readers_that_come_back_take_turns(engine: Engine, runner: FakeRunner) -> None:
    params = [SamplingParams(seed=n, temperature=5.0) for n in range(12)]
    made = [submitted(engine, [2, 3], 60, params=p, backlog=2) for p in params]
    while engine.stats().waiting:
        time.sleep(0.001)
    assert [tokens_of(m) for m in made] == [alone([2, 3], 60, p) for p in params]
    assert max(map(len, runner.steps)) <= 4, "slots"


def test_the_same_prompt_is_not_read_again(engine: Engine, runner: FakeRunner) -> None:
    prompt = list(range(2, 35))
    first = tokens_of(submitted(engine, prompt))
    runner.steps.clear()
    again = deltas(submitted(engine, prompt))
    assert [t for d in again for t in d.token_ids] == first and again[-1].cached_tokens == len(prompt) - 1
    assert runner.steps[0] == [1]
    runner.steps.clear()
    longer = [*prompt, *first, 9, 9, 9]
    assert tokens_of(submitted(engine, longer)) == alone(longer)
    assert runner.steps[0] == [4], "the last token of the answer was not computed, and three are new"


def test_where_a_window_has_passed_a_prefix_is_read_again() -> None:
    runner = FakeRunner(window=8)
    engine = Engine(runner, slots=4, prefix_cache=10_000)
    prompt = list(range(2, 32))
    tokens_of(submitted(engine, prompt))
    branch = [*prompt[:10], 5, 6, 7]
    made = deltas(submitted(engine, branch))
    assert [t for d in made for t in d.token_ids] == alone(branch) and made[-1].cached_tokens == 0
    engine.close()


def test_choices_share_one_reading_of_the_prompt(engine: Engine, runner: FakeRunner) -> None:
    prompt, params = list(range(2, 30)), [SamplingParams(seed=s, temperature=3.0) for s in range(4)]
    others = [generation(engine, prompt, params=p) for p in params[1:]]
    first = submitted(engine, prompt, params=params[0], choices=others)
    assert [tokens_of(m) for m in (first, *others)] == [alone(prompt, 8, p) for p in params]
    assert sum(sum(step) for step in runner.steps) < 28 + 4 * 9


def test_progress_counts_to_the_end_of_the_prompt(engine: Engine) -> None:
    made = submitted(engine, [2] * 40, 1)
    seen = [(item.done, item.total) for item in made.channel if isinstance(item, PromptRead)]
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_a_cancelled_answer_ends_and_others_go_on(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.001)
    params = SamplingParams(seed=3, temperature=0.5)
    one, other = (submitted(engine, [2, n], 60, params=params) for n in (3, 4))
    next(d for d in one.channel if isinstance(d, Delta))
    engine.cancel(one)
    assert len(deltas(one)) < 5 and one.writer.finish_reason == "cancelled"
    assert tokens_of(other) == alone([2, 4], 60, params)


def test_a_cancel_breaks_off_the_step_of_its_own(runner: FakeRunner) -> None:
    engine = Engine(runner, slots=4, prefix_cache=0)
    reached = threading.Event()

    def long_step(_rows: list[SequenceRows]) -> None:
        reached.set()
        while not runner._cancelled:
            time.sleep(0.001)

    runner.on_step = long_step
    made = submitted(engine, [2] * 10)
    assert reached.wait(10)
    engine.cancel(made)
    assert list(deltas(made)) == []
    engine.close()
    assert runner.pool.tables == 0


def test_a_deadline_ends_an_answer_with_what_there_is(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.002)
    made = submitted(engine, [2, 3], 10_000, deadline=time.monotonic() + 0.1,
                     params=SamplingParams(seed=5, temperature=0.3))  # fmt: skip
    got = tokens_of(made)
    assert got == alone([2, 3], len(got), SamplingParams(seed=5, temperature=0.3))
    assert made.writer.finish_reason in ("deadline", "stop")
    waiting = generation(engine, [4], deadline=time.monotonic() - 1)
    engine.submit(waiting)
    assert tokens_of(waiting) == [] and waiting.writer.finish_reason == "deadline"


def test_an_error_of_one_sequence_is_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = generation(engine, [2, 3], 8), generation(engine, [3, 4], 8)

    def fail(*_arguments: Any) -> int:
        raise NumericalError("not finite")

    monkeypatch.setattr(bad.sampler, "sample", fail)
    engine.submit(bad)
    engine.submit(good)
    with pytest.raises(NumericalError, match="not finite"):
        tokens_of(bad)
    assert tokens_of(bad) == [], "told once"
    assert tokens_of(good) == alone([2, 3])


def test_a_step_that_fails_ends_those_in_it(engine: Engine, runner: FakeRunner) -> None:
    def fail(_rows: list[SequenceRows]) -> None:
        runner.on_step = lambda _: None
        raise ValueError("a fault")

    runner.on_step = fail
    with pytest.raises(ValueError, match="a fault"):
        tokens_of(submitted(engine, [2, 3]))
    assert tokens_of(submitted(engine, [2, 3])) == alone([2, 3])


def test_where_memory_ends_what_is_kept_goes_first_and_then_who_came_last() -> None:
    runner = FakeRunner(limit=100)
    engine = Engine(runner, slots=4, prefix_cache=10_000)
    given = [[n] * 30 for n in range(2, 8)]
    made = [submitted(engine, prompt, 20) for prompt in given]
    assert [tokens_of(m) for m in made] == [alone(prompt, 20) for prompt in given]
    with pytest.raises(MemoryBudgetError):
        tokens_of(submitted(engine, [5] * 101))
    assert tokens_of(submitted(engine, given[0], 20)) == alone(given[0], 20)
    engine.close()
    assert runner.pool.tables == 0


def test_priority_goes_first_and_nobody_waits_for_ever() -> None:
    runner = FakeRunner()
    engine = Engine(runner, slots=1, prefix_cache=0)
    order: list[str] = []
    gate = threading.Event()
    engine._commands.put(gate.wait)
    jobs = [("low", 0), *((f"high {i}", 1) for i in range(6))]
    made = [(name, submitted(engine, [3 + i], 1, priority=p)) for i, (name, p) in enumerate(jobs)]
    for name, each in made:
        each.channel.on_item = lambda name=name: order.append(name) if name not in order else None
    gate.set()
    for _, each in made:
        tokens_of(each)
    assert order[:4] == ["high 0", "high 1", "high 2", "low"]
    engine.close()


@pytest.mark.parametrize("rows", [1, 5, 16, 40, 100])
def test_logits_of_every_token(engine: Engine, rows: int) -> None:
    tokens = prompts(1, 3)[0] * 3
    channel: Channel[Any] = Channel(1, engine.wake)
    answers = [submitted(engine, prompt) for prompt in prompts(3)]
    engine.submit(AllLogits(tokens, rows, 7, lambda n: np.empty((n, VOCABULARY), np.float32), channel))
    parts = list(channel)
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)
    np.testing.assert_array_equal(np.concatenate(parts), [logits_after(tokens[: i + 1]) for i in range(len(tokens))])
    assert [tokens_of(m) for m in answers] == [alone(prompt) for prompt in prompts(3)]


def test_cancelled_logits_are_an_error(engine: Engine, runner: FakeRunner) -> None:
    runner.on_step = slow(0.01)
    channel: Channel[Any] = Channel(1, engine.wake)
    job = AllLogits([2] * 200, 200, 200, lambda n: np.empty((n, VOCABULARY), np.float32), channel)
    engine.submit(job)
    engine.cancel(job)
    with pytest.raises(Cancelled):
        list(channel)


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_closing_ends_what_runs_and_what_waits(runner: FakeRunner) -> None:
    engine = Engine(runner, slots=1, prefix_cache=100)
    runner.on_step = slow(0.001)
    made = [submitted(engine, [2, n], 10_000, params=SamplingParams(seed=1, temperature=9.0)) for n in (3, 4, 5)]
    engine.close()
    engine.close()
    for each in made:
        try:
            deltas(each)
        except EdgeGemmaError as error:  # one that the engine had not heard of yet
            assert str(error) == "the model is closed"
    with pytest.raises(EdgeGemmaError, match="the model is closed"):
        engine.submit(made[0])
    with pytest.raises(EdgeGemmaError, match="the model is closed"):
        engine.stats()
    engine.cancel_all()


@pytest.mark.parametrize("delay", [0.0, 0.0003, 0.001])
def test_whoever_submits_while_it_closes_is_told(delay: float) -> None:
    for _ in range(30):
        engine = Engine(FakeRunner(), slots=2, prefix_cache=0)
        closer = threading.Timer(delay, engine.close)
        closer.start()
        for prompt in prompts(20):
            try:
                tokens_of(submitted(engine, prompt, 2))
            except EdgeGemmaError as error:
                assert str(error) == "the model is closed"
        closer.join()


def test_a_fault_of_the_engine_itself_reaches_everybody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(engine._scheduler, "next_step", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        tokens_of(submitted(engine, [2]))
    assert "the engine has failed" in caplog.text
    with pytest.raises(EdgeGemmaError, match="closed"):
        engine.submit(generation(engine, [2]))


# ---- any schedule ----------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_any_schedule(seed: int) -> None:
    assert differences(seed) == []


def test_a_difference_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows whose tables are one token behind."""
    monkeypatch.setattr(fake_runner, "logits_after", lambda tokens: logits_after(tokens[:-1]))
    assert any(differences(seed) for seed in range(5))
