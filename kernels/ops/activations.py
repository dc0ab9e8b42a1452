"""float32 rows to int8 blocks: the other operand of the integer products. Knows no weight format but its zero.

The layout of a block is drawn in `layout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import LINE, S0, S1, Z0, Z1, D, S, Z
from ..operations import QUANTIZE, STEP_ROWS
from ..simd.atomics import word
from ..simd.decorators import inlined
from ..simd.vocabulary import (
    LANES,
    absolute,
    bits_as_float,
    bits_as_int,
    first_lane,
    load,
    max_lanes_int,
    maximum_int,
    splat,
    splat_int,
    store_bytes,
    store_scalar,
    store_scalar_int,
    sum_lanes_int,
    to_int,
)
from .work_sharing import parallel_for

_HALF = 16 // LANES  # vectors in 16 values
_SMALLEST = np.float32(2.0**-120)  # 127 divided by less may overflow; a block of less is 0

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
    """32 float32 at x to one line at q. Magnitudes compare as integers: a NaN is the largest, and makes d NaN."""
    top = bits_as_int(absolute(load(x)))
    for v in range(1, 2 * _HALF):
        top = maximum_int(bits_as_int(absolute(load(x + 4 * LANES * v))), top)
    largest = first_lane(bits_as_float(splat_int(max_lanes_int(top))))
    inverse = np.float32(127.0) / largest if largest >= _SMALLEST else np.float32(0.0)
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


@inlined
def quantize_row(x: Any, columns: Any, zero: Any, q: Any) -> None:
    """`columns` float32 at x to lines at q."""
    for block in range(columns // 32):
        quantize_block(x + 128 * block, zero, q + LINE * block)


@inlined
def _blocks(op: Any, step: Any) -> Any:
    return word(step, STEP_ROWS) * (word(op, _COLUMNS) // 32)


@inlined
def quantize(op: Any, _step: Any, _thread: Any, item: Any) -> None:
    """A block of a row of float32 to a line."""
    row, block = item // (word(op, _COLUMNS) // 32), item % (word(op, _COLUMNS) // 32)
    x = word(op, _X) + row * word(op, _X_STRIDE) + 128 * block
    quantize_block(x, word(op, _ZERO), word(op, _Q) + row * word(op, _Q_STRIDE) + LINE * block)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"quantize": parallel_for(_blocks, quantize)}
