"""Memory for pages of one size: taken from the system in slabs, counted by holder, used again. Knows no contents.

One thread at a time may use it.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from edge_gemma.memory import CHECKED, memory_for, require_memory

SLAB = 8 * 2**20
"""Bytes that are asked of the system at a time, if a page is not larger. They are not resident until written."""
KEPT = 64 * 2**20
"""Bytes of free pages that are kept for what comes next: to make a page resident again costs a copy of it."""


def zeroed(size: int) -> NDArray[np.uint8]:
    """Memory that becomes resident as it is written, a small page at a time.

    With huge pages, as NumPy asks for, the first token would make nearly all of it resident: it writes a little for
    each head. Reading is as fast without them, since attention asks for what it reads next.
    """
    if sys.platform != "linux":
        return np.zeros(size, np.uint8)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages knows no such advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


class Slab:
    """Pages side by side, the first at a multiple of their alignment."""

    def __init__(self, page_bytes: int, alignment: int = 64) -> None:
        self.count = max(1, SLAB // page_bytes)
        self._memory = zeroed(self.count * page_bytes + alignment)
        start = self._memory.ctypes.data + -self._memory.ctypes.data % alignment
        self.pages = [start + page_bytes * i for i in range(self.count)]
        self.in_use = 0


class PageMemory:
    """Pages of `page_bytes`, by address. A page has a number of holders, and is free when there is none."""

    def __init__(self, page_bytes: int, what: str, advice: str) -> None:
        """`what` the pages are for, and what takes fewer: for errors."""
        self.page_bytes = page_bytes
        self._what, self._advice = what, advice
        self._slabs: dict[int, Slab] = {}  # of each page
        self._holders: dict[int, int] = {}
        self._free: list[int] = []  # the one given back last is taken first
        self._unasked = 0  # bytes taken since it was asked whether there are CHECKED more: to ask takes milliseconds

    @property
    def in_use(self) -> int:
        """Bytes of pages that somebody holds."""
        return len(self._holders) * self.page_bytes

    @property
    def taken(self) -> int:
        """Bytes that the system has been asked for, free pages among them."""
        return len(self._slabs) * self.page_bytes

    def require(self, count: int) -> None:
        """See to it that `count` pages are free. Raises MemoryBudgetError; then no page has changed hands."""
        while len(self._free) < count:
            slab = self._new_slab()
            self._slabs.update(dict.fromkeys(slab.pages, slab))
            self._free.extend(reversed(slab.pages))

    def _new_slab(self) -> Slab:
        size = max(SLAB, self.page_bytes)
        if self._unasked + size >= CHECKED:
            require_memory(self._what, max(CHECKED, size), self._advice)
            self._unasked = 0
        with memory_for(self._what, size, self._advice):
            slab = Slab(self.page_bytes)
        self._unasked += size
        return slab

    def take(self) -> int:
        """A free page, with one holder; its contents are undefined. `require` comes first."""
        page = self._free.pop()
        self._holders[page] = 1
        self._slabs[page].in_use += 1
        return page

    def share(self, page: int) -> None:
        """One more holder."""
        self._holders[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether it has several holders."""
        return self._holders[page] > 1

    def has_holders(self, page: int, count: int) -> bool:
        """Whether there are `count` of them."""
        return self._holders[page] == count

    def drop(self, page: int) -> None:
        """One holder less."""
        if self.is_shared(page):
            self._holders[page] -= 1
            return
        del self._holders[page]
        self._free.append(page)
        slab = self._slabs[page]
        slab.in_use -= 1
        if not slab.in_use and len(self._free) * self.page_bytes > KEPT:
            self._give_back(slab)

    def _give_back(self, slab: Slab) -> None:
        pages = set(slab.pages)
        self._free = [page for page in self._free if page not in pages]
        for page in pages:
            del self._slabs[page]

    def close(self) -> None:
        """Give all memory back to the system; addresses lead nowhere any more. Idempotent."""
        self._slabs.clear()
        self._holders.clear()
        self._free.clear()
