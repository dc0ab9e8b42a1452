"""The calls of a model, from any number of threads, take turns with its engine. Knows no text and no file.

A call is a generator, and a *turn* is all of it: a stream from its first piece to its last, whatever threads ask for
them. Nothing is held between two pieces but a note of who was there last, so nobody can wait for ever: not for a stream
that is no longer read, not for a thread that has ended, not for oneself.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from edge_gemma.errors import Cancelled, EdgeGemmaError, ForkError

PATIENCE = 1.0
"""Seconds after which a turn that nobody goes on with is interrupted, if another waits. To go on takes reading its text
again; so it is longer than a reader usually needs for a piece."""
LOOK = 0.01
"""Seconds between two looks of a thread that waits. A condition variable would wake it sooner, but can be left broken
by Ctrl-C; locks in a `with` statement cannot."""

T = TypeVar("T")


class Stoppable(Protocol):
    """What takes turns want of an engine."""

    def cancel(self) -> None:
        """Raise Cancelled in what runs."""

    def ready(self, unwanted: Callable[[], bool]) -> None:
        """Forget earlier cancels; raise Cancelled when `unwanted` says so."""


class Turn(Iterator[T]):
    """What the generator `items` makes with the engine, one at a time. Several threads may ask, one after the other.

    Raises Cancelled, once, where the model was cancelled after this object was made; what `items` raises; and
    EdgeGemmaError where the model is closed, or the caller is a callback of a turn that is being worked on.
    """

    def __init__(self, turns: Turns, items: Generator[T]) -> None:
        self._turns, self.items = turns, items
        self._cancels = turns.cancels
        self.begun = self.over = self.waiting = False

    def __next__(self) -> T:
        return self._turns.next_of(self)

    def close(self) -> None:
        """Make no more, and let others go on; a step being computed in another thread is finished. Idempotent."""
        self.over = True

    @property
    def cancelled(self) -> bool:
        """Whether the model was cancelled since this was made."""
        return self._cancels != self._turns.cancels


class Turns:
    """Who is at work with `engine`, who was, and who waits, in the order in which they came."""

    def __init__(self, engine: Stoppable) -> None:
        self.cancels = 0
        self.closed = False
        self._engine = engine
        self._process = os.getpid()
        self._lock = threading.Lock()  # held while a turn's next item is made, and no longer
        self._thread: int | None = None  # which does that
        self._last: weakref.ref[Turn[Any]] | None = None  # whose sequence the engine has
        self._left = 0.0  # when that had an item made
        self._line: list[weakref.ref[Turn[Any]]] = []

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process with the engine's threads. Locks may be held there for ever."""
        return os.getpid() != self._process

    def check_open(self) -> None:
        """Raise ForkError or EdgeGemmaError where there is no engine any more."""
        if self.forked:
            raise ForkError("this process was forked after the model was opened; open it again, or use spawn")
        if self.closed:
            raise EdgeGemmaError("the model is closed")

    def cancel(self) -> None:
        """Cancel all turns there are. From any thread, and from a signal's handler: it takes no lock."""
        self.cancels += 1  # before the engine is told, which forgets it when the next turn begins
        self._engine.cancel()

    def close(self) -> None:
        """Cancel all turns there are, refuse others, and wait until nobody is at work. Idempotent."""
        if self.forked:
            return
        self._refuse_callbacks("a callback of this model cannot close it; cancel it instead")
        self.closed = True
        self.cancel()
        with self._lock:
            pass

    def next_of(self, turn: Turn[T]) -> T:
        """Wait until it is the turn of `turn`, and make its next item."""
        if self.forked:
            self.check_open()
        self._refuse_callbacks("a callback of this model cannot use it before the call has ended")
        try:
            while not turn.over:
                turn.waiting = True
                self._check(turn)
                with self._lock:
                    if self._is_next(turn):
                        return self._work(turn)
                time.sleep(LOOK)
        finally:
            turn.waiting = False
        raise StopIteration

    def _refuse_callbacks(self, reason: str) -> None:
        if self._thread == threading.get_ident() and self._lock.locked():
            raise EdgeGemmaError(reason)

    def _check(self, turn: Turn[Any]) -> None:
        """Raise what ends the turn, if there is anything."""
        if not turn.begun:
            self.check_open()
        if turn.cancelled:
            turn.over = True
            raise Cancelled

    def _is_next(self, turn: Turn[Any]) -> bool:
        """Whether it may be worked on now; else it has a place in the line."""
        last = self._last() if self._last else None
        if last is turn:
            return True
        waiting = (place for place in self._line if (other := place()) and other.waiting and not other.over)
        self._line = [*waiting]
        if all(place() is not turn for place in self._line):
            self._line.append(weakref.ref(turn))
        goes_on = last and not last.over and not last.cancelled and time.monotonic() - self._left < PATIENCE
        return not goes_on and self._line[0]() is turn

    def _work(self, turn: Turn[T]) -> T:
        self._last, self._thread = weakref.ref(turn), threading.get_ident()
        try:
            self._engine.ready(partial(_is_over, self._last))
            self._check(turn)  # again: what was cancelled before `ready` is seen here, and what is later by the engine
            turn.begun = True
            return next(turn.items)
        except BaseException:
            turn.over = True
            raise
        finally:
            self._left, self._thread = time.monotonic(), None


def _is_over(place: weakref.ref[Turn[Any]]) -> bool:
    """Whether a turn has ended; by a weak reference, so that the engine does not keep one that was dropped."""
    turn = place()
    return turn is None or turn.over
