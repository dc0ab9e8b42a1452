"""edge-gemma as a worker: what is timed is a step of the engine."""

from __future__ import annotations

from contextlib import ExitStack

import serve

from edge_gemma import Gemma
from edge_gemma.measure.speed import open_engine


class Ours(serve.Engine):
    """One model, through the engine; `open_text`: beside it through the public interface."""

    def open(self, model: str, context: int, threads: int) -> None:
        self._stack = ExitStack()
        self._engine = self._stack.enter_context(open_engine(model, context, threads))
        self.vocabulary = self._engine.config.vocab_size

    def open_text(self, model: str, context: int, threads: int) -> None:
        self._model = self._stack.enter_context(Gemma(model, context, threads))

    def clear(self) -> None:
        self._engine.reset()

    def work(self, ids: list[int], *, every: bool = False) -> serve.Work:
        if len(ids) == 1:
            return lambda: self._engine.decode(ids[0])
        return lambda: self._engine.logits(ids) if every else self._engine.prefill(ids)

    def answer(self, tokens: int) -> float:
        """Time per token of an answer with the default sampling, the first token excluded."""
        completion = self._model.generate(self._ids(16), max_tokens=tokens, seed=0)
        assert completion.timings is not None
        return completion.timings.completion / (completion.usage.completion_tokens - 1)


if __name__ == "__main__":
    serve.serve(Ours())
