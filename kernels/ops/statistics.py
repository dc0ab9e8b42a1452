"""Sums of squares of the columns of a step's rows: what an importance matrix is made of. Knows no model.

    sums[c] = x[0, c]^2 + x[1, c]^2 + ...        one fused multiply-add a row, in the order of the rows

Threads take pieces of columns, so the bits do not depend on their number.
"""

from __future__ import annotations

from typing import Any

from ..operations import SQUARES, STEP_ROWS
from ..simd.atomics import word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, fma, load, splat, store
from .work_sharing import in_pieces

_X, _X_STRIDE, _COLUMNS, _SUMS = SQUARES.slots
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


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"squares": in_pieces(_pieces, squares)}
