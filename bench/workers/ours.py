"""edge-gemma as a worker: what is timed is a step of the engine, without tokenizing and sampling."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from serve import serve

from edge_gemma import Gemma, __version__
from edge_gemma.engine.runner import Engine
from edge_gemma.kernels.isa import current
from edge_gemma.measure.speed import open_engine


class Ours:
    """One model. Times are seconds."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._engine: Engine | None = None
        self._model: Gemma | None = None
        self._random = random.Random(0)

    def describe(self) -> dict[str, Any]:
        return {"engine": f"edge-gemma {__version__}", "isa": current().name}

    def open(self, model: str, context: int, threads: int) -> None:
        self._engine = self._open.enter_context(open_engine(model, context, threads))

    def open_text(self, model: str, context: int, threads: int) -> None:
        """Beside the engine, the same file through the public interface."""
        self._model = self._open.enter_context(Gemma(model, context, threads))

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "`open` comes first"
        return self._engine

    def clear(self) -> None:
        self.engine.reset()

    def prompt(self, tokens: int) -> float:
        """Append so many tokens at once, logits of the last one only."""
        ids = self._ids(tokens)
        start = time.perf_counter()
        self.engine.prefill(ids)
        return time.perf_counter() - start

    def generate(self, tokens: int) -> float:
        """Append so many tokens one by one, logits of each."""
        ids = self._ids(tokens)
        start = time.perf_counter()
        for token in ids:
            self.engine.decode(token)
        return time.perf_counter() - start

    def steps(self, rows: Sequence[int], repeats: int) -> dict[str, float]:
        """Median time of one step of each number of rows, logits of every row."""
        times: dict[str, list[float]] = {str(n): [] for n in rows}
        for _ in range(repeats):
            for n in rows:
                times[str(n)].append(self._step(n))
        return {n: statistics.median(values) for n, values in times.items()}

    def answer(self, tokens: int) -> float:
        """Time per token of an answer with the default sampling, the first token excluded."""
        assert self._model is not None, "`open_text` comes first"
        completion = self._model.generate(self._ids(16), max_tokens=tokens, seed=0)
        assert completion.timings is not None
        return completion.timings.completion / (completion.usage.completion_tokens - 1)

    def close(self) -> None:
        self._open.close()

    def _step(self, rows: int) -> float:
        ids = self._ids(rows)
        start = time.perf_counter()
        self.engine.decode(ids[0]) if rows == 1 else self.engine.logits(ids)
        return time.perf_counter() - start

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(self.engine.config.vocab_size) for _ in range(count)]


if __name__ == "__main__":
    ours = Ours()
    serve(
        {
            name: getattr(ours, name)
            for name in ("describe", "open", "open_text", "clear", "prompt", "generate", "steps", "answer", "close")
        }
    )
