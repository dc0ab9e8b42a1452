"""The key-value cache: for each sequence a table of pages, which sequences may share. Knows no attention maths.

A page holds the keys and values of SPAN positions of one layer (`layout.SPAN`). A sequence has pages for the positions
that are there, and in a layer with a window only for those that a later row can still see. No bit of a result depends
on where a page lies, or who shares it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import EdgeGemmaError, MemoryBudgetError
from edge_gemma.graph.page_memory import PageMemory
from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import LANES, SPAN, head_bytes, most_spans, page_bytes

GO_BACK = 16
"""After a step of at most so many rows a sequence can go back to any of them, whatever its windows."""


def spans_of(positions: int) -> int:
    """Spans of the first `positions` positions."""
    return -(-positions // SPAN)


def most_pages(state: AttentionState, context: int, rows: int) -> int:
    """Pages that a layer of one sequence needs at most, for `context` positions of which a step writes `rows`."""
    if state.window is None:
        return spans_of(context)
    return min(spans_of(context), most_spans(state.window - 1 + max(rows, 2 * GO_BACK)))


def first_visible_span(state: AttentionState, length: int) -> int:
    """The first span that rows from position `length` on can see."""
    return 0 if state.window is None else max(0, length - state.window + 1) // SPAN


def cache_bytes(states: Sequence[AttentionState], context: int, rows: int, kv_type: str) -> int:
    """Bytes of all pages that one sequence needs at most."""
    return sum(most_pages(state, context, rows) * _page_bytes(state, kv_type) for state in states)


def _page_bytes(state: AttentionState, kv_type: str) -> int:
    return page_bytes(state.kv_heads, state.head_dim, kv_type)


@dataclass(frozen=True)
class LayerCache:
    """What a program has to know of the pages of one layer.

    head_bytes: of the keys of a head in a page. spans: those that a row sees at most.
    """

    name: str
    layer: int
    heads: int
    head_dim: int
    head_bytes: int
    spans: int


def layer_caches(states: Sequence[AttentionState], context: int, kv_type: str) -> list[LayerCache]:
    """Of each layer, for sequences of at most `context` positions."""
    return [
        LayerCache(
            name=f"cache of layer {i}",
            layer=i,
            heads=state.kv_heads,
            head_dim=state.head_dim,
            head_bytes=head_bytes(state.head_dim, kv_type),
            spans=most_pages(state, context, 1),
        )
        for i, state in enumerate(states)
    ]


class PagePool:
    """Memory for the pages of all sequences of a model, each page counted by the tables that hold it.

    One thread at a time may use a pool and its tables, but any may drop the last reference to a table.
    """

    def __init__(self, states: Sequence[AttentionState], kv_type: str, limit_bytes: int | None = None) -> None:
        """`limit_bytes` of pages in use; None: what the system has."""
        self.states, self.limit_bytes = tuple(states), limit_bytes
        smaller = {"f32": ', or kv_type="f16" or "q8_0"', "f16": ', or kv_type="q8_0"'}.get(kv_type, "")
        self._advice = "open with a smaller context or fewer sequences" + smaller
        sizes = [_page_bytes(state, kv_type) for state in states]
        what = f"pages of the {kv_type} key-value cache"
        memories = {size: PageMemory(size, what, self._advice) for size in sizes}
        self.layers = [memories[size] for size in sizes]
        """The memory of each layer's pages; one size of page has one memory."""
        self._memories = list(memories.values())
        self._dropped: deque[NDArray[np.int64]] = deque()
        self._closed = False

    @property
    def bytes_in_use(self) -> int:
        """Of pages that somebody holds."""
        self.collect()
        return sum(memory.in_use for memory in self._memories)

    def bytes_only_in(self, tables: Sequence[PageTable]) -> int:
        """Of pages that these tables hold, and nobody else."""
        self.collect()
        if not tables:
            return 0
        total = 0
        for layer, memory in enumerate(self.layers):
            pages, counts = np.unique(np.concatenate([table.pages_of(layer) for table in tables]), return_counts=True)
            total += memory.page_bytes * sum(map(memory.has_holders, pages.tolist(), counts.tolist()))
        return total

    @property
    def bytes_taken(self) -> int:
        """Taken from the system: of pages in use and free ones. What was never written is not resident."""
        return sum(memory.taken for memory in self._memories)

    def new_table(self, context: int) -> PageTable:
        """A sequence of no position yet, and of `context` at most."""
        self.check_open()
        return PageTable(self, context)

    def restored_table(self, context: int, length: int, first_positions: Sequence[int]) -> PageTable:
        """A sequence whose first `length` positions are there; its pages are still to be filled, see `PageTable.fill`.

        first_positions: of each layer, see `PageTable.first_positions`; what it can go on with, and no more than there
        is. Raises MemoryBudgetError.
        """
        self.check_open()
        table = PageTable(self, context)
        firsts = [position // SPAN for position in first_positions]
        places = [(layer, span) for layer, first in enumerate(firsts) for span in range(first, spans_of(length))]
        self._require(Counter(layer for layer, _ in places))
        for layer, span in places:
            table.put(layer, span, self.layers[layer].take())
        table.begin_at(length, firsts)
        return table

    def reserve(self, wanted: Sequence[tuple[PageTable, int]]) -> None:
        """`PageTable.reserve` for several, all or nothing. Raises MemoryBudgetError, and then changes nothing."""
        self.check_open()
        missing = [(table, *place) for table, end in wanted for place in table.missing(end)]
        if missing:
            self._require(Counter(layer for _, layer, _ in missing))
            for table, layer, span in missing:
                table.put(layer, span, self.layers[layer].take())
        for table, end in wanted:
            table.reserved = max(table.reserved, spans_of(end) * SPAN)

    def _require(self, layers: Counter[int]) -> None:
        """See to it that there are so many free pages for each layer."""
        self.collect()
        size = sum(count * self.layers[layer].page_bytes for layer, count in layers.items())
        if self.limit_bytes is not None and (used := self.bytes_in_use) + size > self.limit_bytes:
            raise MemoryBudgetError(
                f"pages of the key-value cache: {size} bytes more are needed, {used} of {self.limit_bytes} are in use; "
                + self._advice
            )
        for memory in self._memories:
            memory.require(sum(count for layer, count in layers.items() if self.layers[layer] is memory))

    def drop_later(self, pages: NDArray[np.int64]) -> None:
        """Let go of the pages of a table, (layers, spans), the next time the pool is used. From any thread, and in the
        midst of anything, as garbage is collected there."""
        self._dropped.append(pages)

    def collect(self) -> None:
        """Let go of the pages of tables that were dropped."""
        while self._dropped and not self._closed:
            pages = self._dropped.popleft()
            for layer, span in np.argwhere(pages).tolist():
                self.layers[layer].drop(int(pages[layer, span]))

    def close(self) -> None:
        """Give all memory back to the system. Idempotent. No program may run, and tables take no page any more."""
        self._closed = True
        for memory in self._memories:
            memory.close()

    def check_open(self) -> None:
        """Raise EdgeGemmaError after `close`."""
        if self._closed:
            raise EdgeGemmaError("the model is closed")


class PageTable:
    """The pages of one sequence: its first `length` positions are there. `context`: the most there can be.

    It holds its pages until it is released or dropped.
    """

    def __init__(self, pool: PagePool, context: int) -> None:
        self.pool, self.context = pool, context
        self.length = 0
        self.reserved = 0
        """Positions from `length` up to here have pages, in which nobody else writes."""
        self._pages = np.zeros((len(pool.states), spans_of(context)), np.int64)  # addresses; 0: none
        self._rows = self._pages.ctypes.data + self._pages.strides[0] * np.arange(len(pool.states))
        self.address = self._rows.ctypes.data
        """The table for the kernels: for each layer, the address of its pages' addresses. As long as this lives."""
        self._first = [0] * len(pool.states)  # spans before it were given back
        self._next_leaves = self._leaves_next()
        self._finalizer = weakref.finalize(self, pool.drop_later, self._pages)
        self._finalizer.atexit = False

    @property
    def bytes(self) -> int:
        """Of the pages it refers to, shared ones too."""
        counts = np.count_nonzero(self._pages, axis=1).tolist()
        return sum(count * memory.page_bytes for count, memory in zip(counts, self.pool.layers, strict=True))

    def pages_of(self, layer: int) -> NDArray[np.int64]:
        """Addresses of a layer's pages, (pages,)."""
        pages: NDArray[np.int64] = self._pages[layer]
        held: NDArray[np.int64] = pages[pages != 0]
        return held

    @property
    def released(self) -> bool:
        """Whether it has let go of its pages for good."""
        return not self._finalizer.alive

    # ---- growing -------------------------------------------------------------------------------------------------

    def reserve(self, end: int) -> None:
        """Have pages for positions length..end-1 in which nobody else writes: a shared one is copied first.

        Raises MemoryBudgetError, and then changes nothing.
        """
        self.pool.reserve([(self, end)])

    def missing(self, end: int) -> list[tuple[int, int]]:
        """Layer and span of each page that `reserve` has to get."""
        assert end <= self.context
        if end <= self.reserved:
            return []
        assert not self.released
        spans = range(self.reserved // SPAN, spans_of(end))
        return [(layer, span) for span in spans for layer in range(len(self._first)) if not self._is_own(layer, span)]

    def _is_own(self, layer: int, span: int) -> bool:
        page = int(self._pages[layer, span])
        return page != 0 and not self.pool.layers[layer].is_shared(page)

    def put(self, layer: int, span: int, page: int) -> None:
        """Take `page` in place of the one that is there, with what is written in that; for the pool."""
        shared = int(self._pages[layer, span])
        if shared:
            self._copy(layer, shared, page)
            self.pool.layers[layer].drop(shared)
        self._pages[layer, span] = page

    def _copy(self, layer: int, source: int, target: int) -> None:
        """The written positions of the last page: they come first in a head's keys, and in its values."""
        state, written = self.pool.states[layer], -(-(self.length % SPAN) // LANES) * LANES
        size = self.pool.layers[layer].page_bytes // (2 * state.kv_heads)
        for at in range(0, 2 * state.kv_heads * size, size):
            ctypes.memmove(target + at, source + at, size * written // SPAN)

    def advance(self, end: int) -> None:
        """Positions up to `end` are there now. Pages of windowed layers that no later row can see are given back."""
        assert self.length <= end <= self.reserved
        seen = self.length + 1 if end - self.length <= GO_BACK else end
        self.length = end
        if seen >= self._next_leaves:
            self._leave(seen)

    def _leave(self, seen: int) -> None:
        for layer in range(len(self._first)):
            low = self._low(layer, seen)
            self._drop(layer, range(self._first[layer], low))
            self._first[layer] = low
        self._next_leaves = self._leaves_next()

    def _low(self, layer: int, length: int) -> int:
        return first_visible_span(self.pool.states[layer], length)

    def _leaves_next(self) -> int:
        """The length at which another page leaves a window."""
        windows = [(state.window, first) for state, first in zip(self.pool.states, self._first, strict=True)]
        ends = [(first + 1) * SPAN + window - 1 for window, first in windows if window is not None]
        return min(ends, default=self.context + 1)

    def _drop(self, layer: int, spans: range) -> None:
        pages = self._pages[layer, spans.start : spans.stop]
        for page in pages[pages != 0].tolist():
            self.pool.layers[layer].drop(page)
        pages[:] = 0

    # ---- its contents, as they are -------------------------------------------------------------------------------

    @property
    def first_positions(self) -> list[int]:
        """Of each layer, the first position that is there: a multiple of SPAN, above 0 where a window has moved on."""
        return [first * SPAN for first in self._first]

    def page(self, layer: int, span: int) -> NDArray[np.uint8]:
        """A copy of a page that is there. What lies behind the last position in it may be anything."""
        return np.frombuffer(ctypes.string_at(self._address(layer, span), self.pool.layers[layer].page_bytes), np.uint8)

    def fill(self, layer: int, span: int, page: NDArray[np.uint8]) -> None:
        """Write a page that is there, and is nobody else's."""
        assert self._is_own(layer, span) and page.nbytes == self.pool.layers[layer].page_bytes
        ctypes.memmove(self._address(layer, span), page.ctypes.data, page.nbytes)

    def _address(self, layer: int, span: int) -> int:
        self.pool.check_open()
        page = int(self._pages[layer, span])
        assert page
        return page

    def begin_at(self, length: int, firsts: Sequence[int]) -> None:
        """Have the first `length` positions, of each layer those from span `firsts[layer]` on; for the pool."""
        self.length = self.reserved = length
        self._first[:] = firsts
        self._next_leaves = self._leaves_next()

    # ---- going back, sharing, letting go -------------------------------------------------------------------------

    def can_truncate(self, length: int) -> bool:
        """Whether the sequence can go on from `length`: windowed layers may have given back what it would see."""
        if not 0 <= length <= self.length:
            return False
        return length == 0 or all(self._low(layer, length) >= first for layer, first in enumerate(self._first))

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. Raises ValueError where the sequence cannot go on from there."""
        self.pool.check_open()
        if not self.can_truncate(length):
            raise ValueError(f"cannot go back to {length} of {self.length} positions")
        spans = spans_of(length)
        for layer, first in enumerate(self._first):
            self._drop(layer, range(spans, self._pages.shape[1]))
            self._first[layer] = min(first, spans)
        self.length = self.reserved = length
        self._next_leaves = self._leaves_next()

    def fork(self) -> PageTable:
        """Another sequence that begins with this one's positions, in the same pages.

        The last one, if it is not full, is copied when the new sequence writes to it. This one goes on in place, since
        what it writes lies behind all that others see there; after it has gone back, it has to copy, too.
        """
        self.pool.collect()
        other, spans = self.pool.new_table(self.context), spans_of(self.length)
        for layer, memory in enumerate(self.pool.layers):
            for page in filter(None, self._pages[layer, :spans].tolist()):
                memory.share(page)
        other._pages[:, :spans] = self._pages[:, :spans]
        other._first[:] = self._first
        other._next_leaves = self._next_leaves
        other.length = other.reserved = self.length
        return other

    def release(self) -> None:
        """Let go of all pages; no position is there any more, and none can be. Idempotent."""
        self._finalizer()
        self.pool.collect()
        self._pages[:] = 0
        self.length = self.reserved = 0
