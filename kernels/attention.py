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

from edge_gemma.kernels.activations import quantize_row
from edge_gemma.kernels.atomics import real, take, word
from edge_gemma.kernels.functions import exp, softcap
from edge_gemma.kernels.jit import inlined
from edge_gemma.kernels.layout import LINE, QUERY_ROWS, SPAN, VECTOR
from edge_gemma.kernels.operations import (
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
from edge_gemma.kernels.simd import (
    LANES,
    first_lane,
    fma,
    lane_numbers,
    load,
    load_half,
    load_scalar,
    max_lanes,
    maximum,
    outer_fma,
    scatter,
    scatter_half,
    select_less,
    splat,
    splat_int,
    store,
    store_half,
    store_scalar,
    store_tile,
    sum_lanes,
    where_less,
    zeros,
)

_APPEND, _ATTEND, _MERGE = APPEND.slots, ATTEND.slots, MERGE.slots
_V = VECTOR
_KEYS = 4 * LANES
"""Keys scored together."""
_MINUS_INFINITY = np.float32(-np.inf)

CACHE_TYPES = {"f16": (load_half, store_half, scatter_half, 2), "f32": (load, store, scatter, 4)}
"""How the cache's elements are loaded, stored and scattered, and their bytes."""


# ---- writing the cache -------------------------------------------------------------------------------------------


def make_append(kind: str) -> Any:
    """Rows of keys and values into the cache, at their positions."""
    _, store_values, scatter_values, SIZE = CACHE_TYPES[kind]

    def append(op: Any, step: Any, _thread: Any) -> None:
        K, V, STRIDE, HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES, CAPACITY = _APPEND
        heads, size = word(op, HEADS), word(op, HEAD_DIM)
        piece = take(op, 1)
        while piece < word(step, STEP_ROWS) * heads:
            row, head = piece // heads, piece % heads
            slot = word(word(step, STEP_POSITIONS), row) % word(op, CAPACITY)
            start = word(word(step, STEP_SEQUENCES), row) * word(op, SEQUENCE_BYTES) + head * word(op, HEAD_BYTES)
            keys = word(op, K_CACHE) + start + SIZE * (slot // LANES * LANES * size + slot % LANES)
            values = word(op, V_CACHE) + start + SIZE * size * slot
            source = row * word(op, STRIDE) + 4 * size * head
            for d in range(0, size, LANES):
                scatter_values(keys + SIZE * LANES * d, SIZE * LANES, load(word(op, K) + source + 4 * d))
                store_values(values + SIZE * d, load(word(op, V) + source + 4 * d))
            piece = take(op, 1)

    return append


# ---- folding partial results -------------------------------------------------------------------------------------


@inlined
def _reset(state: Any) -> None:
    """Nothing folded yet; a result that stays so is NaN."""
    store_scalar(state, _MINUS_INFINITY)
    store_scalar(state + 4, np.float32(np.nan))


@inlined
def _fold(state: Any, partial: Any, head_dim: Any) -> None:
    """state + partial, both rescaled to the larger maximum."""
    m, n = load_scalar(state), load_scalar(partial)
    if n == _MINUS_INFINITY:
        return
    top = max(m, n)
    a, b = exp(splat(m - top)), exp(splat(n - top))
    if m == _MINUS_INFINITY:  # nothing yet, and the record's contents undefined
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


# ---- one span ----------------------------------------------------------------------------------------------------


@inlined
def _weigh(scores: Any, start: Any, first: Any, end: Any, low: Any, high: Any, cap: Any, record: Any) -> None:
    """Scores of keys first..end of the span that starts at position `start`, to exp(score - m); m and l to the record.

    Keys outside low..high are masked.
    """
    inverse = np.float32(1.0) / cap
    below, above, top, infinity = splat_int(low), splat_int(high + 1), splat(_MINUS_INFINITY), splat(np.float32(np.inf))
    for k in range(first, end, LANES):
        score = load(scores + 4 * k)
        if cap > np.float32(0.0):
            score = softcap(score, splat(cap), splat(inverse))
        position = lane_numbers() + splat_int(start + k)
        score = where_less(position, below, splat(_MINUS_INFINITY), score)
        score = where_less(position, above, score, splat(_MINUS_INFINITY))
        store(scores + 4 * k, score)
        top = maximum(top, select_less(score, infinity, score, infinity))  # NaN counts as the largest, and is not lost
    m = max_lanes(top)
    store_scalar(record, m)
    if m > _MINUS_INFINITY:
        total = splat(0.0)
        for k in range(first, end, LANES):
            weight = exp(load(scores + 4 * k) - splat(m))
            store(scores + 4 * k, weight)
            total = total + weight
        store_scalar(record + 4, sum_lanes(total))


def _make_scores(load_values: Any, size: int, m: int, n: int) -> Any:
    """Scores of m queries and n vectors of keys."""
    COUNT = m * n

    @inlined
    def key_vectors(k: Any, d: Any, head_dim: Any) -> Any:
        at, block = k + size * LANES * d, size * LANES * head_dim
        if n == 2:
            return load_values(at), load_values(at + block)
        return load_values(at), load_values(at + block), load_values(at + 2 * block), load_values(at + 3 * block)

    @inlined
    def scores(q: Any, q_stride: Any, k: Any, head_dim: Any, out: Any) -> None:
        tile = zeros(COUNT)
        for d in range(head_dim):
            tile = outer_fma(tile, q + 4 * d, q_stride, key_vectors(k, d, head_dim))
        store_tile(tile, out, 4 * SPAN, n)

    return scores


def _make_values(load_values: Any, size: int, m: int, n: int) -> Any:
    """Weighted sums of n vectors of the values' dimensions for m queries."""
    COUNT = m * n

    @inlined
    def value_vectors(at: Any) -> Any:
        if n == 2:
            return load_values(at), load_values(at + size * LANES)
        return (
            load_values(at),
            load_values(at + size * LANES),
            load_values(at + 2 * size * LANES),
            load_values(at + 3 * size * LANES),
        )

    @inlined
    def values(weights: Any, v: Any, row: Any, first: Any, end: Any, out: Any, out_stride: Any) -> None:
        tile = zeros(COUNT)
        for key in range(first, end):
            tile = outer_fma(tile, weights + 4 * key, 4 * SPAN, value_vectors(v + key * row))
        store_tile(tile, out, out_stride, n)

    return values


def make_span(kind: str) -> Any:
    """The partial results of some queries over one span."""
    load_values, _, _, SIZE = CACHE_TYPES[kind]
    scores_8, scores_2, scores_1 = (_make_scores(load_values, SIZE, m, n) for m, n in ((8, 2), (2, 4), (1, 4)))
    values_4, values_2, values_1 = (_make_values(load_values, SIZE, m, 4) for m in (4, 2, 1))
    values_tail = _make_values(load_values, SIZE, 1, 2)

    @inlined
    def score(q: Any, q_stride: Any, count: Any, k: Any, head_dim: Any, out: Any) -> None:
        """`count` queries against _KEYS keys."""
        i = 0
        while i + 8 <= count:
            scores_8(q + i * q_stride, q_stride, k, head_dim, out + i * 4 * SPAN)
            half = k + 2 * SIZE * LANES * head_dim
            scores_8(q + i * q_stride, q_stride, half, head_dim, out + i * 4 * SPAN + 2 * _V)
            i += 8
        while i + 2 <= count:
            scores_2(q + i * q_stride, q_stride, k, head_dim, out + i * 4 * SPAN)
            i += 2
        if i < count:
            scores_1(q + i * q_stride, q_stride, k, head_dim, out + i * 4 * SPAN)

    @inlined
    def sum_values(s: Any, count: Any, v: Any, head_dim: Any, first: Any, end: Any, out: Any, record: Any) -> None:
        row, d = SIZE * head_dim, 0
        while d + 4 * LANES <= head_dim:
            i = 0
            while i + 4 <= count:
                values_4(s + i * 4 * SPAN, v + SIZE * d, row, first, end, out + i * record + 4 * d, record)
                i += 4
            while i + 2 <= count:
                values_2(s + i * 4 * SPAN, v + SIZE * d, row, first, end, out + i * record + 4 * d, record)
                i += 2
            if i < count:
                values_1(s + i * 4 * SPAN, v + SIZE * d, row, first, end, out + i * record + 4 * d, record)
            d += 4 * LANES
        while d < head_dim:
            for i in range(count):
                values_tail(s + i * 4 * SPAN, v + SIZE * d, row, first, end, out + i * record + 4 * d, record)
            d += 2 * LANES

    @inlined
    def span(
        q: Any, q_stride: Any, count: Any, position: Any, advance: Any, start: Any, low: Any, window: Any,
        k: Any, v: Any, head_dim: Any, cap: Any, s: Any, records: Any,
    ) -> None:  # fmt: skip
        """Queries i at q + i * q_stride, of positions position + i * advance, over the span of keys at `start`.

        k, v: the span's keys and values; low: the first key any query sees; s: room for scores; records: the results.
        """
        record = _V + 4 * head_dim
        last = position + (count - 1) * advance
        first, end = max(low - start, 0), min(last + 1 - start, SPAN)
        first_block, end_block = first // _KEYS * _KEYS, (end + _KEYS - 1) // _KEYS * _KEYS
        for key in range(first_block, end_block, _KEYS):
            score(q, q_stride, count, k + SIZE * key * head_dim, head_dim, s + 4 * key)
        for i in range(count):
            high = position + i * advance
            lowest = max(high - window + 1, 0)
            _weigh(s + i * 4 * SPAN, start, first_block, end_block, lowest, high, cap, records + i * record)
        sum_values(s, count, v, head_dim, first, end, records + _V, record)

    return span, SIZE


# ---- the operations ----------------------------------------------------------------------------------------------


def make_attend(kind: str) -> Any:
    """Tiles of several rows of one sequence: fold spans as they come."""
    span, SIZE = make_span(kind)

    def attend(op: Any, step: Any, thread: Any) -> None:
        (
            Q, Q_STRIDE, Y, Y_STRIDE, HEADS, KV_HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES,
            CAPACITY, WINDOW, SOFTCAP, _, OUT, OUT_STRIDE, ZERO,
        ) = _ATTEND  # fmt: skip
        kv_heads, head_dim, window, cap = word(op, KV_HEADS), word(op, HEAD_DIM), word(op, WINDOW), real(op, SOFTCAP)
        group, record = word(op, HEADS) // kv_heads, _V + 4 * head_dim
        s = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        partial = s + 4 * SPAN * QUERY_ROWS
        state = partial + QUERY_ROWS * record
        piece = take(op, 1)
        while piece < word(step, STEP_N_TILES) * word(op, HEADS):
            tile, head = piece // word(op, HEADS), piece % word(op, HEADS)
            row, count = word(word(step, STEP_TILES), 2 * tile), word(word(step, STEP_TILES), 2 * tile + 1)
            position = word(word(step, STEP_POSITIONS), row)
            low = max(0, position - window + 1)
            cache = word(word(step, STEP_SEQUENCES), row) * word(op, SEQUENCE_BYTES)
            cache += head // group * word(op, HEAD_BYTES)
            for i in range(count):
                _reset(state + i * record)
            for start in range(low // SPAN * SPAN, position + count, SPAN):
                at = cache + SIZE * head_dim * (start % word(op, CAPACITY))
                span(
                    word(op, Q) + row * word(op, Q_STRIDE) + 4 * head_dim * head, word(op, Q_STRIDE), count, position,
                    1, start, low, window, word(op, K_CACHE) + at, word(op, V_CACHE) + at, head_dim, cap, s, partial,
                )  # fmt: skip
                for i in range(count):
                    _fold(state + i * record, partial + i * record, head_dim)
            for i in range(count):
                y = _row_of(word(op, Y), word(op, Y_STRIDE), row + i)
                out = _row_of(word(op, OUT), word(op, OUT_STRIDE), row + i)
                _finish(state + i * record, head_dim, head, y, out, word(op, ZERO))
            piece = take(op, 1)

    return attend


@inlined
def _record_of(partial: Any, head: Any, number: Any, capacity: Any, head_dim: Any) -> Any:
    """The record of a head's span `number`, counted from the first span it sees."""
    return partial + (head * (capacity // SPAN + 1) + number) * (_V + 4 * head_dim)


def make_attend_one(kind: str) -> Any:
    """One row: every span of every key-value head is a piece of work. `merge` folds them."""
    span, SIZE = make_span(kind)

    def attend_one(op: Any, step: Any, thread: Any) -> None:
        (
            Q, _, _, _, HEADS, KV_HEADS, HEAD_DIM, K_CACHE, V_CACHE, SEQUENCE_BYTES, HEAD_BYTES,
            CAPACITY, WINDOW, SOFTCAP, PARTIAL, _, _, _,
        ) = _ATTEND  # fmt: skip
        kv_heads, head_dim, window, cap = word(op, KV_HEADS), word(op, HEAD_DIM), word(op, WINDOW), real(op, SOFTCAP)
        group, capacity = word(op, HEADS) // kv_heads, word(op, CAPACITY)
        s = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        results = s + 4 * SPAN * max(QUERY_ROWS, group)
        position = word(word(step, STEP_POSITIONS), 0)
        low = max(0, position - window + 1)
        spans = position // SPAN - low // SPAN + 1
        piece = take(op, 1)
        while piece < spans * kv_heads:
            number, kv_head = piece // kv_heads, piece % kv_heads
            start = (low // SPAN + number) * SPAN
            cache = word(word(step, STEP_SEQUENCES), 0) * word(op, SEQUENCE_BYTES) + kv_head * word(op, HEAD_BYTES)
            at = cache + SIZE * head_dim * (start % capacity)
            span(
                word(op, Q) + 4 * head_dim * group * kv_head, 4 * head_dim, group, position, 0, start, low, window,
                word(op, K_CACHE) + at, word(op, V_CACHE) + at, head_dim, cap, s, results,
            )  # fmt: skip
            for i in range(group):
                out = _record_of(word(op, PARTIAL), kv_head * group + i, number, capacity, head_dim)
                for d in range(0, _V + 4 * head_dim, _V):
                    store(out + d, load(results + i * (_V + 4 * head_dim) + d))
            piece = take(op, 1)

    return attend_one


def merge(op: Any, step: Any, thread: Any) -> None:
    """Fold the records of `attend_one` in order of spans."""
    Y, HEADS, HEAD_DIM, WINDOW, CAPACITY, PARTIAL, Q, ZERO = _MERGE
    head_dim = word(op, HEAD_DIM)
    position = word(word(step, STEP_POSITIONS), 0)
    spans = position // SPAN - max(0, position - word(op, WINDOW) + 1) // SPAN + 1
    state = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
    head = take(op, 1)
    while head < word(op, HEADS):
        _reset(state)
        for number in range(spans):
            _fold(state, _record_of(word(op, PARTIAL), head, number, word(op, CAPACITY), head_dim), head_dim)
        _finish(state, head_dim, head, word(op, Y), word(op, Q), word(op, ZERO))
        head = take(op, 1)


def nothing(_op: Any, _step: Any, _thread: Any) -> None:
    """`merge` for several rows: `attend` has folded already."""


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    table = {"merge": merge, "nothing": nothing}
    for kind in CACHE_TYPES:
        table[f"append_{kind}"] = make_append(kind)
        table[f"attend_{kind}"] = make_attend(kind)
        table[f"attend_one_{kind}"] = make_attend_one(kind)
    return table
