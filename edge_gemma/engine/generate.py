"""Token by token: prefill, sample, stop, stream. Knows no shapes and no files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge_gemma.engine.runner import ChunkProgress, Engine
from edge_gemma.engine.sampler import Logits, Sampler
from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.stop_strings import StopStrings
from edge_gemma.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds. `prompt` ends with the first logits; `completion` is the rest."""

    prompt: float
    completion: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt if self.prompt else 0.0

    @property
    def completion_per_second(self) -> float:
        """Tokens per second after the first, which comes with the prompt's logits."""
        return (self.completion_tokens - 1) / self.completion if self.completion and self.completion_tokens > 1 else 0.0


@dataclass
class Generation:
    """One answer being made. Iterate over it once for its pieces of text; then the other fields are final."""

    engine: Engine
    tokenizer: Tokenizer
    prompt: Sequence[int]
    max_tokens: int
    sampler: Sampler
    stop: Sequence[str] = ()
    progress: ChunkProgress | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    _sequence: int = 0
    _times: list[float] = field(default_factory=list)
    """When it began, when the prompt was read, and when the last token was made, as far as it has come."""

    def __iter__(self) -> Iterator[str]:
        detokenizer, stops = Detokenizer(self.tokenizer, after=self.prompt), StopStrings(self.stop)
        for token in self._tokens():
            piece, hit = stops.push(detokenizer.push(token))
            if piece:
                self.text += piece
                yield piece
            if hit:
                self.finish_reason = "stop"
                break
        tail = "" if stops.matched is not None else self._tail(detokenizer, stops)
        if tail:
            self.text += tail
            yield tail

    def _tail(self, detokenizer: Detokenizer, stops: StopStrings) -> str:
        """Text held back until the end; a stop string may complete in it."""
        piece, hit = stops.push(detokenizer.flush())
        if hit:
            self.finish_reason = "stop"
            return piece
        return piece + stops.flush()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt), len(self.token_ids))

    @property
    def timings(self) -> Timings | None:
        """Times so far; None until the prompt was read."""
        if len(self._times) < 3:
            return None
        start, first, last = self._times
        return Timings(first - start, last - first, len(self.prompt), len(self.token_ids))

    def _tokens(self) -> Iterator[int]:
        history = list(self.prompt)
        self._times = [time.perf_counter()]
        logits = self._read(history, self.progress)
        self._times += [time.perf_counter()] * 2
        while True:
            token = self.sampler.sample(logits, history)
            self.token_ids.append(token)
            history.append(token)
            self._times[2] = time.perf_counter()
            if token in self.tokenizer.eog_ids:
                self.finish_reason = "stop"
                return
            yield token
            if len(self.token_ids) >= self.max_tokens or len(history) > self.engine.context:
                self.finish_reason = "length"
                return
            logits = self._after(history)

    def _read(self, history: Sequence[int], progress: ChunkProgress | None = None) -> Logits:
        """The logits after a sequence that begins with all of `history`."""
        self.engine.reset()
        self._sequence = self.engine.sequence
        return self.engine.prefill(history, progress)

    def _after(self, history: Sequence[int]) -> Logits:
        """The logits after `history`, whose last token is new; the same bits if all has to be read again."""
        if self.engine.sequence == self._sequence:
            return self.engine.decode(history[-1])
        log.debug("reading %d tokens again: another call had the model meanwhile", len(history))
        return self._read(history)
