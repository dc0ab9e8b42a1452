"""Sums of squares of the columns of a step's rows: what an importance matrix is made of. Knows no model.

    sums[c] = x[0, c]^2 + x[1, c]^2 + ...        one fused multiply-add a row, in the order of the rows

Threads take pieces of columns, so the bits do not depend on their number. Experts have sums of their own, of the rows
that they were given, in the order of their group.
"""

from __future__ import annotations

from typing import Any

from ..operations import EXPERT_SQUARES, SQUARES, STEP_ROWS
from ..simd.atomics import set_word, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, fma, load, splat, store
from .work_sharing import in_pieces

_X, _X_STRIDE, _COLUMNS, _SUMS = SQUARES.slots
_EXPERTS = EXPERT_SQUARES.slots
PIECE = 64
"""Columns of a piece of work."""


@inlined
def _pieces(op: Any, _step: Any) -> Any:
    return (word(op, _COLUMNS) + PIECE - 1) // PIECE


@inlined
def squares(op: Any, step: Any, _thread: Any, piece: Any) -> None:
    """Write the sums of this step's rows, float32 (columns,)."""
    for c in range(piece * PIECE, min((piece + 1) * PIECE, word(op, _COLUMNS)), LANES):
        total = splat(0.0)
        for row in range(word(step, STEP_ROWS)):
            v = load(word(op, _X) + row * word(op, _X_STRIDE) + 4 * c)
            total = fma(v, v, total)
        store(word(op, _SUMS) + 4 * c, total)


@inlined
def _pieces_of_experts(op: Any, step: Any) -> Any:
    return word(op, _EXPERTS.experts) * _pieces(op, step)


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
def expert_squares(op: Any, step: Any, _thread: Any, piece: Any) -> None:
    """Write the sums of a piece of columns of an expert, and with the first piece how many rows it was given."""
    expert, at = piece // _pieces(op, step), piece % _pieces(op, step) * PIECE
    first, count = _results_of(op, expert)
    if at == 0:
        set_word(word(op, _EXPERTS.counts), expert, count)
    sums = word(op, _EXPERTS.sums) + 4 * expert * word(op, _COLUMNS)
    for c in range(at, min(at + PIECE, word(op, _COLUMNS)), LANES):
        total = splat(0.0)
        for result in range(first, first + count):
            v = load(_row_of(op, result) + 4 * c)
            total = fma(v, v, total)
        store(sums + 4 * c, total)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"squares": in_pieces(_pieces, squares), "expert_squares": in_pieces(_pieces_of_experts, expert_squares)}
