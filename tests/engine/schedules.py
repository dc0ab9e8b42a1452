"""Random schedules on real kernels: many requests at once, as no two runs of a server are alike. Knows no test.

A schedule is made from a seed: how a model is opened (pages, cache, chunk, threads, slots), and which requests come,
wait, are read slowly, cancelled, or grow by hand. `differences` runs it and says what differs from the same requests
alone, each in a model that was opened for it with other settings.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_gemma import Gemma, MemoryBudgetError
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import Generation
from edge_gemma.engine.speculation import PromptLookup, Speculation
from edge_gemma.streams import Stream

CONTEXT = 1000
VOCABULARY = 250


def opened(path: Path, choose: random.Random) -> Gemma:
    """Any settings: none of them may be seen in a result."""
    model = Gemma(
        path,
        context=CONTEXT,
        threads=choose.choice([1, 1, 2]),
        chunk=choose.choice([1, 3, 16, 64, 256]),
        slots=choose.choice([1, 2, 5, 16]),
        prefix_cache=choose.choice([0, 2**20, 2**30]),
    )
    pool = model._runner.pool
    pool.limit_bytes = int(model.plan.kv_cache * choose.choice([1.0, 1.5, 4.0]))
    return model


def stem_of(choose: random.Random) -> list[int]:
    """What prompts have in common; some are longer than a page."""
    return [choose.randrange(4, VOCABULARY) for _ in range(choose.choice([1, 20, 20, 270]))]


def prompt_of(choose: random.Random, stem: list[int]) -> list[int]:
    """Some begin as others do, and some repeat themselves."""
    length = choose.choice([1, 5, 40])
    tail = [choose.randrange(4, VOCABULARY) for _ in range(choose.choice([2, length]))]
    return [*stem[: choose.choice([0, len(stem) // 2, len(stem)])], *(tail * length)[:length]]


def options(choose: random.Random) -> dict[str, Any]:
    return {
        "max_tokens": choose.choice([1, 4, 20]),
        "temperature": choose.choice([0.0, 1.0, 3.0]),
        "top_k": choose.choice([0, 40]),
        "repetition_penalty": choose.choice([1.0, 1.2]),
        "seed": choose.randrange(3),
    }


class Alone:
    """What requests give by themselves, by the definition: logits of all of a text, of which tokens are sampled."""

    def __init__(self, path: Path) -> None:
        self._model = Gemma(path, context=CONTEXT, threads=1, prefix_cache=0)
        self.logits = cache(self._logits)
        self.tokens = cache(self._tokens)

    def _logits(self, text: tuple[int, ...]) -> Any:
        return self._model.logits(text)[-1]

    def _tokens(self, prompt: tuple[int, ...], choice: int, given: tuple[tuple[str, Any], ...]) -> list[int]:
        params = dict(given)
        count = params.pop("max_tokens")
        sampler, text = Sampler(SamplingParams(**params), choice), list(prompt)
        with self._model.sequence() as sequence:
            sequence.append(text)
            while True:
                text.append(sampler.sample(sequence.logits, None, text, len(text)))
                if len(text) - len(prompt) == count or text[-1] in self._model.tokenizer.eog_ids:
                    return text[len(prompt) :]
                sequence.append(text[-1:])

    def close(self) -> None:
        self._model.close()


class Schedule:
    """The requests of a seed, in threads of their own."""

    def __init__(self, path: Path, seed: int, alone: Alone) -> None:
        self._choose, self._alone = random.Random(seed), alone
        self._model = opened(path, self._choose)
        self._stem = stem_of(self._choose)
        self.differences: list[str] = []

    def run(self) -> None:
        """All of it; nothing is left in the model afterwards."""
        acts = [self._choose.choice([self._stream, self._stream, self._choices, self._text, self._many])
                for _ in range(self._choose.randrange(1, 7))]  # fmt: skip
        threads = [threading.Thread(target=self._do, args=(act, self._choose.random())) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            if thread.is_alive():
                self.differences.append("a thread hangs")
        self._model.close()

    def _do(self, act: Callable[[random.Random], None], seed: float) -> None:
        try:
            act(random.Random(seed))
        except MemoryBudgetError:  # texts that others hold take what there is
            pass
        except Exception as error:
            self.differences.append(f"{act.__name__}: {error!r}")

    def _check(self, what: str, prompt: list[int], choice: int, given: dict[str, Any], got: list[int]) -> None:
        """`got` may have been ended early."""
        want = self._alone.tokens(tuple(prompt), choice, tuple(given.items()))
        if got != want[: len(got)]:
            self.differences.append(f"{what}: {prompt} with {given}: {got} instead of {want}")

    def _stream(self, choose: random.Random) -> None:
        """Read to some place, slowly or not, with or without speculation; then to the end, or cancelled, or dropped."""
        prompt, given = prompt_of(choose, self._stem), options(choose)
        stream = self._model.stream(prompt, priority=choose.randrange(2), **given)
        if choose.random() < 0.5:
            self._speculate(stream)
        for _ in range(choose.choice([0, 1, 5])):
            next(stream, None)
        if choose.random() < 0.3:
            stream.close()
        for _ in stream:
            pass
        made = stream.completion
        self._check("stream", prompt, 0, given, made.token_ids)
        if made.finish_reason != "cancelled":
            self._check_whole("stream", prompt, 0, given, made.token_ids)

    def _check_whole(self, what: str, prompt: list[int], choice: int, given: dict[str, Any], got: list[int]) -> None:
        self._check(what, prompt, choice, given, got)
        if len(got) != len(self._alone.tokens(tuple(prompt), choice, tuple(given.items()))):
            self.differences.append(f"{what}: {prompt} with {given} is not whole: {got}")

    def _speculate(self, stream: Stream) -> None:
        generation: Generation = stream._generation
        generation.speculation = Speculation(PromptLookup(1), self._model._engine.step_times)

    def _choices(self, choose: random.Random) -> None:
        prompt, given, n = prompt_of(choose, self._stem), options(choose), choose.randrange(1, 5)
        made = self._model.generate(prompt, n=n, **given)
        for choice, each in enumerate(made):
            self._check_whole(f"choice {choice} of {n}", prompt, choice, given, each.token_ids)

    def _many(self, choose: random.Random) -> None:
        given, several = options(choose), [prompt_of(choose, self._stem) for _ in range(choose.randrange(5))]
        for number, made in self._model.generate_many(several, **given):
            self._check_whole("many", several[number], 0, given, made.token_ids)

    def _text(self, choose: random.Random) -> None:
        """Grown, gone back in and forked; each time with the logits of the whole, bit for bit."""
        with self._model.sequence() as sequence:
            for _ in range(choose.randrange(1, 4)):
                sequence.append(prompt_of(choose, self._stem))
                if choose.random() < 0.5:
                    sequence.truncate(choose.randrange(1, min(len(sequence), 400) + 1))
                with sequence.fork() as fork:
                    fork.append([7])
                    self._check_logits(fork.token_ids, fork.logits)
                self._check_logits(sequence.token_ids, sequence.logits)

    def _check_logits(self, text: list[int], got: Any) -> None:
        if not np.array_equal(got.view(np.int32), self._alone.logits(tuple(text)).view(np.int32)):
            self.differences.append(f"logits of {text}")


def differences(path: Path, seed: int, alone: Alone) -> list[str]:
    """What the schedule of this seed has that the same requests alone have not."""
    schedule = Schedule(path, seed, alone)
    schedule.run()
    return schedule.differences
