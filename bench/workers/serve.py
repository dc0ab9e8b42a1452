"""The serving half of a worker process: lines of JSON in, lines of JSON out; and what is timed of every engine.

Standard library only: interpreters of other projects import it too.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Work = Callable[[], object]


class Engine:
    """A model that reads random tokens: no tokenizing and no sampling. Times are seconds.

    A subclass opens it, sets `vocabulary`, clears the cache, and makes the work of a step.
    """

    vocabulary = 0

    def __init__(self) -> None:
        self._random = random.Random(0)

    def work(self, ids: list[int], *, every: bool = False) -> Work:
        """What appends `ids` at once, made ready to be timed; logits of the last one, or of `every` one."""
        raise NotImplementedError

    def prompt(self, tokens: int) -> float:
        """Append so many tokens at once, logits of the last one only."""
        return _seconds([self.work(self._ids(tokens))])

    def generate(self, tokens: int) -> float:
        """Append so many tokens one by one, logits of each."""
        return _seconds([self.work(self._ids(1)) for _ in range(tokens)])

    def steps(self, rows: Sequence[int], repeats: int) -> dict[str, float]:
        """Median time of one step of each number of rows, logits of every row."""
        times: dict[str, list[float]] = {str(n): [] for n in rows}
        for _ in range(repeats):
            for n in rows:
                times[str(n)].append(_seconds([self.work(self._ids(n), every=True)]))
        return {n: statistics.median(values) for n, values in times.items()}

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(self.vocabulary) for _ in range(count)]


def _seconds(works: Sequence[Work]) -> float:
    start = time.perf_counter()
    for work in works:
        work()
    return time.perf_counter() - start


def serve(handler: object) -> None:
    """Answer `{"do": method, argument: value, ...}` with `{"value": ...}` or `{"error": text}` until stdin ends.

    Whatever else prints to stdout, C libraries included, is sent to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        name = request.pop("do")
        try:
            answer = {"value": getattr(handler, name)(**request)}
        except Exception as error:  # the asking process decides what becomes of it
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
