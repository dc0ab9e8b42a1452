"""The cache's memory: planned to the byte by `test_plan`, zeroed, and resident only where it was written."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.graph.cache import zeroed

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
