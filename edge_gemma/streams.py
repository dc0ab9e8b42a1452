"""Answers as their readers see them: whole, in deltas, or awaited. Know no model."""

from __future__ import annotations

import asyncio
import threading
import weakref
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `kernels/native_threads.py`
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty

from edge_gemma.engine.answer import Delta, FinishReason, Timings, Usage
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sequence import Generation, PromptRead
from edge_gemma.errors import EdgeGemmaError
from edge_gemma.progress import TokenProgress


@dataclass(frozen=True)
class Completion:
    """A finished answer. `timings` is None if it was ended before the prompt was read."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings | None


@dataclass
class Received:
    """What a reader has of an answer."""

    generation: Generation
    on_progress: TokenProgress | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    _last: Delta | None = None

    def add(self, item: PromptRead | Delta) -> str:
        """The text of an item, empty if it has none."""
        if isinstance(item, PromptRead):
            if self.on_progress:
                self.on_progress(item.done, item.total)
            return ""
        self.text += item.text
        self.token_ids += item.token_ids
        self._last = item
        return item.text

    def check_end(self) -> None:
        """Raise EdgeGemmaError where the model was closed before there was anything."""
        closed = self.generation.writer.finish_reason == "cancelled" and not self.generation.cancelled
        if closed and not self.token_ids:
            raise EdgeGemmaError("the model is closed")

    @property
    def completion(self) -> Completion:
        """What there is so far."""
        last, prompt = self._last, self.generation.prompt_length
        reason = last.finish_reason if last else None
        if reason is None:
            ended = self.generation.writer.finish_reason
            reason = ended if ended in ("cancelled", "deadline") else "cancelled"
        cached = last.cached_tokens if last else 0
        timings = None
        if last:
            start, read, written = last.times
            timings = Timings(read - start, written - read, prompt, len(self.token_ids))
        usage = Usage(prompt, len(self.token_ids), cached)
        return Completion(self.text, list(self.token_ids), reason, usage, timings)


def when_ended(generation: Generation, finished: SimpleQueue[int], number: int) -> Callable[[], None]:
    """What to call after each item: the last one puts `number` into the queue."""
    return lambda: finished.put(number) if generation.channel.ended else None


class Stream(Iterator[str]):
    """The text deltas of an answer. `completion` is what there is so far.

    The answer is being made whether or not it is read, a few dozen deltas ahead of the reader at most; others do not
    wait for it. Any thread may ask for the next one. `close`, and dropping the stream, ends the answer.
    """

    def __init__(
        self, model: object, engine: Engine, generation: Generation, on_progress: TokenProgress | None
    ) -> None:
        self._model = model  # which stays open as long as there is a stream of it
        self._engine, self._generation = engine, generation
        self._received = Received(generation, on_progress)
        self._lock = threading.Lock()  # between readers of this stream
        finalizer = weakref.finalize(self, engine.cancel, generation)
        finalizer.atexit = False

    def __next__(self) -> str:
        self._generation.channel.check_process()
        try:
            with self._lock:
                return self._next()
        except Exception:
            raise
        except BaseException:  # Ctrl-C, perhaps with a delta in hand: no answer may have a hole
            self.close()
            raise

    def _next(self) -> str:
        while not self._generation.cancelled:
            try:
                item = next(self._generation.channel)
            except StopIteration:
                self._received.check_end()
                raise
            text = self._received.add(item)
            if text:
                return text
        raise StopIteration

    def close(self) -> None:
        """End the answer. Idempotent, from any thread; there are no further deltas."""
        self._engine.cancel(self._generation)

    cancel = close

    @property
    def completion(self) -> Completion:
        """Text, ids, usage and timings; the finish reason is "cancelled" until there is another."""
        return self._received.completion


class Notifier:
    """Wakes a task from the engine's thread. It does not know the stream, which so can be dropped while it is made."""

    def __init__(self, generation: Generation) -> None:
        self._loop, self._item, self._generation = asyncio.get_running_loop(), asyncio.Event(), generation

    def __call__(self) -> None:
        """By the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._item.set)
        except RuntimeError:  # the event loop is closed, and nobody reads any more
            self._generation.cancelled = True

    async def next_item(self) -> PromptRead | Delta:
        """The next item, waited for. Raises what the channel raises, but StopAsyncIteration at the end."""
        while True:
            self._item.clear()
            try:
                return self._generation.channel.next_now()
            except Empty:
                await self._item.wait()
            except StopIteration:
                raise StopAsyncIteration from None


class AsyncStream(AsyncIterator[str]):
    """`Stream` for an event loop: waiting for a delta keeps no thread waiting. To be read by one task."""

    def __init__(
        self, model: object, engine: Engine, generation: Generation, on_progress: TokenProgress | None
    ) -> None:
        self._model = model
        self._engine, self._generation = engine, generation
        self._received = Received(generation, on_progress)
        self._notifier = generation.channel.on_item = Notifier(generation)
        finalizer = weakref.finalize(self, engine.cancel, generation)
        finalizer.atexit = False

    async def __anext__(self) -> str:
        while not self._generation.cancelled:
            try:
                item = await self._notifier.next_item()
            except StopAsyncIteration:
                self._received.check_end()
                raise
            text = self._received.add(item)
            if text:
                return text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the answer. Idempotent."""
        self._engine.cancel(self._generation)

    @property
    def completion(self) -> Completion:
        """What there is so far; whole when the stream has ended."""
        return self._received.completion
