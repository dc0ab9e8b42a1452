"""`TokenSequence`: a text that a model reads and continues under its owner's hands, token by token."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence as Ids
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.pages import Table
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import Extension
from edge_gemma.errors import ContextOverflowError, EdgeGemmaError
from edge_gemma.options import SamplingOptions
from edge_gemma.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class Held:
    """The pages of a sequence, in a place of their own: whoever frees them must not keep the sequence alive."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.table: Table | None = None

    def release(self) -> None:
        """Let go of the pages. Idempotent."""
        table, self.table = self.table, None
        if table is not None:
            self.engine.release(table)


class TokenSequence:
    """Tokens with their keys and values. Any thread may use it, one call after the other.

    The logits are the same bits as those of any other way to have the same tokens read.
    """

    def __init__(self, model: object, engine: Engine, tokenizer: Tokenizer, context: int) -> None:
        self._model = model  # which stays open as long as there is a sequence of it
        self._engine, self._tokenizer, self._context = engine, tokenizer, context
        self._tokens: list[int] = []
        self._logits: Logits | None = None
        self._held = Held(engine)
        self._lock = threading.Lock()
        self._closed = False
        finalizer = weakref.finalize(self, self._held.release)
        finalizer.atexit = False

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def token_ids(self) -> list[int]:
        """A copy of the tokens."""
        return list(self._tokens)

    def append(self, tokens: str | Ids[int]) -> None:
        """Read more: token ids, or text, before which a BOS is put where it is the first.

        Raises ValueError, TypeError, ContextOverflowError, MemoryBudgetError, and EdgeGemmaError when cancelled; the
        sequence then is as it was.
        """
        with self._lock:
            self._check_open()
            ids = self._ids(tokens)
            if len(self._tokens) + len(ids) > self._context:
                raise ContextOverflowError(
                    f"tokens: {len(self._tokens) + len(ids)} tokens do not fit the context of {self._context}"
                )
            self._read([*self._tokens, *ids])

    @property
    def logits(self) -> Logits:
        """Logits after the last token, float32 (V,). Raises ValueError where there is no token."""
        with self._lock:
            return self._last_logits()

    def sample(self, **sampling: Unpack[SamplingOptions]) -> int:
        """The id of a next token, which is not appended. Without a seed another one each time."""
        sampler = Sampler(SamplingParams(**sampling))
        with self._lock:
            return sampler.sample(self._last_logits(), None, self._tokens, len(self._tokens))

    def fork(self) -> TokenSequence:
        """Another sequence of the same tokens, which shares their memory until one of the two goes on."""
        with self._lock:
            self._check_open()
            other = TokenSequence(self._model, self._engine, self._tokenizer, self._context)
            other._tokens, other._logits = list(self._tokens), self._logits
            if (table := self._held.table) is not None:
                other._held.table = self._engine.call(table.fork)
            return other

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`. Raises ValueError."""
        with self._lock:
            self._check_open()
            length = arguments.integer("length", length, 0, len(self._tokens))
            if length < len(self._tokens):
                self._tokens = self._tokens[:length]
                self._logits = None
                self._engine.call(lambda: self._truncate_table(length))

    def close(self) -> None:
        """Let go of its memory. Idempotent; dropping the sequence does the same."""
        self._closed = True
        self._held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        self._engine.check_open()
        if self._closed:
            raise EdgeGemmaError("the sequence is closed")

    def _ids(self, tokens: str | Ids[int]) -> list[int]:
        given = self._tokenizer.encode(tokens, add_bos=not self._tokens) if isinstance(tokens, str) else tokens
        ids = arguments.token_ids("tokens", given, self._tokenizer.vocab_size)
        if not ids:
            raise ValueError("tokens: there must be at least one token")
        return ids

    def _last_logits(self) -> Logits:
        self._check_open()
        if not self._tokens:
            raise ValueError("there are no logits before the first token")
        if self._logits is None:
            last = len(self._tokens) - 1
            self._engine.call(lambda: self._truncate_table(last))
            self._read(self._tokens)
        assert self._logits is not None
        return self._logits

    def _read(self, tokens: list[int]) -> None:
        channel: Channel[Logits] = Channel(1, self._engine.wake)
        extension = Extension(tokens, self._held.table, channel)
        self._engine.submit(extension)
        try:
            self._logits = next(channel)
            self._tokens = tokens
        finally:
            self._engine.cancel(extension)
            self._engine.settled(extension)
            self._held.table = extension.table
            if extension.computed > len(self._tokens):  # it was broken off
                self._engine.call(lambda: self._truncate_table(len(self._tokens)))

    def _truncate_table(self, length: int) -> None:
        """By the engine's thread. What a windowed layer has given back is read again."""
        table = self._held.table
        if table is None or table.length <= length:
            return
        if table.can_truncate(length):
            table.truncate(length)
        else:
            table.release()
            self._held.table = None
