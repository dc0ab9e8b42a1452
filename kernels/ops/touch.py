"""Have the system map memory before it is read in earnest: one load of each page, by all threads. Knows no format.

Prefetches of a page that is not mapped are dropped, so a first pass over a mapped file waits for memory at each line.
It is loads, and no call such as Linux's MADV_POPULATE_READ, as every system has them and they cost the same.
"""

from __future__ import annotations

from typing import Any

from ..operations import STEP_THREADS, TOUCH
from ..simd.atomics import read_shared, word

_AT, _SIZE = TOUCH.slots

PAGE = 4096
"""Bytes; no system has smaller ones. Most map a few neighbours at the first load of each."""


def touch(op: Any, step: Any, thread: Any) -> None:
    """Load from each page of `size` bytes at `at`. Each thread takes a run of pages, as products deal out rows.

    The load is an atomic one, as LLVM drops others whose value nobody takes.
    """
    first, threads = word(op, _AT) & -PAGE, word(step, STEP_THREADS)
    pages = (word(op, _AT) + word(op, _SIZE) - first + PAGE - 1) // PAGE
    for page in range(pages * thread // threads, pages * (thread + 1) // threads):
        read_shared(first + page * PAGE, 0)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"touch": touch}
