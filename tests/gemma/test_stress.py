"""Whatever several threads do with one model at the same time, every call ends, and the model is whole afterwards."""

from __future__ import annotations

import faulthandler
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma import EdgeGemmaError, Gemma
from edge_gemma.gemma import Completion, Stream
from tests.gemma.helpers import GREEDY, PROMPT, answer, as_tuple, workers

ROUNDS, USERS, ACTIONS = 40, 5, 8
SECONDS = 60
"""For a round, which takes a tenth of a second: whoever is not done then hangs."""


class User:
    """A thread that does at random what one can do with a model, to streams of its own and to those of others."""

    def __init__(self, model: Gemma, expected: Completion, seed: int, shared: list[Stream]) -> None:
        self._model, self._expected, self._shared = model, expected, shared
        self._random = random.Random(seed)
        self.wrong: list[object] = []
        self.thread = threading.Thread(target=self._run, name=f"user {seed}", daemon=True)

    def _run(self) -> None:
        for _ in range(ACTIONS):
            try:
                self._random.choice(self._actions())()
            except EdgeGemmaError as error:
                if str(error) not in ("cancelled", "the model is closed"):
                    self.wrong.append(error)
            except Exception as error:
                self.wrong.append(error)
            time.sleep(self._random.choice([0, 0, 0.001, 0.005]))

    def _actions(self) -> list[Callable[[], object]]:
        return [self._begin, self._begin, self._next, self._next, self._next, self._end, self._drop, self._generate,
                self._logits, self._chunks, self._model.cancel]  # fmt: skip

    def _stream(self) -> Stream | None:
        return self._random.choice([*self._shared, None])

    def _begin(self) -> None:
        stream = self._model.stream(PROMPT, max_tokens=self._random.choice([1, 24]), **GREEDY)
        self._shared.append(stream)

    def _next(self) -> None:
        stream = self._stream()
        if stream is not None:
            next(stream, None)
            self._check(stream.completion)

    def _end(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.close()

    def _drop(self) -> None:
        self._shared.clear()

    def _generate(self) -> None:
        self._check(self._model.generate(PROMPT, max_tokens=8, **GREEDY))

    def _logits(self) -> None:
        best = self._model.logits(self._model.tokenize(PROMPT))[-1].argmax()
        if best != self._expected.token_ids[0]:
            self.wrong.append(best)

    def _chunks(self) -> None:
        chunks = self._model.logits_chunks(self._model.tokenize(PROMPT), 3)
        for _ in range(self._random.randrange(4)):
            next(chunks, None)

    def _check(self, made: Completion) -> None:
        """What there is of an answer is a beginning of the right one, whoever has made it."""
        if made.token_ids != self._expected.token_ids[: len(made.token_ids)]:
            self.wrong.append(made)


def together(users: list[User]) -> list[object]:
    """What went wrong, or who did not end."""
    for user in users:
        user.thread.start()
    end = time.monotonic() + SECONDS
    for user in users:
        user.thread.join(max(0, end - time.monotonic()))
    if any(user.thread.is_alive() for user in users):
        faulthandler.dump_traceback()
    return [user.thread.name for user in users if user.thread.is_alive()] + [w for user in users for w in user.wrong]


def test_many_users_of_one_model(model: Gemma, expected: Completion) -> None:
    for i in range(ROUNDS):
        shared: list[Stream] = []
        assert together([User(model, expected, USERS * i + user, shared) for user in range(USERS)]) == []
    assert answer(model) == as_tuple(expected)


def test_closed_in_the_midst_of_it(path: Path, expected: Completion) -> None:
    """By two threads at once; streams that were begun end, and calls are refused, also later."""
    for i in range(ROUNDS):
        model = Gemma(path, threads=2, chunk=16)
        streams: list[Stream] = []
        users = [User(model, expected, 1000 + USERS * i + user, streams) for user in range(USERS)]
        closing = [threading.Timer(0.0005 * i, model.close) for _ in range(2)]
        for timer in closing:
            timer.start()
        assert together(users) == []
        for timer in closing:
            timer.join(SECONDS)
            assert not timer.is_alive()
        with pytest.raises(EdgeGemmaError, match="the model is closed"):
            model.logits([2])
        assert all(next(stream, None) is None for stream in streams if stream.completion.text)
        assert workers() == []
