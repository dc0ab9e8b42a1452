"""How a pool's threads share an operation that falls into independent pieces. Knows no operation."""

from __future__ import annotations

from typing import Any

from ..operations import STEP_THREADS
from ..simd.atomics import claim, word

CLAIMS = 8
"""Claims in a thread's equal share, where there are pieces enough. By what larger claims won, one costs 0.1 to 0.2 us,
more than a head's rotation; yet a slow core should not be left with much."""


def in_pieces(count: Any, each: Any) -> Any:
    """The kernel that does each(op, step, thread, piece) for every piece in 0 .. count(op, step) - 1; both inlined."""

    def kernel(op: Any, step: Any, thread: Any) -> None:
        pieces = count(op, step)
        grain = max(1, pieces // (CLAIMS * word(step, STEP_THREADS)))
        first = claim(op, grain)
        while first < pieces:
            for piece in range(first, min(first + grain, pieces)):
                each(op, step, thread, piece)
            first = claim(op, grain)

    return kernel
