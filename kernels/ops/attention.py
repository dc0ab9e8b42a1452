"""Attention over the key-value cache: grouped queries, sliding window, soft-cap. Knows no model and no thread count.

The keys of a sequence are cut into spans of SPAN, aligned to positions. A query's result is defined span by span:

    m_s = max score in the span,  l_s = sum exp(score - m_s),  o_s = sum exp(score - m_s) v     (keys in order)

and the partial results (m, l, o) are folded in order of spans, y = o / l. So it does not matter who computes a span,
nor which other queries share its loads: masked keys have weight exactly 0. A tile of several rows folds as it goes
(`attend`); a single row spreads its spans over the threads and folds afterwards (`attend_one`, then `merge`).

Cache of one layer, sequence and key-value head (C slots, a multiple of SPAN; position p has slot p mod C):

    K: [C / LANES][head_dim][LANES]   lane = key: a score is a chain of fma over the head, no sum across lanes
    V: [C][head_dim]                  lane = dimension

Partial results rest in records, drawn in `layout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import LINE, QUERIES, QUERY_HEADS, QUERY_ROWS, SPAN, VECTOR
from ..operations import (
    APPEND,
    ATTEND,
    MERGE,
    STEP_N_TILES,
    STEP_POSITIONS,
    STEP_ROWS,
    STEP_SCRATCH,
    STEP_SCRATCH_BYTES,
    STEP_SEQUENCES,
    STEP_TILES,
)
from ..simd.atomics import claim, real, word
from ..simd.decorators import inlined
from ..simd.transcendental import exp
from ..simd.vocabulary import LANES, first_lane, fma, load, load_scalar, splat, store, store_scalar
from .activations import quantize_row
from .attention_span import CACHE_TYPES, MINUS_INFINITY, TILE, make_span
from .work_sharing import in_pieces

_APPEND, _ATTEND, _MERGE = APPEND.slots, ATTEND.slots, MERGE.slots
_V = VECTOR

# ---- writing the cache -------------------------------------------------------------------------------------------


def make_append(kind: str) -> Any:
    """Rows of keys and values into the cache, at their positions."""
    _, store_values, scatter_values, SIZE = CACHE_TYPES[kind]
    K, V, STRIDE, HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES, CAPACITY = _APPEND

    @inlined
    def groups(op: Any, step: Any) -> Any:
        return (word(step, STEP_ROWS) + LANES - 1) // LANES * word(op, HEADS)

    @inlined
    def append(op: Any, step: Any, _thread: Any, piece: Any) -> None:
        """One head of LANES rows: their keys lie in the same cache lines, which threads should not share."""
        size, head = word(op, HEAD_DIM), piece % word(op, HEADS)
        first = piece // word(op, HEADS) * LANES
        for row in range(first, min(first + LANES, word(step, STEP_ROWS))):
            slot = word(word(step, STEP_POSITIONS), row) % word(op, CAPACITY)
            start = word(word(step, STEP_SEQUENCES), row) * word(op, SEQUENCE_BYTES) + head * word(op, HEAD_BYTES)
            keys = word(op, K_CACHE) + start + SIZE * (slot // LANES * LANES * size + slot % LANES)
            values = word(op, V_CACHE) + start + SIZE * size * slot
            source = row * word(op, STRIDE) + 4 * size * head
            for d in range(0, size, LANES):
                scatter_values(keys + SIZE * LANES * d, SIZE * LANES, load(word(op, K) + source + 4 * d))
                store_values(values + SIZE * d, load(word(op, V) + source + 4 * d))

    return in_pieces(groups, append)


# ---- folding partial results -------------------------------------------------------------------------------------


@inlined
def _reset(state: Any) -> None:
    """Nothing folded yet; a result that stays so is NaN."""
    store_scalar(state, MINUS_INFINITY)
    store_scalar(state + 4, np.float32(np.nan))


@inlined
def _fold(state: Any, partial: Any, head_dim: Any) -> None:
    """state + partial, both rescaled to the larger maximum."""
    m, n = load_scalar(state), load_scalar(partial)
    if n == MINUS_INFINITY:
        return
    top = max(m, n)
    a, b = exp(splat(m - top)), exp(splat(n - top))
    if m == MINUS_INFINITY:  # nothing yet, and the record's contents undefined
        for d in range(_V, _V + 4 * head_dim, _V):
            store(state + d, load(partial + d))
        store_scalar(state + 4, load_scalar(partial + 4))
    else:
        for d in range(_V, _V + 4 * head_dim, _V):
            store(state + d, fma(load(partial + d), b, load(state + d) * a))
        sums = fma(splat(load_scalar(partial + 4)), b, splat(load_scalar(state + 4)) * a)
        store_scalar(state + 4, first_lane(sums))
    store_scalar(state, top)


@inlined
def _finish(state: Any, head_dim: Any, head: Any, y: Any, q: Any, zero: Any) -> None:
    """o / l of a head, to its place in the row at y, or in the row of int8 blocks at q; either may be null."""
    out = state + _V if y == 0 else y + 4 * head_dim * head
    total = splat(load_scalar(state + 4))
    for d in range(0, 4 * head_dim, _V):
        store(out + d, load(state + _V + d) / total)
    if q != 0:
        quantize_row(out, head_dim, zero, q + head_dim // 32 * LINE * head)


@inlined
def _row_of(base: Any, stride: Any, row: Any) -> Any:
    """The address of a row; null of null."""
    return 0 if base == 0 else base + row * stride


# ---- the operations ----------------------------------------------------------------------------------------------


@inlined
def _gather(op: Any, row: Any, count: Any, head: Any, heads: Any, queries: Any, states: Any, record: Any) -> None:
    """`count` queries, `heads` from `head` on of each row from `row` on, side by side; a fresh state for each.

    Rows lie a power of two apart: read where they are, they would all want the same few lines of the cache.
    """
    Q, Q_STRIDE, _, _, _, _, HEAD_DIM, _, _, _, _, _, _, _, _, _, _, _ = _ATTEND
    size = 4 * word(op, HEAD_DIM)
    for j in range(count):
        source = word(op, Q) + (row + j // heads) * word(op, Q_STRIDE) + size * (head + j % heads)
        for d in range(0, size, _V):
            store(queries + j * record + d, load(source + d))
        _reset(states + j * record)


@inlined
def _scatter(op: Any, row: Any, count: Any, head: Any, heads: Any, states: Any, record: Any) -> None:
    """The results of `_gather`'s queries to their rows."""
    _, _, Y, Y_STRIDE, _, _, HEAD_DIM, _, _, _, _, _, _, _, _, OUT, OUT_STRIDE, ZERO = _ATTEND
    for j in range(count):
        y = _row_of(word(op, Y), word(op, Y_STRIDE), row + j // heads)
        out = _row_of(word(op, OUT), word(op, OUT_STRIDE), row + j // heads)
        _finish(states + j * record, word(op, HEAD_DIM), head + j % heads, y, out, word(op, ZERO))


def make_attend(kind: str) -> Any:
    """Several rows: a tile of rows, and up to QUERY_HEADS of the heads that share keys, is a piece of work."""
    span, SIZE = make_span(kind, (TILE, 2, 1))

    def attend(op: Any, step: Any, thread: Any) -> None:
        (
            _, _, _, _, HEADS, KV_HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES,
            CAPACITY, WINDOW, SOFTCAP, _, _, _, _,
        ) = _ATTEND  # fmt: skip
        kv_heads, head_dim, window, cap = word(op, KV_HEADS), word(op, HEAD_DIM), word(op, WINDOW), real(op, SOFTCAP)
        group, record = word(op, HEADS) // kv_heads, _V + 4 * head_dim
        parts = (group + QUERY_HEADS - 1) // QUERY_HEADS
        queries = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        states = queries + QUERY_ROWS * QUERY_HEADS * record
        partial = states + QUERY_ROWS * QUERY_HEADS * record
        s = partial + QUERIES * record
        piece = claim(op, 1)
        while piece < word(step, STEP_N_TILES) * kv_heads * parts:
            tile, kv_head, part = piece // (kv_heads * parts), piece // parts % kv_heads, piece % parts
            row, rows = word(word(step, STEP_TILES), 2 * tile), word(word(step, STEP_TILES), 2 * tile + 1)
            head, heads = kv_head * group + part * QUERY_HEADS, min(QUERY_HEADS, group - part * QUERY_HEADS)
            position = word(word(step, STEP_POSITIONS), row)
            _gather(op, row, rows * heads, head, heads, queries, states, record)
            cache = word(word(step, STEP_SEQUENCES), row) * word(op, SEQUENCE_BYTES) + kv_head * word(op, HEAD_BYTES)
            for start in range(max(0, position - window + 1) // SPAN * SPAN, position + rows, SPAN):
                k = word(op, K_CACHE) + cache + SIZE * head_dim * (start % word(op, CAPACITY))
                v = word(op, V_CACHE) + cache + SIZE * head_dim * (start % word(op, CAPACITY))
                for j in range(0, rows * heads, QUERIES):
                    count = min(QUERIES, rows * heads - j)
                    span(
                        queries + j * record, record, count, heads, position + j // heads, start, window,
                        k, v, k + SIZE * head_dim * SPAN, head_dim, cap, s, partial, record,
                    )  # fmt: skip
                    for i in range(count):
                        _fold(states + (j + i) * record, partial + i * record, head_dim)
            _scatter(op, row, rows * heads, head, heads, states, record)
            piece = claim(op, 1)

    return attend


@inlined
def _record_of(partial: Any, head: Any, number: Any, capacity: Any, head_dim: Any) -> Any:
    """The record of a head's span `number`, counted from the first span it sees."""
    return partial + (head * (capacity // SPAN + 1) + number) * (_V + 4 * head_dim)


def make_attend_one(kind: str) -> Any:
    """One row: every span of every key-value head is a piece of work. `merge` folds them."""
    span, SIZE = make_span(kind, (4, 2, 1))

    def attend_one(op: Any, step: Any, thread: Any) -> None:
        (
            Q, _, _, _, HEADS, KV_HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES,
            CAPACITY, WINDOW, SOFTCAP, PARTIAL, _, _, _,
        ) = _ATTEND  # fmt: skip
        kv_heads, head_dim, window, cap = word(op, KV_HEADS), word(op, HEAD_DIM), word(op, WINDOW), real(op, SOFTCAP)
        group, capacity = word(op, HEADS) // kv_heads, word(op, CAPACITY)
        s = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        position = word(word(step, STEP_POSITIONS), 0)
        low = max(0, position - window + 1)
        spans = position // SPAN - low // SPAN + 1
        caches = word(word(step, STEP_SEQUENCES), 0) * word(op, SEQUENCE_BYTES)
        piece, following = claim(op, 1), claim(op, 1)
        while piece < spans * kv_heads:
            number, kv_head = piece // kv_heads, piece % kv_heads
            start = (low // SPAN + number) * SPAN
            at = caches + kv_head * word(op, HEAD_BYTES) + SIZE * head_dim * (start % capacity)
            next_start = (low // SPAN + following // kv_heads) * SPAN
            after = caches + following % kv_heads * word(op, HEAD_BYTES) + SIZE * head_dim * (next_start % capacity)
            results = _record_of(word(op, PARTIAL), kv_head * group, number, capacity, head_dim)
            span(
                word(op, Q) + 4 * head_dim * group * kv_head, 4 * head_dim, group, group, position, start, window,
                word(op, K_CACHE) + at, word(op, V_CACHE) + at, word(op, K_CACHE) + after, head_dim, cap, s, results,
                (capacity // SPAN + 1) * (_V + 4 * head_dim),
            )  # fmt: skip
            piece, following = following, claim(op, 1)

    return attend_one


def merge(op: Any, step: Any, thread: Any) -> None:
    """Fold the records of `attend_one` in order of spans."""
    Y, HEADS, HEAD_DIM, WINDOW, CAPACITY, PARTIAL, Q, ZERO = _MERGE
    head_dim = word(op, HEAD_DIM)
    position = word(word(step, STEP_POSITIONS), 0)
    spans = position // SPAN - max(0, position - word(op, WINDOW) + 1) // SPAN + 1
    state = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
    head = claim(op, 1)
    while head < word(op, HEADS):
        _reset(state)
        for number in range(spans):
            _fold(state, _record_of(word(op, PARTIAL), head, number, word(op, CAPACITY), head_dim), head_dim)
        _finish(state, head_dim, head, word(op, Y), word(op, Q), word(op, ZERO))
        head = claim(op, 1)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    table = {"merge": merge}
    for kind in CACHE_TYPES:
        table[f"append_{kind}"] = make_append(kind)
        table[f"attend_{kind}"] = make_attend(kind)
        table[f"attend_one_{kind}"] = make_attend_one(kind)
    return table
