"""A runner with one sequence, which grows call by call: what is timed where neither text nor sampling is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_gemma.engine.runner import Logits, Runner
from edge_gemma.graph.step import SequenceRows


class OneSequence:
    """One call at a time. Logits are those of `Runner.run`; they stay as they are."""

    def __init__(self, runner: Runner) -> None:
        self.config, self.context, self.chunk, self.threads = (
            runner.config, runner.context, runner.chunk, runner.threads,
        )  # fmt: skip
        self._runner, self._table = runner, runner.new_table()

    def reset(self) -> None:
        """Begin another sequence."""
        self._table.truncate(0)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Append `tokens`, chunk by chunk; the last one's logits, (V,)."""
        logits = self._runner.new_logits(1)
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            self._run(part, logits if start + len(part) == len(tokens) else logits[:0])
        return logits.reshape(-1)

    def decode(self, token: int) -> Logits:
        """Append one token; its logits, (V,)."""
        return self.prefill([token])

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Append `tokens`; the logits of each, (T, V)."""
        logits = self._runner.new_logits(len(tokens))
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            self._run(part, logits[start : start + len(part)])
        return logits

    def _run(self, tokens: Sequence[int], out: Logits) -> None:
        self._runner.run([SequenceRows(self._table, np.asarray(tokens, np.int64), len(out))], out)
