"""`TokenSequence`: a text that a model reads and continues under its owner's hands, token by token."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.pages import Table
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import Extension, Held
from edge_gemma.engine.sessions import Sessions
from edge_gemma.errors import ContextOverflowError, EdgeGemmaError
from edge_gemma.options import SamplingOptions
from edge_gemma.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class TokenSequence:
    """Tokens with their keys and values. Any thread may use it, one call after the other.

    The logits are the same bits as those of any other way to have the same tokens read.
    """

    def __init__(
        self,
        model: object,
        engine: Engine,
        tokenizer: Tokenizer,
        sessions: Sessions,
        tokens: Ids[int] = (),
        table: Table | None = None,
    ) -> None:
        """`model` stays open as long as there is a sequence of it. `table`: of the first tokens, if there is one."""
        self._model, self._engine, self._tokenizer, self._sessions = model, engine, tokenizer, sessions
        self._context = sessions.context
        self._state: tuple[list[int], Logits | None] = list(tokens), None
        """The tokens, and the logits after them if they are known: one object, whatever breaks in."""
        self._held = Held()
        self._held.table = table
        self._lock = threading.Lock()  # between threads that use it
        self._closed = False
        finalizer = weakref.finalize(self, engine.later, self._held.close)
        finalizer.atexit = False

    def __len__(self) -> int:
        return len(self._state[0])

    @property
    def token_ids(self) -> list[int]:
        """A copy of the tokens."""
        return list(self._state[0])

    def append(self, tokens: str | Ids[int]) -> None:
        """Read more: token ids, or text, before which a BOS is put where it is the first.

        Raises ValueError, TypeError, ContextOverflowError, MemoryBudgetError, and EdgeGemmaError when cancelled; the
        sequence then is as it was.
        """
        with self._use():
            before = self._state[0]
            ids = self._ids(tokens)
            if len(before) + len(ids) > self._context:
                raise ContextOverflowError(
                    f"tokens: {len(before) + len(ids)} tokens do not fit the context of {self._context}"
                )
            self._read([*before, *ids], len(before))

    @property
    def logits(self) -> Logits:
        """Logits after the last token, float32 (V,), a copy. Raises ValueError where there is no token."""
        with self._use():
            return self._last_logits().copy()

    def sample(self, **sampling: Unpack[SamplingOptions]) -> int:
        """The id of a next token, which is not appended. Without a seed another one each time.

        Raises ValueError, NumericalError.
        """
        sampler = Sampler(SamplingParams(**sampling))
        with self._use():
            tokens = self._state[0]
            return sampler.sample(self._last_logits(), None, tokens, len(tokens))

    def fork(self) -> TokenSequence:
        """Another sequence of the same tokens, which shares their memory until one of the two goes on."""
        with self._use():
            tokens, logits = self._state
            other = TokenSequence(self._model, self._engine, self._tokenizer, self._sessions)
            other._held.table = self._engine.call(lambda: self._held.fork(len(tokens)))
            other._state = list(tokens), None if logits is None else logits.copy()
            return other

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`. Raises ValueError."""
        with self._use():
            tokens = self._state[0]
            length = arguments.integer("length", length, 0, len(tokens))
            if length < len(tokens):
                self._state = tokens[:length], None
                self._engine.later(lambda: self._held.truncate(length))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, from which `Gemma.load_sequence` has it again; other answers are made meanwhile.

        The file is there complete or not at all; a sequence that was saved there before is replaced. It holds the text
        and what the model has computed of it, in tens of kilobytes a token.

        Raises OutputError where the disk takes it not, FileExistsError where there is something else of that name.
        """
        with self._use():
            tokens = self._state[0]
            self._engine.call(lambda: self._held.truncate(len(tokens)))
            self._sessions.save(path, tokens, self._held.table)

    def close(self) -> None:
        """Let go of its memory. Idempotent, from any thread: a call in progress ends. Dropping the sequence does the
        same."""
        self._closed = True
        self._engine.later(self._held.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        """For one thread at a time. A forked child is told before it waits for a thread that it does not have."""
        self._check_open()
        with self._lock:
            self._check_open()
            yield

    def _check_open(self) -> None:
        self._engine.check_open()
        if self._closed:
            raise EdgeGemmaError("the sequence is closed")

    def _ids(self, tokens: str | Ids[int]) -> list[int]:
        bos = False if self._state[0] else None
        given = self._tokenizer.encode(tokens, add_bos=bos) if isinstance(tokens, str) else tokens
        ids = arguments.token_ids("tokens", given, self._tokenizer.vocab_size)
        if not ids:
            raise ValueError("tokens: there must be at least one token")
        return ids

    def _last_logits(self) -> Logits:
        """Those that are known, else the last token is read again."""
        tokens, logits = self._state
        if not tokens:
            raise ValueError("there are no logits before the first token")
        return self._read(tokens, len(tokens) - 1) if logits is None else logits

    def _read(self, tokens: list[int], known: int) -> Logits:
        """Have `tokens` read, of which the first `known` are there already. The logits after them."""
        channel: Channel[Logits] = Channel(1, self._engine.wake)
        extension = Extension(tokens, known, self._held, channel)
        try:
            self._engine.submit(extension)
            logits = next(channel)
            self._state = tokens, logits
            return logits
        finally:
            if not extension.ended:
                self._engine.cancel(extension)
