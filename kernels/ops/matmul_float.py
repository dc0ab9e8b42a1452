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


def _make_product(load_floats: Any, size: int, rows: int, tokens: int) -> Any:
    """A register tile of `rows` rows of W, elements of `size` bytes, times `tokens` rows of X."""
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


def make_rows(load_floats: Any, size: int, x_at: Any) -> Any:
    """rows(op, w, first, end, x, x_stride, tokens, y): the products of rows first..end-1 of the matrix at w with
    `tokens` rows of X, into rows of results from y on. x_at(x, x_stride, t): address of row t of X."""
    whole, single = (_make_product(load_floats, size, ROWS, tokens) for tokens in (TOKENS, 1))
    last_whole, last_single = (_make_product(load_floats, size, 1, tokens) for tokens in (TOKENS, 1))

    @inlined
    def all_tokens(tile: Any, one: Any, op: Any, w: Any, x: Any, x_stride: Any, tokens: Any, y: Any) -> None:
        row_bytes, columns, y_stride = word(op, _ROW_BYTES), word(op, _COLUMNS), word(op, _Y_STRIDE)
        t = 0
        while t + TOKENS <= tokens:
            a, b = x_at(x, x_stride, t), x_at(x, x_stride, t + 1)
            tile(w, row_bytes, columns, a, b - a, y + t * y_stride, y_stride)
            t += TOKENS
        if t < tokens:
            one(w, row_bytes, columns, x_at(x, x_stride, t), 0, y + t * y_stride, y_stride)

    @inlined
    def rows(op: Any, w: Any, first: Any, end: Any, x: Any, x_stride: Any, tokens: Any, y: Any) -> None:
        row, row_bytes = first, word(op, _ROW_BYTES)
        while row + ROWS <= end:
            all_tokens(whole, single, op, w + row * row_bytes, x, x_stride, tokens, y + 4 * row)
            row += ROWS
        while row < end:
            all_tokens(last_whole, last_single, op, w + row * row_bytes, x, x_stride, tokens, y + 4 * row)
            row += 1

    return rows


@inlined
def _x_at(x: Any, x_stride: Any, t: Any) -> Any:
    return x + t * x_stride


def make_matmul_float(load_floats: Any, size: int) -> Any:
    """The kernel of one format, elements of `size` bytes."""
    rows_times = make_rows(load_floats, size, _x_at)

    def matmul_float(op: Any, step: Any, _thread: Any) -> None:
        rows, tokens = word(op, _ROWS), word(step, STEP_ROWS)
        first = claim(op, GRAIN)
        while first < rows:
            end = min(first + GRAIN, rows)
            rows_times(op, word(op, _W), first, end, word(op, _X), word(op, _X_STRIDE), tokens, word(op, _Y))
            first = claim(op, GRAIN)

    return matmul_float


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_matmul_float(*how) for name, how in FLOAT_LOADS.items()}
