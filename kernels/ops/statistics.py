"""Sums of squares of the columns of a step's rows: what an importance matrix is made of. Knows no model.

    sums[c] = x[0, c]^2 + x[1, c]^2 + ...        one fused multiply-add a row, in the order of the rows

A work item is some columns of all rows, so no bit depends on the number of threads. Experts have sums of their own, of
the rows that they were given, in the order of their group.
"""

from __future__ import annotations

from typing import Any

from ..operations import EXPERT_SQUARES, SQUARES, STEP_ROWS
from ..simd.atomics import set_word, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, fma, load, splat, store
from .work_sharing import parallel_for

_X, _X_STRIDE, _COLUMNS, _SUMS = SQUARES.slots
_EXPERTS = EXPERT_SQUARES.slots
ITEM_COLUMNS = 64
"""Columns of a work item."""


@inlined
def _items(op: Any, _step: Any) -> Any:
    return (word(op, _COLUMNS) + ITEM_COLUMNS - 1) // ITEM_COLUMNS


@inlined
def squares(op: Any, step: Any, _thread: Any, item: Any) -> None:
    """Write the sums of this step's rows, float32 (columns,)."""
    for c in range(item * ITEM_COLUMNS, min((item + 1) * ITEM_COLUMNS, word(op, _COLUMNS)), LANES):
        total = splat(0.0)
        for row in range(word(step, STEP_ROWS)):
            v = load(word(op, _X) + row * word(op, _X_STRIDE) + 4 * c)
            total = fma(v, v, total)
        store(word(op, _SUMS) + 4 * c, total)


@inlined
def _items_of_experts(op: Any, step: Any) -> Any:
    return word(op, _EXPERTS.experts) * _items(op, step)


@inlined
def _results_of(op: Any, expert: Any) -> Any:
    """The first result of an expert, and how many there are: none if it was not chosen."""
    groups, first, count = word(op, _EXPERTS.groups), 0, 0
    for group in range(word(groups, 0)):
        if word(groups, 1 + 2 * group) == expert:
            first = word(groups, 2 + 2 * group)
            count = word(groups, 4 + 2 * group) - first
    return first, count


@inlined
def _row_of(op: Any, result: Any) -> Any:
    """Address of the row of x that a result is made of."""
    if word(op, _EXPERTS.sources) != 0:
        result = word(word(op, _EXPERTS.sources), result)
    return word(op, _X) + result * word(op, _X_STRIDE)


@inlined
def expert_squares(op: Any, step: Any, _thread: Any, item: Any) -> None:
    """Write the sums of some columns of an expert, and with its first ones how many rows it was given."""
    expert, at = item // _items(op, step), item % _items(op, step) * ITEM_COLUMNS
    first, count = _results_of(op, expert)
    if at == 0:
        set_word(word(op, _EXPERTS.counts), expert, count)
    sums = word(op, _EXPERTS.sums) + 4 * expert * word(op, _COLUMNS)
    for c in range(at, min(at + ITEM_COLUMNS, word(op, _COLUMNS)), LANES):
        total = splat(0.0)
        for result in range(first, first + count):
            v = load(_row_of(op, result) + 4 * c)
            total = fma(v, v, total)
        store(sums + 4 * c, total)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"squares": parallel_for(_items, squares), "expert_squares": parallel_for(_items_of_experts, expert_squares)}
