"""Memory that operations work in. Knows no operation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_gemma.memory import memory_for

ALIGNMENT = 64
"""A cache line."""


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Zeroed memory that begins a cache line. Pages are not resident until they are touched.

    Raises MemoryBudgetError.
    """
    with memory_for("a buffer of the model", size, "open with a smaller chunk or fewer threads"):
        memory = np.zeros(size + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    return memory[skip : skip + size]
