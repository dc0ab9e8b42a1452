"""Y = X W^T for several rows of activations: prefill. Knows no format but through its traits.

A thread takes PANEL tiles of LANES rows of W, unpacks a stretch of their columns into a panel in its cache, and uses
the panel for all rows of X, in register tiles of TOKENS x PANEL vectors. The unpacking is paid once per panel, the
sums are added block after block in `matvec`'s order, and partial sums rest in scratch memory between stretches.

The panel's entry of one 32-block and one tile of rows (V = LANES x 4 bytes):

    | 8 V weights, as `formats.weights` gives them | V scale | 2 V subscales, if any | 1 or 2 V minima, if any |
"""

from __future__ import annotations

from typing import Any

from edge_gemma.kernels import formats
from edge_gemma.kernels.atomics import inlined, take, word
from edge_gemma.kernels.formats import INT_FORMATS, IntFormat
from edge_gemma.kernels.layout import (
    LINE,
    PANEL,
    S0,
    S1,
    STRETCH,
    VECTOR,
    Z0,
    Z1,
    D,
    S,
    Z,
)
from edge_gemma.kernels.operations import (
    MATMUL,
    STEP_ROWS,
    STEP_SCRATCH,
    STEP_SCRATCH_BYTES,
)
from edge_gemma.kernels.simd import (
    LANES,
    broadcast_rows,
    load,
    load_int,
    load_tile,
    outer_dot4,
    outer_dot4_wide,
    outer_fma,
    outer_scale,
    store,
    store_int,
    store_tile,
    tile_mul_add,
    zeros,
    zeros_int,
)

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE = MATMUL.slots

TOKENS = 4 if LANES == 16 else 2
"""Rows of X in a register tile: TOKENS x PANEL int32 and as many float32 accumulators fit the registers."""
_V = VECTOR


def make_matmul(fmt: IntFormat) -> Any:
    """The kernel of one format."""
    BLOCKS, SUBS, MINS, NBYTES = fmt.blocks, fmt.subs, fmt.mins, fmt.layout.nbytes
    ENTRY = _V * (9 + (2 if SUBS == 2 else 0) + (SUBS if MINS else 0))
    SUBSCALES, MINIMA = 9 * _V, (11 if SUBS == 2 else 9) * _V
    WHOLE = STRETCH // 32  # 32-blocks of a stretch
    TILE = ENTRY * WHOLE  # from one tile of rows to the next
    dot = outer_dot4_wide if fmt.wide else outer_dot4

    @inlined
    def unpack(at: Any, stride: Any, i: Any, entry: Any) -> None:
        """One entry of the panel from 32-block i of the file block at `at`."""
        w = formats.weights(fmt, at, stride, i)
        for k in range(8):
            store_int(entry + k * _V, w[k])
        store(entry + 8 * _V, formats.scale(fmt, at, stride, i))
        if SUBS == 2:
            s = formats.subscales(fmt, at, stride, i)
            store_int(entry + SUBSCALES, s[0])
            store_int(entry + SUBSCALES + _V, s[1])
        if MINS:
            m = formats.minimum(fmt, at, stride, i)
            store(entry + MINIMA, m[0])
            if SUBS == 2:
                store(entry + MINIMA + _V, m[1])

    @inlined
    def unpack_panel(weights: Any, row_bytes: Any, rows: Any, tile: Any, first: Any, blocks: Any, panel: Any) -> None:
        for p in range(PANEL):
            row = max(0, min(LANES * (tile + p), rows - LANES))
            for b in range(blocks):
                at = weights + row * row_bytes + (first + b) // BLOCKS * NBYTES
                unpack(at, row_bytes, (first + b) % BLOCKS, panel + p * TILE + b * ENTRY)

    @inlined
    def vectors(entry: Any) -> Any:
        return load_int(entry), load_int(entry + TILE)

    @inlined
    def floats(entry: Any) -> Any:
        return load(entry), load(entry + TILE)

    @inlined
    def half(total: Any, entry: Any, x: Any, stride: Any) -> Any:
        total = dot(total, x, stride, vectors(entry))
        total = dot(total, x + 4, stride, vectors(entry + _V))
        total = dot(total, x + 8, stride, vectors(entry + 2 * _V))
        return dot(total, x + 12, stride, vectors(entry + 3 * _V))

    def make_product(tokens: int) -> Any:
        SIZE = tokens * PANEL

        @inlined
        def product(panel: Any, blocks: Any, x: Any, stride: Any, sums: Any) -> None:
            """Add `blocks` blocks' products of the panel with `tokens` rows of X at x to the partial sums."""
            y = load_tile(zeros(SIZE), sums, PANEL * _V, PANEL)
            for b in range(blocks):
                entry, line = panel + b * ENTRY, x + b * LINE
                w = vectors(entry)
                if SUBS == 1:
                    total = half(broadcast_rows(line + Z, stride, zeros_int(SIZE), w), entry, line, stride)
                    total = half(total, entry + 4 * _V, line + 16, stride)
                else:
                    low = half(broadcast_rows(line + Z0, stride, zeros_int(SIZE), w), entry, line, stride)
                    total = tile_mul_add(zeros_int(SIZE), low, vectors(entry + SUBSCALES))
                    high = broadcast_rows(line + Z1, stride, zeros_int(SIZE), w)
                    high = half(high, entry + 4 * _V, line + 16, stride)
                    total = tile_mul_add(total, high, vectors(entry + SUBSCALES + _V))
                y = outer_scale(y, total, line + D, stride, floats(entry + 8 * _V))
                if MINS:
                    if SUBS == 1:
                        y = outer_fma(y, line + S, stride, floats(entry + MINIMA))
                    else:
                        y = outer_fma(y, line + S0, stride, floats(entry + MINIMA))
                        y = outer_fma(y, line + S1, stride, floats(entry + MINIMA + _V))
            store_tile(y, sums, PANEL * _V, PANEL)

        return product

    product_many, product_one = make_product(TOKENS), make_product(1)

    @inlined
    def stretch(panel: Any, blocks: Any, x: Any, stride: Any, tokens: Any, sums: Any) -> None:
        """The panel with all rows of X."""
        t = 0
        while t + TOKENS <= tokens:
            product_many(panel, blocks, x + t * stride, stride, sums + t * PANEL * _V)
            t += TOKENS
        while t < tokens:
            product_one(panel, blocks, x + t * stride, stride, sums + t * PANEL * _V)
            t += 1

    @inlined
    def write(sums: Any, tokens: Any, rows: Any, tile: Any, y: Any, y_stride: Any) -> None:
        for p in range(PANEL):
            row = LANES * (tile + p)
            if row < rows:
                row = min(row, rows - LANES)
                for t in range(tokens):
                    store(y + t * y_stride + 4 * row, load(sums + (t * PANEL + p) * _V))

    def matmul(op: Any, step: Any, thread: Any) -> None:
        rows, row_bytes, blocks = word(op, _ROWS), word(op, _ROW_BYTES), word(op, _COLUMNS) // 32
        tokens, x, x_stride = word(step, STEP_ROWS), word(op, _X), word(op, _X_STRIDE)
        panel = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        sums = panel + PANEL * TILE
        tiles = (rows + LANES - 1) // LANES
        tile = take(op, PANEL)
        while tile < tiles:
            for t in range(tokens * PANEL):
                store(sums + t * _V, zeros(1)[0])
            for first in range(0, blocks, WHOLE):
                count = min(WHOLE, blocks - first)
                unpack_panel(word(op, _W), row_bytes, rows, tile, first, count, panel)
                stretch(panel, count, x + first * LINE, x_stride, tokens, sums)
            write(sums, tokens, rows, tile, word(op, _Y), word(op, _Y_STRIDE))
            tile = take(op, PANEL)

    return matmul


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_matmul(fmt) for name, fmt in INT_FORMATS.items()}
