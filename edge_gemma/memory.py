"""Taking memory in large pieces: an error says what it was for, how many bytes, and what takes less. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edge_gemma.cores import available_memory
from edge_gemma.errors import MemoryBudgetError, is_out_of_memory

CHECKED = 64 * 2**20
"""Bytes from which on it is asked whether they are there. A system that promises more than it has gives them all the
same, and ends the process when they are written."""


@contextmanager
def memory_for(what: str, size: int, advice: str) -> Iterator[None]:
    """Around an allocation of `size` bytes: raises MemoryBudgetError where the system refuses them."""
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryBudgetError) or not is_out_of_memory(error):
            raise
        raise MemoryBudgetError(f"the system has no memory for {what}, {size} bytes; {advice}") from error


def require_memory(what: str, size: int, advice: str) -> None:
    """Raise MemoryBudgetError if `size` bytes, soon to be written, are more than there is."""
    if size >= CHECKED and size > (available := available_memory()):
        raise MemoryBudgetError(f"{what}: {size} bytes are needed, {available} are available; {advice}")
