"""What was touched is mapped: seen in the kernel's own table of this process's pages."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.kernels.operations import TOUCH
from tests.kernels.harness import Array, Step, row, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/pagemap")

SIZE = 16 << 20
PRESENT = np.uint64(1 << 63)


def mapping(path: Path, size: int) -> Array:
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)


def present(memory: Array) -> Array:
    """Of each page that `memory` has a byte in, whether it is mapped."""
    first = memory.ctypes.data // mmap.PAGESIZE
    end = -(-(memory.ctypes.data + memory.size) // mmap.PAGESIZE)
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(8 * first)
        return np.frombuffer(file.read(8 * (end - first)), np.uint64) & PRESENT != 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [1, mmap.PAGESIZE - 32, mmap.PAGESIZE - 31, 5 * mmap.PAGESIZE, SIZE - 32])
def test_all_pages_are_mapped_afterwards(tmp_path: Path, size: int, threads: int) -> None:
    """From 32 bytes behind the beginning of a page, as tensors lie, to the end: behind it no page may be read."""
    weights = mapping(tmp_path / "weights", 32 + size)[32:]
    assert not present(weights).any()
    run([row(TOUCH, "touch.touch", at=weights, size=size)], Step(), threads)
    assert present(weights).all()


def test_others_are_not(tmp_path: Path) -> None:
    """But for neighbours, of which the system may map as many as a large page has."""
    file = mapping(tmp_path / "weights", SIZE)
    run([row(TOUCH, "touch.touch", at=file[SIZE // 2 :], size=mmap.PAGESIZE)], Step(), 2)
    assert present(file).any() and not present(file[: SIZE // 4]).any() and not present(file[-SIZE // 4 :]).any()
