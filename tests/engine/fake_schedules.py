"""Random schedules of the engine without kernels: hundreds a second. `schedules.py` has those on real kernels.

Prompts that begin alike, cancels, slow readers, windows, memory that ends: each answer is what it is alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sampler import SamplingParams
from edge_gemma.engine.sequence import Generation
from edge_gemma.errors import MemoryBudgetError
from tests.engine.fake_requests import alone, prompts, submitted, tokens_of
from tests.engine.fake_runner import FakeRunner


@dataclass
class Asked:
    """A request, and what it was."""

    generation: Generation
    prompt: list[int]
    count: int
    params: SamplingParams

    def difference(self, limit: int) -> str:
        """Empty if the answer is what it is alone, or the beginning of that if it was ended early."""
        want = alone(self.prompt, self.count, self.params)
        try:
            got = tokens_of(self.generation)
        except MemoryBudgetError as error:
            return "" if len(self.prompt) + self.count > limit - 40 else f"{self.prompt}: {error}"
        whole = not self.generation.cancelled
        return "" if got == (want if whole else want[: len(got)]) else f"{self.prompt}: {got} instead of {want}"


def differences(seed: int) -> list[str]:
    """What the schedule of this seed has that its requests alone have not."""
    choose = random.Random(seed)
    limit = choose.choice([60, 150, 10**6])
    runner = FakeRunner(choose.randrange(1, 41), choose.choice([None, 4, 20]), limit)
    engine = Engine(runner, slots=choose.randrange(1, 7), prefix_cache=choose.choice([0, 50, 10_000]))
    found = [said for each in _asked(engine, choose) if (said := each.difference(limit))]
    engine.close()
    if runner.pool.tables or runner.pool.bytes_in_use:
        found.append(f"{runner.pool.tables} tables are left")
    return found


def _asked(engine: Engine, choose: random.Random) -> list[Asked]:
    """All of them submitted; some are cancelled at once."""
    stem, asked = prompts(1, choose.randrange(2**32))[0], []
    for n in range(choose.randrange(2, 9)):
        own = prompts(1, choose.randrange(2**32))[0]
        prompt = [*stem[: choose.randrange(len(stem) + 1)], *own[: choose.randrange(1, 12)]]
        params = SamplingParams(seed=n, temperature=choose.choice([0.0, 1.0]))
        count, backlog = choose.randrange(1, 12), choose.choice([1, 3, 100])
        asked.append(Asked(submitted(engine, prompt, count, params=params, backlog=backlog), prompt, count, params))
        if choose.random() < 0.2:
            engine.cancel(choose.choice(asked).generation)
    return asked
