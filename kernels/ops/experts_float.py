"""Products of rows with the matrices of experts in F32, F16 or BF16: `matmul_float`'s loops over groups of rows.

Knows no format but how its elements are loaded. One kernel serves any number of rows.
"""

from __future__ import annotations

from typing import Any

from ..operations import EXPERTS
from ..simd.atomics import claim, word
from ..simd.vocabulary import FLOAT_LOADS
from .expert_groups import chosen, list_inputs, listed, matrix_of, results_of, scratch
from .matmul_float import GRAIN, make_rows

_ROWS, _Y, _Y_STRIDE = EXPERTS.slots.rows, EXPERTS.slots.y, EXPERTS.slots.y_stride


def make_experts_float(load_floats: Any, size: int) -> Any:
    """The kernel of one format, elements of `size` bytes."""
    rows_times = make_rows(load_floats, size, listed)

    def experts_float(op: Any, step: Any, thread: Any) -> None:
        each = (word(op, _ROWS) + GRAIN - 1) // GRAIN
        items, item, (addresses, _) = chosen(op) * each, claim(op, 1), scratch(step, thread)
        while item < items:
            group, row = item // each, item % each * GRAIN
            first, count = results_of(op, group)
            list_inputs(op, first, count, addresses)
            y, end = word(op, _Y) + first * word(op, _Y_STRIDE), min(row + GRAIN, word(op, _ROWS))
            rows_times(op, matrix_of(op, group), row, end, addresses, 0, count, y)
            item = claim(op, 1)

    return experts_float


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_experts_float(*how) for name, how in FLOAT_LOADS.items()}
