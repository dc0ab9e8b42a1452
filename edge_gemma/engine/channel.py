"""A queue from the engine's thread to whoever reads an answer. Knows not what the items are.

Nobody can block anybody: the engine never waits for a reader (it asks whether there is room, and goes on with others
where there is none), and a reader waits only for the engine, which ends every channel, whatever happens.
"""

from __future__ import annotations

import logging
import os
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `kernels/native_threads.py`
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty
from typing import Generic, TypeVar

from edge_gemma.errors import ForkError

log = logging.getLogger(__name__)

T = TypeVar("T")


class End:
    """The last item: an error to raise, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Channel(Generic[T], Iterator[T]):
    """Items in order, then the end, which every further reader meets again.

    backlog: unread items from which on there is no room. on_room: called by the reader, once, when there is room again
    after `has_room` has said no. on_item: called by the engine's thread after every item, for readers that cannot wait
    (an event loop). One that fails is not called again: the fault is not the engine's.
    """

    def __init__(self, backlog: int, on_room: Callable[[], None]) -> None:
        self._items: SimpleQueue[T | End] = SimpleQueue()
        self._backlog, self._on_room = backlog, on_room
        self._wanted = False
        self._process = os.getpid()
        self.ended = False
        self.on_item: Callable[[], None] | None = None

    # ---- the engine's side ---------------------------------------------------------------------------------------

    def put(self, item: T) -> None:
        """Add an item; nothing after the end."""
        if not self.ended:
            self._put(item)

    def end(self, error: BaseException | None = None, *, discard: bool = False) -> None:
        """Add the end, if there is none yet. `discard`: readers get nothing more of what is unread."""
        if self.ended:
            return
        self.ended = True
        if discard:
            with suppress(Empty):
                while True:
                    self._items.get_nowait()
        self._put(End(error))

    def has_room(self) -> bool:
        """Whether the reader keeps up. The order matters: a reader that reads in between sees that it is waited for."""
        self._wanted = True
        if self._items.qsize() >= self._backlog:
            return False
        self._wanted = False
        return True

    def _put(self, item: T | End) -> None:
        self._items.put(item)
        if self.on_item:
            try:
                self.on_item()
            except Exception:
                log.exception("a reader could not be told of an item")
                self.on_item = None

    # ---- the reader's side ---------------------------------------------------------------------------------------

    def __next__(self) -> T:
        """The next item, waited for. Raises the error of the end; ForkError in a child that was forked meanwhile."""
        self.check_process()
        return self._received(self._items.get())

    def next_now(self) -> T:
        """The next item if there is one. Raises queue.Empty."""
        self.check_process()
        return self._received(self._items.get_nowait())

    def check_process(self) -> None:
        """Raise ForkError in a child that was forked after the channel was made."""
        if os.getpid() != self._process:
            raise ForkError("this process was forked after the model was opened; open it again, or use spawn")

    def _received(self, item: T | End) -> T:
        if isinstance(item, End):
            self._items.put(item)  # for other readers, and for the next time
            if item.error is not None:
                error, item.error = item.error, None  # told once
                raise error
            raise StopIteration
        if self._wanted and self._items.qsize() < self._backlog:
            self._wanted = False
            self._on_room()
        return item
