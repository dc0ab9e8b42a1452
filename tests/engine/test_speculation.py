"""Proposals change the speed of an answer and nothing of its text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.speculation import MOST, DraftModel, PromptLookup, Speculation, StepTimes
from tests.engine.fake_requests import alone, generation, tokens_of
from tests.engine.fake_runner import FakeRunner


class Oracle:
    """Foretells the right tokens, but for every `wrong`th."""

    def __init__(self, text: list[int], wrong: int) -> None:
        self._text, self._wrong = text, wrong
        self.closed, self.seconds = False, 0.0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        coming = self._text[len(tokens) : len(tokens) + most]
        return [t + (i % self._wrong == 0) for i, t in enumerate(coming, len(tokens))]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("wrong", [1, 2, 5, 10**6])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(seed=5, temperature=2.0)])
@pytest.mark.parametrize("window", [None, 30])
def test_the_text_is_the_same(wrong: int, params: SamplingParams, window: int | None) -> None:
    runner = FakeRunner(window=window)
    engine = Engine(runner, slots=4, prefix_cache=1000)
    prompt = [2, 3, 4]
    want = alone(prompt, 60, params)
    oracle = Oracle([*prompt, *want], wrong)
    made = generation(engine, prompt, 60, params=params, speculation=Speculation(oracle, engine.step_times))
    engine.submit(made)
    assert tokens_of(made) == want
    assert oracle.closed
    if wrong > 100 and len(want) > 10:
        assert len(runner.steps) < len(want) / 2
    again = generation(engine, prompt, 60, params=params)
    engine.submit(again)
    assert tokens_of(again) == want, "what was kept of it has no row of a token that was not the text's"
    engine.close()
    assert runner.pool.tables == 0


def test_what_followed_the_last_time_is_proposed() -> None:
    lookup = PromptLookup(3)
    text = [5, 1, 2, 3, 4, 9, 8, 1, 2, 3]
    assert lookup.propose(text, 3) == [4, 9, 8]
    assert lookup.propose([*text, 4], 2) == [9, 8]
    assert lookup.propose([*text, 4, 7], 5) == []
    later = [*text, 4, 7, 6, 1, 2, 3]
    assert lookup.propose(later, 2) == [4, 7], "the latest place counts"
    assert PromptLookup(3).propose([1, 2], 5) == []


def test_proposals_are_as_long_as_they_pay() -> None:
    times = StepTimes()
    for rows in range(1, 17):
        times.note(rows, 1 + 0.05 * (rows - 1))
    sure, doubtful, wrong = (Speculation(PromptLookup(), times) for _ in range(3))
    sure.note(200, 200)
    for _ in range(100):
        doubtful.note(2, 1)
        wrong.note(1, 0)
    assert sure.best_length(MOST) == MOST
    assert 1 <= doubtful.best_length(MOST) < MOST
    assert wrong.best_length(MOST) == 0
    dear = StepTimes()
    for rows in range(1, 17):
        dear.note(rows, rows)
    assert Speculation(PromptLookup(), dear).best_length(MOST) == 0


def test_what_does_not_pay_is_tried_again_from_time_to_time() -> None:
    never = Speculation(PromptLookup(), StepTimes())
    for _ in range(100):
        never.note(1, 0)
    text = [1, 2, 3] * 50
    lengths = [len(never.propose(text, MOST)) for _ in range(200)]
    assert 0 < sum(length > 0 for length in lengths) < 10


def test_times_between_measured_ones() -> None:
    times = StepTimes()
    assert times.ratio(1) == 1 and times.ratio(4) > 1
    times.note(1, 2.0)
    times.note(9, 4.0)
    assert (times.ratio(1), times.ratio(5), times.ratio(9)) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(seed=5, temperature=2.0)])
@pytest.mark.parametrize("window", [None, 3])
def test_a_draft_of_the_same_model_foretells_everything(params: SamplingParams, window: int | None) -> None:
    runner, drafts = FakeRunner(), FakeRunner(chunk=5, window=window)
    engine = Engine(runner, slots=4, prefix_cache=0)
    prompt = list(range(2, 20))
    draft = DraftModel(drafts, Sampler(params))
    made = generation(engine, prompt, 40, params=params, speculation=Speculation(draft, engine.step_times))
    engine.submit(made)
    want = alone(prompt, 40, params)
    assert tokens_of(made) == want
    assert made.speculation is not None and made.speculation.proposed == made.speculation.accepted
    engine.close()
    assert drafts.pool.tables == 0
