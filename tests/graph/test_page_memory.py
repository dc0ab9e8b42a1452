"""The memory of pages: zeroed, resident only where it was written, used again, and given back."""

from __future__ import annotations

import mmap
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.errors import MemoryBudgetError
from edge_gemma.graph import page_memory
from edge_gemma.graph.page_memory import PageMemory, zeroed
from edge_gemma.memory import CHECKED

HEAD = 4 << 20
HEADS = 24


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and other systems have no huge pages to refuse")
def test_a_token_makes_a_page_of_each_head_resident() -> None:
    memory = zeroed(HEADS * HEAD).reshape(HEADS, HEAD)
    before = resident()
    memory[:, :512] = 1
    assert resident() - before < 2 * HEADS * mmap.PAGESIZE + (1 << 20)


def test_memory_is_zero_and_writable() -> None:
    memory = zeroed(3 * mmap.PAGESIZE + 5)
    assert memory.dtype == np.uint8 and memory.shape == (3 * mmap.PAGESIZE + 5,) and not memory.any()
    memory[-1] = 7
    assert memory[-1] == 7


def taken(memory: PageMemory, count: int) -> list[int]:
    memory.require(count)
    return [memory.take() for _ in range(count)]


def test_pages_are_used_again_and_the_system_gets_whole_slabs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_memory, "KEPT", page_memory.SLAB)
    size = 1 << 20
    memory = PageMemory(size, "pages", "advice")
    pages = taken(memory, 20)
    assert len(set(pages)) == 20 and all(page % 64 == 0 for page in pages)
    assert min(b - a for a, b in pairwise(sorted(pages))) >= size
    assert (memory.in_use, memory.taken) == (20 * size, 24 * size)
    memory.drop(pages[3])
    assert taken(memory, 1) == [pages[3]]
    memory.share(pages[3])
    memory.drop(pages[3])
    assert memory.in_use == 20 * size and not memory.is_shared(pages[3])
    for page in pages:
        memory.drop(page)
    assert (memory.in_use, memory.taken) == (0, page_memory.SLAB)
    assert len(set(taken(memory, 16))) == 16
    memory.close()
    assert memory.in_use == memory.taken == 0


def test_a_page_larger_than_a_slab() -> None:
    memory = PageMemory(page_memory.SLAB + 4096, "pages", "advice")
    assert len(set(taken(memory, 2))) == 2 and memory.taken == 2 * memory.page_bytes


def test_what_the_system_does_not_have_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before CHECKED bytes are taken since the last time, and again after a refusal."""
    available = CHECKED
    monkeypatch.setattr("edge_gemma.memory.available_memory", lambda: available)
    memory, slabs = PageMemory(page_memory.SLAB, "pages of a test", "close other programs"), CHECKED // page_memory.SLAB
    taken(memory, slabs)
    available -= 1
    taken(memory, slabs - 2)
    for _ in range(2):
        with pytest.raises(MemoryBudgetError, match=r"pages of a test: \d+ bytes are needed, .*; close other programs"):
            memory.require(1)
    assert memory.taken == memory.in_use == (2 * slabs - 2) * page_memory.SLAB
    available += 1
    taken(memory, 1)
