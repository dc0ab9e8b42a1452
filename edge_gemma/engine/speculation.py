"""Tokens that may well come next, so that several rows of a sequence share one reading of the weights. Exact.

A proposal is computed with the last token in one step; each of its tokens is kept where the sampler, with that
position's own random number, chooses the same one from the model's own logits (`sequence.Generation.take`). So the text
does not depend on what is proposed, and neither on whether anything is. What is proposed decides the speed only: the
longest that pays is chosen from the share of tokens kept so far and the measured time of steps of so many rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.pages import Runner
from edge_gemma.engine.sampler import Sampler
from edge_gemma.graph.cache import PageTable
from edge_gemma.graph.step import SequenceRows

Logits = NDArray[np.float32]

MOST = 15
"""Tokens of a proposal: with the last token of the text, a step of a few rows (`operations.FEW_ROWS`)."""
WORTH = 1.05
"""A proposal is made if it is expected to be faster by this factor."""
SMOOTHING = 0.1
"""Of the newest token in the share of those kept."""
PROBE = 3, 48
"""Where it does not pay, so many tokens are proposed every so many, to see whether the text has changed."""
EACH_ROW = 0.06
"""Time of another row beside that of the first, until it is measured: what decoding 2B in Q4_K_M takes."""


class Proposer(Protocol):
    """Something that foretells. seconds: what a token of a proposal takes, about."""

    seconds: float

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `tokens`."""

    def close(self) -> None:
        """The sequence is over."""


class PromptLookup:
    """What followed the last time that the text had its present last tokens: good where a text repeats itself.

    Every run of `length` tokens is kept with the place after its latest but one occurrence (arXiv:2304.04487).
    """

    seconds = 0.0

    def __init__(self, length: int = 3) -> None:
        self._length = length
        self._places: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Proposer`. `tokens` may only have grown since the last call."""
        for end in range(max(self._seen, self._length), len(tokens)):  # all runs but the last one
            self._places[tuple(tokens[end - self._length : end])] = end
        self._seen = len(tokens)
        place = self._places.get(tuple(tokens[-self._length :]))
        return [] if place is None else list(tokens[place : place + most])

    def close(self) -> None:
        """Nothing is held."""


class DraftModel:
    """A smaller model of the same vocabulary, which says what it would choose, with the same random numbers."""

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self._runner, self._sampler = runner, sampler
        self._table = runner.new_table()
        self._read: list[int] = []
        self.seconds = 0.0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Proposer`. Nothing beyond the draft's own context."""
        most = min(most, self._runner.context - len(tokens))
        if most < 1:
            return []
        self._go_back(tokens)
        text, start = list(tokens), time.perf_counter()
        while len(text) < len(tokens) + most:
            text.append(self._sampler.sample(self._logits(text), None, text, len(text)))
        each = (time.perf_counter() - start) / most
        self.seconds += (each - self.seconds) * (0.2 if self.seconds else 1.0)
        return text[len(tokens) :]

    def close(self) -> None:
        """Give its pages back."""
        self._table.release()

    def _go_back(self, tokens: Sequence[int]) -> None:
        """To where its own text and `tokens` part."""
        count = min(len(self._read), len(tokens) - 1)
        same = next((i for i in range(count) if self._read[i] != tokens[i]), count)
        if same < self._table.length:
            if self._table.can_truncate(same):
                self._table.truncate(same)
            else:
                self._table.release()
                self._table = self._runner.new_table()
        self._read = list(tokens[: self._table.length])

    def _logits(self, text: list[int]) -> Logits:
        """After all of `text`."""
        while True:
            piece = text[self._table.length : self._table.length + self._runner.chunk]
            last = self._table.length + len(piece) == len(text)
            rows = SequenceRows(cast(PageTable, self._table), np.array(piece, np.int64), int(last))
            logits = self._runner.run([rows])
            self._read = text[: self._table.length]
            if last:
                first: Logits = logits[0]
                return first


class StepTimes:
    """Seconds of steps of a few rows, by their number."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """A step of `rows` took `seconds`."""
        before = self._seconds.get(rows, seconds)
        self._seconds[rows] = before + 0.2 * (seconds - before)

    @property
    def first(self) -> float:
        """Seconds of a step of one row; 0 where none was measured."""
        return self._seconds.get(1, 0.0)

    def ratio(self, rows: int) -> float:
        """The time of a step of `rows` beside one of a single row; between measured numbers by a line."""
        first = self.first
        if not first:
            return 1 + EACH_ROW * (rows - 1)
        known = sorted((n, seconds / first) for n, seconds in self._seconds.items())
        below = max((k for k in known if k[0] <= rows), default=(1, 1.0))
        above = min((k for k in known if k[0] >= rows), default=None)
        if above is None:
            return below[1] + EACH_ROW * (rows - below[0])
        if above[0] == below[0]:
            return below[1]
        return below[1] + (above[1] - below[1]) * (rows - below[0]) / (above[0] - below[0])


class Speculation:
    """Proposals for one sequence, as long as they pay."""

    def __init__(self, proposer: Proposer, times: StepTimes) -> None:
        self._proposer, self._times = proposer, times
        self._kept = 0.7
        """The share of proposed tokens that were kept, of those that could be."""
        self._idle = 0
        self.proposed = self.accepted = 0

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        """A proposal of at most `room` tokens, often none."""
        length = self.best_length(min(room, MOST))
        if length == 0:
            self._idle += 1
            if self._idle % PROBE[1] == 0:
                length = min(room, PROBE[0])
        return self._proposer.propose(tokens, length) if length > 0 else []

    def best_length(self, most: int) -> int:
        """Tokens to propose: 1 + p + ... + p^n are expected for the time of n + 1 rows."""
        best, gain, expected = 0, WORTH, 1.0
        each = self._proposer.seconds / self._times.first if self._times.first else 0.0
        for n in range(1, most + 1):
            expected += self._kept**n
            faster = expected / (self._times.ratio(n + 1) + n * each)
            if faster > gain:
                best, gain = n, faster
        return best

    def note(self, proposed: int, accepted: int) -> None:
        """Of `proposed` tokens the first `accepted` were kept; those after the first wrong one tell nothing."""
        self.proposed += proposed
        self.accepted += accepted
        for kept in [1.0] * accepted + [0.0] * (accepted < proposed):
            self._kept += SMOOTHING * (kept - self._kept)

    def close(self) -> None:
        """The sequence is over."""
        self._proposer.close()
