"""y = W x for one row of activations: decode. Knows no format and no instruction set.

W's rows lie in the file as blocks; a tile of LANES rows is read block by block, lane = row, and never leaves the
registers. Per 32-block and row, with exact integers in brackets,

    y += d_w d_x * [sum_subs  s * (z_sub + sum_e w_e q_e)]  (+ sum_subs  min_sub * S_sub)

added in float32 block after block: the order `matmul` has too, so a row's result does not depend on its company.
Bytes read per output: the row's bytes, once. The tile after the present one is prefetched meanwhile, linearly.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.kernels import formats
from edge_gemma.kernels.atomics import take, word
from edge_gemma.kernels.formats import INT_FORMATS, IntFormat
from edge_gemma.kernels.jit import inlined
from edge_gemma.kernels.layout import LINE, S0, S1, Z0, Z1, D, S, Z
from edge_gemma.kernels.operations import MATMUL
from edge_gemma.kernels.simd import (
    LANES,
    broadcast,
    broadcast_int,
    dot4,
    dot4_wide,
    fma,
    prefetch,
    splat,
    store,
    to_float,
)

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE = MATMUL.slots

GRAIN_BYTES = 1 << 16
"""Weights claimed at a time by a thread: long enough to stream, short enough to even out unequal cores."""


def _make_dot(wide: bool) -> Any:
    dot = dot4_wide if wide else dot4

    @inlined
    def half(total: Any, w0: Any, w1: Any, w2: Any, w3: Any, x: Any) -> Any:
        """total + 16 weights of each row times 16 inputs at x."""
        total = dot(total, w0, broadcast_int(x))
        total = dot(total, w1, broadcast_int(x + 4))
        total = dot(total, w2, broadcast_int(x + 8))
        return dot(total, w3, broadcast_int(x + 12))

    return half


def make_matvec(fmt: IntFormat) -> Any:
    """The kernel of one format."""
    BLOCKS, GROUP, SUBS, MINS, NBYTES = fmt.blocks, fmt.group, fmt.subs, fmt.mins, fmt.layout.nbytes
    SHARE = LANES * NBYTES // BLOCKS
    half = _make_dot(fmt.wide)

    @inlined
    def block(y: Any, at: Any, stride: Any, i: Any, x: Any) -> Any:
        """y + the products of 32-block i of the file block at `at` with the line at x."""
        w = formats.weights(fmt, at, stride, i)
        scale = formats.scale(fmt, at, stride, i) * broadcast(x + D)
        if SUBS == 1:
            total = half(broadcast_int(x + Z), w[0], w[1], w[2], w[3], x)
            total = half(total, w[4], w[5], w[6], w[7], x + 16)
        else:
            s = formats.subscales(fmt, at, stride, i)
            total = s[0] * half(broadcast_int(x + Z0), w[0], w[1], w[2], w[3], x)
            total = total + s[1] * half(broadcast_int(x + Z1), w[4], w[5], w[6], w[7], x + 16)
        y = fma(to_float(total), scale, y)
        if MINS:
            m = formats.minimum(fmt, at, stride, i)
            if SUBS == 1:
                y = fma(m[0], broadcast(x + S), y)
            else:
                y = fma(m[1], broadcast(x + S1), fma(m[0], broadcast(x + S0), y))
        return y

    @inlined
    def step(y: Any, at: Any, stride: Any, i: Any, x: Any, ahead: Any) -> Any:
        """`block`, after asking for as many bytes of the next tile as it reads itself."""
        for line in range(0, SHARE, 64):
            prefetch(ahead + i * SHARE + line)
        return block(y, at, stride, i, x + i * LINE)

    @inlined
    def tile(weights: Any, row_bytes: Any, columns: Any, x: Any, ahead: Any) -> Any:
        """LANES outputs; `ahead` is this thread's next tile."""
        y = splat(0.0)
        for b in range(columns // (32 * BLOCKS)):
            at = weights + b * NBYTES
            line, next_tile = x + b * BLOCKS * LINE, ahead + b * LANES * NBYTES
            for g in range(0, BLOCKS, GROUP):
                y = step(y, at, row_bytes, g, line, next_tile)
                if GROUP > 1:
                    y = step(y, at, row_bytes, g + 1, line, next_tile)
                if GROUP > 2:
                    y = step(y, at, row_bytes, g + 2, line, next_tile)
                    y = step(y, at, row_bytes, g + 3, line, next_tile)
        return y

    def matvec(op: Any, _step: Any, _thread: Any) -> None:
        rows, row_bytes, columns = word(op, _ROWS), word(op, _ROW_BYTES), word(op, _COLUMNS)
        tiles = (rows + LANES - 1) // LANES
        grain = max(1, GRAIN_BYTES // (LANES * row_bytes))
        t = take(op, grain)
        end, following = t + grain, take(op, grain)  # one claim ahead, so that its first tile is prefetched too
        while t < tiles:
            row = min(LANES * t, rows - LANES)  # the last tile may overlap the one before
            t += 1
            if t == end:
                t, end, following = following, following + grain, take(op, grain)
            ahead = word(op, _W) + min(LANES * t, rows - LANES) * row_bytes
            y = tile(word(op, _W) + row * row_bytes, row_bytes, columns, word(op, _X), ahead)
            store(word(op, _Y) + 4 * row, y)

    return matvec


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_matvec(fmt) for name, fmt in INT_FORMATS.items()}
