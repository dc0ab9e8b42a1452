"""One answer as it comes into being: tokens in, deltas of text out, until a stop. Knows no model and no thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.stop_strings import StopStrings
from edge_gemma.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Usage:
    """Tokens read and written. `cached_tokens`: those of the prompt whose keys and values were there already."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
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


@dataclass(frozen=True)
class Delta:
    """What a token added to an answer: text, perhaps none. The last one has a finish reason."""

    text: str
    token_ids: tuple[int, ...]
    times: tuple[float, float, float]
    """When the answer was begun, when its prompt was read, and when the last token was chosen; `time.perf_counter`."""
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclass
class Writer:
    """Turns the tokens of an answer into deltas."""

    tokenizer: Tokenizer
    prompt: Sequence[int]
    max_tokens: int
    stop: Sequence[str] = ()
    room: int = 2**62
    """Most tokens that the context leaves."""
    written: int = 0
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    _times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, after=self.prompt)
        self._stops = StopStrings(self.stop)

    def begin(self) -> None:
        """The engine has begun to read the prompt."""
        self._times = [time.perf_counter()]

    def prompt_read(self) -> None:
        """There are logits; the first call tells when."""
        if len(self._times) == 1:
            self._times.append(time.perf_counter())

    def write(self, token: int) -> Delta:
        """The delta of the next token; it may set `finish_reason`, and then is the last one."""
        self.prompt_read()
        self._times[2:] = [time.perf_counter()]
        self.written += 1
        text = self._text(token)
        start, read, last = self._times
        return Delta(text, (token,), (start, read, last), self.cached_tokens, self.finish_reason)

    def _text(self, token: int) -> str:
        if token in self.tokenizer.eog_ids:
            self.finish_reason = "stop"
            return self._tail()
        text, hit = self._stops.push(self._detokenizer.push(token))
        if hit:
            self.finish_reason = "stop"
        elif self.written >= min(self.max_tokens, self.room):
            self.finish_reason = "length"
            text += self._tail()
        return text

    def _tail(self) -> str:
        """Text held back until the end; a stop string may complete in it."""
        text, hit = self._stops.push(self._detokenizer.flush())
        if hit:
            self.finish_reason = "stop"
            return text
        return text + self._stops.flush()
