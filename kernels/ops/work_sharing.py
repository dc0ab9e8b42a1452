"""How a pool's threads share an operation that falls into independent work items. Knows no operation."""

from __future__ import annotations

from typing import Any

from ..operations import STEP_THREADS
from ..simd.atomics import claim, word

CLAIMS = 8
"""Claims in a thread's equal share, where there are work items enough. By what larger claims won, one that two cores
fight for costs 0.1 to 0.2 us, more than a head's rotation; yet a slow core should not be left with much."""


def parallel_for(count: Any, each: Any) -> Any:
    """The kernel that does each(op, step, thread, item) for every work item 0 .. count(op, step) - 1; both inlined.

    Items may be done in any order, and at the same time: none reads what another writes.
    """

    def kernel(op: Any, step: Any, thread: Any) -> None:
        items = count(op, step)
        grain = max(1, items // (CLAIMS * word(step, STEP_THREADS)))
        first = claim(op, grain)
        while first < items:
            for item in range(first, min(first + grain, items)):
                each(op, step, thread, item)
            first = claim(op, grain)

    return kernel
