"""float32 rows to int8 blocks: the other operand of the integer products. Knows no weight format but its zero.

One block of 32 values is one cache line:

    | 32 x int8 q | f32 d | i32 z0 | i32 z1 | i32 z | f32 s0 | f32 s1 | f32 s | 4 B unused |
      0             32      36       40       44      48       52       56

value = d * q, with d = max|x| / 127 and q rounded to nearest even. z0, z1 are -zero times the sums of q 0..15 and
16..31, z their sum: integer sums of unsigned weights start from them, so the weights' zero costs nothing.
s0, s1, s are d times the sums of q, for formats with a minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_gemma.kernels.atomics import inlined, take, word
from edge_gemma.kernels.operations import QUANTIZE, STEP_ROWS
from edge_gemma.kernels.simd import (
    LANES,
    absolute,
    load,
    max_lanes,
    maximum,
    splat,
    store_bytes,
    store_scalar,
    store_scalar_int,
    sum_lanes_int,
    to_int,
)

LINE = 64
D, Z0, Z1, Z, S0, S1, S = 32, 36, 40, 44, 48, 52, 56
_HALF = 16 // LANES  # vectors in 16 values

_X, _X_STRIDE, _COLUMNS, _ZERO, _Q, _Q_STRIDE = QUANTIZE.slots


@inlined
def _half_block(x: Any, inverse: Any, q: Any) -> Any:
    """Quantize 16 values; their sum."""
    total = np.int32(0)
    for v in range(_HALF):
        rounded = to_int(load(x + 4 * LANES * v) * inverse)
        store_bytes(q + LANES * v, rounded)
        total += sum_lanes_int(rounded)
    return total


@inlined
def quantize_block(x: Any, zero: Any, q: Any) -> Any:
    """32 float32 at x to one line at q."""
    top = absolute(load(x))
    for v in range(1, 2 * _HALF):
        top = maximum(absolute(load(x + 4 * LANES * v)), top)
    largest = max_lanes(top)
    inverse = np.float32(127.0) / largest if largest > np.float32(0.0) else np.float32(0.0)
    d = largest / np.float32(127.0)
    a = _half_block(x, splat(inverse), q)
    b = _half_block(x + 64, splat(inverse), q + 16)
    store_scalar(q + D, d)
    store_scalar_int(q + Z0, np.int32(-zero * a))
    store_scalar_int(q + Z1, np.int32(-zero * b))
    store_scalar_int(q + Z, np.int32(-zero * (a + b)))
    store_scalar(q + S0, d * np.float32(a))
    store_scalar(q + S1, d * np.float32(b))
    store_scalar(q + S, d * np.float32(a + b))


def quantize(op: Any, step: Any, _thread: Any) -> None:
    """Rows of float32 to rows of lines."""
    blocks = word(op, _COLUMNS) // 32
    pieces = word(step, STEP_ROWS) * blocks
    grain = 16
    first = take(op, grain)
    while first < pieces:
        for piece in range(first, min(first + grain, pieces)):
            row, block = piece // blocks, piece % blocks
            x = word(op, _X) + row * word(op, _X_STRIDE) + 128 * block
            quantize_block(x, word(op, _ZERO), word(op, _Q) + row * word(op, _Q_STRIDE) + LINE * block)
        first = take(op, grain)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"quantize": quantize}
