"""Y = X W^T for weights stored as floats: F32, F16, BF16, with activations in float32.

Knows no format but how its elements are loaded. Lane = column: an output is LANES partial sums over the columns
c = lane (mod LANES), in order, folded at the end by `sum_lanes`. One loop nest serves one row of X and many, so a
row's result does not depend on its company.
"""

from __future__ import annotations

from typing import Any

from ..operations import MATMUL, STEP_ROWS
from ..simd.atomics import claim, word
from ..simd.decorators import inlined
from ..simd.vocabulary import FLOAT_LOADS, LANES, load, store_sums, tile_fma, zeros

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE = MATMUL.slots

ROWS, TOKENS = 4, 2
"""The register tile: 4 rows of W times 2 rows of X, 8 accumulators and 6 loads for 8 products."""
GRAIN = 16
"""Rows of W that a thread takes at a time."""


def make_matmul_float(load_floats: Any, size: int) -> Any:
    """The kernel of one format, elements of `size` bytes."""

    def make_product(rows: int, tokens: int) -> Any:
        COUNT = rows * tokens

        @inlined
        def row_vectors(w: Any, row_bytes: Any) -> Any:
            if rows == 1:
                return (load_floats(w),)
            return (
                load_floats(w),
                load_floats(w + row_bytes),
                load_floats(w + 2 * row_bytes),
                load_floats(w + 3 * row_bytes),
            )

        @inlined
        def token_vectors(x: Any, x_stride: Any) -> Any:
            if tokens == 1:
                return (load(x),)
            return load(x), load(x + x_stride)

        @inlined
        def product(w: Any, row_bytes: Any, columns: Any, x: Any, x_stride: Any, y: Any, y_stride: Any) -> None:
            sums = zeros(COUNT)
            for c in range(0, columns, LANES):
                sums = tile_fma(sums, token_vectors(x + 4 * c, x_stride), row_vectors(w + size * c, row_bytes))
            store_sums(sums, y, y_stride, rows)

        return product

    whole, single = make_product(ROWS, TOKENS), make_product(ROWS, 1)
    last_whole, last_single = make_product(1, TOKENS), make_product(1, 1)

    @inlined
    def all_tokens(many: Any, one: Any, w: Any, row_bytes: Any, op: Any, tokens: Any, row: Any) -> None:
        columns, x_stride, y_stride = word(op, _COLUMNS), word(op, _X_STRIDE), word(op, _Y_STRIDE)
        x, y = word(op, _X), word(op, _Y) + 4 * row
        t = 0
        while t + TOKENS <= tokens:
            many(w, row_bytes, columns, x + t * x_stride, x_stride, y + t * y_stride, y_stride)
            t += TOKENS
        if t < tokens:
            one(w, row_bytes, columns, x + t * x_stride, x_stride, y + t * y_stride, y_stride)

    def matmul_float(op: Any, step: Any, _thread: Any) -> None:
        rows, row_bytes, tokens = word(op, _ROWS), word(op, _ROW_BYTES), word(step, STEP_ROWS)
        first = claim(op, GRAIN)
        while first < rows:
            row, end = first, min(first + GRAIN, rows)
            while row + ROWS <= end:
                all_tokens(whole, single, word(op, _W) + row * row_bytes, row_bytes, op, tokens, row)
                row += ROWS
            while row < end:
                all_tokens(last_whole, last_single, word(op, _W) + row * row_bytes, row_bytes, op, tokens, row)
                row += 1
            first = claim(op, GRAIN)

    return matmul_float


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_matmul_float(*how) for name, how in FLOAT_LOADS.items()}
