"""The operations on rows that are no products: embedding, norms, gates, sums, caps. Those on heads: `heads`.

Know no model. Rows are float32; each operation hands out rows, or parts of rows, to the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import ITEM_COLUMNS, LINE, SUMS
from ..operations import (
    ADD,
    EMBED,
    EXPERT_GATE,
    GATE,
    NORM,
    SOFTCAP,
    STEP_ROWS,
    STEP_SCRATCH,
    STEP_SCRATCH_BYTES,
    STEP_TOKENS,
)
from ..simd.atomics import real, word
from ..simd.decorators import inlined
from ..simd.transcendental import activated, softcap
from ..simd.vocabulary import (
    FLOAT_LOADS,
    LANES,
    first_lane,
    first_lane_int,
    fma,
    load,
    load_scalar,
    replace_first,
    splat,
    splat_int,
    square_root,
    store,
    store_scalar,
    sum_of_16,
    to_float,
    zeros,
)
from . import formats
from .activations import quantize_row
from .formats import INT_FORMATS, IntFormat
from .work_sharing import parallel_for

# The words of a program's row that hold each operation's arguments, in the order of `operations`.
_EMBED, _NORM, _GATE, _ADD, _SOFTCAP = (o.slots for o in (EMBED, NORM, GATE, ADD, SOFTCAP))
_CHOICES = EXPERT_GATE.slots[-1]
_VECTOR = 4 * LANES


@inlined
def _rows(_op: Any, step: Any) -> Any:
    """Work items of an operation: whole rows."""
    return word(step, STEP_ROWS)


# ---- embedding ---------------------------------------------------------------------------------------------------


def make_embed_blocks(fmt: IntFormat) -> Any:
    """Rows of a quantized table: y = scale * table[token]. Every lane reads the same row (stride 0); lane 0 is kept."""
    BLOCKS, SUBS, MINS, NBYTES, ZERO = fmt.blocks, fmt.subs, fmt.mins, fmt.layout.nbytes, fmt.zero
    FLIP = 128 - ZERO if fmt.wide else 0  # bytes that come signed become unsigned + 128

    @inlined
    def value(w: Any, byte: Any, factor: Any, offset: Any) -> Any:
        unsigned = first_lane_int(((w >> (8 * byte)) & splat_int(255)) ^ splat_int(FLIP))
        return fma(splat(np.float32(unsigned - np.int32(ZERO + FLIP))), factor, offset)

    @inlined
    def block(at: Any, i: Any, multiplier: Any, y: Any) -> None:
        w = formats.weights(fmt, at, 0, i)
        for half in range(2):
            factor, offset = formats.scale(fmt, at, 0, i), splat(0.0)
            if SUBS == 2:
                factor = factor * to_float(formats.subscales(fmt, at, 0, i)[half])
            if MINS:
                offset = formats.minimum(fmt, at, 0, i)[half]
            for k in range(4):
                for byte in range(4):
                    out = value(w[4 * half + k], byte, factor, offset) * multiplier
                    store_scalar(y + 64 * half + 16 * k + 4 * byte, first_lane(out))

    @inlined
    def embed(op: Any, step: Any, _thread: Any, row: Any) -> None:
        table, row_bytes, columns, y, y_stride, m = _embed_arguments(op)
        at = table + word(word(step, STEP_TOKENS), row) * row_bytes
        for b in range(columns // 32):
            block(at + b // BLOCKS * NBYTES, b % BLOCKS, splat(real(op, m)), y + row * y_stride + 128 * b)

    return parallel_for(_rows, embed)


@inlined
def _embed_arguments(op: Any) -> Any:
    t, r, c, y, s, m = _EMBED
    return word(op, t), word(op, r), word(op, c), word(op, y), word(op, s), m


def make_embed_floats(load_floats: Any, size: int) -> Any:
    """Rows of a float table, elements of `size` bytes."""

    @inlined
    def embed(op: Any, step: Any, _thread: Any, row: Any) -> None:
        table, row_bytes, columns, y, y_stride, m = _embed_arguments(op)
        at = table + word(word(step, STEP_TOKENS), row) * row_bytes
        for c in range(0, columns, LANES):
            store(y + row * y_stride + 4 * c, load_floats(at + size * c) * splat(real(op, m)))

    return parallel_for(_rows, embed)


# ---- norms -------------------------------------------------------------------------------------------------------


@inlined
def inverse_rms(x: Any, columns: Any, epsilon: Any) -> Any:
    """1 / sqrt(mean(x^2) + epsilon) of a row."""
    squares = zeros(SUMS)
    for c in range(0, columns, LANES):
        v = load(x + 4 * c)
        squares = replace_first(squares, fma(v, v, squares[0]))
    mean = splat(sum_of_16(squares) / np.float32(columns) + epsilon)
    return np.float32(1.0) / first_lane(square_root(mean))


@inlined
def _output(op: Any, step: Any, thread: Any, y: Any, y_stride: Any, row: Any, first: Any) -> Any:
    """Where to write values first.. of row `row` of y: the thread's scratch memory if y is null."""
    if word(op, y) == 0:
        return word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
    return word(op, y) + row * word(op, y_stride) + 4 * first


@inlined
def norm(op: Any, step: Any, thread: Any, row: Any) -> None:
    """y = rms_norm(x) * weight, or (base + that) * factor if there is a base. arXiv:1910.07467; weights include the + 1
    that some models add."""
    X, X_STRIDE, WEIGHT, COLUMNS, EPSILON, BASE, BASE_STRIDE, FACTOR, Y, Y_STRIDE, Q, Q_STRIDE, ZERO = _NORM
    columns, weight = word(op, COLUMNS), word(op, WEIGHT)
    x = word(op, X) + row * word(op, X_STRIDE)
    y = _output(op, step, thread, Y, Y_STRIDE, row, 0)
    scale = splat(inverse_rms(x, columns, real(op, EPSILON)))
    if word(op, BASE) == 0:
        for c in range(0, 4 * columns, _VECTOR):
            store(y + c, load(x + c) * scale * load(weight + c))
    else:
        base, factor = word(op, BASE) + row * word(op, BASE_STRIDE), splat(1.0)
        if word(op, FACTOR) != 0:
            factor = splat(load_scalar(word(op, FACTOR)))
        for c in range(0, 4 * columns, _VECTOR):
            store(y + c, (load(base + c) + load(x + c) * scale * load(weight + c)) * factor)
    if word(op, Q) != 0:
        quantize_row(y, columns, word(op, ZERO), word(op, Q) + row * word(op, Q_STRIDE))


# ---- gates, sums, caps -------------------------------------------------------------------------------------------


def parallel_for_columns(columns: int, each: Any, rows: Any = _rows) -> Any:
    """The kernel that does each(op, step, thread, row, first, end) for ITEM_COLUMNS columns of a row at a time.

    `columns` is the word that says how many a row has; rows(op, step): how many rows.
    """

    @inlined
    def items(op: Any, step: Any) -> Any:
        return rows(op, step) * ((word(op, columns) + ITEM_COLUMNS - 1) // ITEM_COLUMNS)

    @inlined
    def part_of_row(op: Any, step: Any, thread: Any, item: Any) -> None:
        per_row = (word(op, columns) + ITEM_COLUMNS - 1) // ITEM_COLUMNS
        first = item % per_row * ITEM_COLUMNS
        each(op, step, thread, item // per_row, first, min(first + ITEM_COLUMNS, word(op, columns)))

    return parallel_for(items, part_of_row)


@inlined
def gate(op: Any, step: Any, thread: Any, row: Any, first: Any, end: Any) -> None:
    """y = activation(gate) * up. arXiv:2002.05202 (GeGLU, SwiGLU)."""
    GATE_, GATE_STRIDE, UP, UP_STRIDE, ACTIVATION, _, Y, Y_STRIDE, Q, Q_STRIDE, ZERO = _GATE
    g, u = word(op, GATE_) + row * word(op, GATE_STRIDE), word(op, UP) + row * word(op, UP_STRIDE)
    y = _output(op, step, thread, Y, Y_STRIDE, row, first)
    for c in range(4 * first, 4 * end, _VECTOR):
        store(y + c - 4 * first, activated(load(g + c), word(op, ACTIVATION)) * load(u + c))
    if word(op, Q) != 0:
        quantize_row(y, end - first, word(op, ZERO), word(op, Q) + row * word(op, Q_STRIDE) + first // 32 * LINE)


@inlined
def _pairs(op: Any, step: Any) -> Any:
    """Rows of `expert_gate`, whose arguments begin as those of `gate`: one for each choice of each row of the step."""
    return word(step, STEP_ROWS) * word(op, _CHOICES)


@inlined
def add(op: Any, _step: Any, _thread: Any, row: Any, first: Any, end: Any) -> None:
    """y = y + x."""
    X, X_STRIDE, Y, Y_STRIDE, _ = _ADD
    x, y = word(op, X) + row * word(op, X_STRIDE), word(op, Y) + row * word(op, Y_STRIDE)
    for c in range(4 * first, 4 * end, _VECTOR):
        store(y + c, load(y + c) + load(x + c))


@inlined
def cap(op: Any, _step: Any, _thread: Any, row: Any, first: Any, end: Any) -> None:
    """x = cap * tanh(x / cap); a row's last values, fewer than a vector, one by one."""
    X, X_STRIDE, _, CAP = _SOFTCAP
    limit, inverse = splat(real(op, CAP)), splat(np.float32(1.0) / real(op, CAP))
    x, c = word(op, X) + row * word(op, X_STRIDE), first
    while c + LANES <= end:
        store(x + 4 * c, softcap(load(x + 4 * c), limit, inverse))
        c += LANES
    while c < end:
        store_scalar(x + 4 * c, first_lane(softcap(splat(load_scalar(x + 4 * c)), limit, inverse)))
        c += 1


_PARTS = {"gate": (_GATE.columns, gate), "add": (_ADD.columns, add), "softcap": (_SOFTCAP.columns, cap)}


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    table = {"norm": parallel_for(_rows, norm)}
    table |= {name: parallel_for_columns(*parts) for name, parts in _PARTS.items()}
    table["expert_gate"] = parallel_for_columns(_GATE.columns, gate, _pairs)
    for name, fmt in INT_FORMATS.items():
        table[f"embed_{name}"] = make_embed_blocks(fmt)
    for name, (load_floats, size) in FLOAT_LOADS.items():
        table[f"embed_{name}"] = make_embed_floats(load_floats, size)
    return table
