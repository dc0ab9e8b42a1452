"""Attention over the key-value cache: grouped queries, sliding window, soft-cap. Knows no model and no thread count.

The keys of a sequence are cut into spans of SPAN, aligned to positions. A query's result is defined span by span:

    m_s = max score in the span,  l_s = sum exp(score - m_s),  o_s = sum exp(score - m_s) v     (keys in order)

and the partial results (m, l, o) are folded in order of spans, y = o / l. So it does not matter who computes a span,
nor which other queries share its loads: masked keys have weight exactly 0. A tile of several rows folds as it goes
(`attend`); a single row spreads its spans over the threads and folds afterwards (`attend_one`, then `merge`).

The keys and values of a span lie in a page, wherever that is. The step has for each row its sequence's table:

    table: [layer] -> address of pages: [span] -> address of a page: | K of each key-value head | V of each head |

    K: [SPAN / LANES][head_dim][LANES]   lane = key: a score is a chain of fma over the head, no sum across lanes
    V: [SPAN][head_dim]                  lane = dimension

Elements are of a type of `cache_types`, which draws where scales lie if there are any.

What the caller owes, until all threads are done with the operation: every span that a row sees, or is written to, has
a page, aligned to a cache line; nobody else writes in the slots of those positions, nor reads those being written.
Spans that no row sees may have no page, and a slot may hold anything until it is written. Rows of q, k, v and y are
float32, aligned to vectors, as the room for partial results is.

`layout.partial_result_bytes` draws a partial result; what has been folded so far, a state, has the same form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import CACHE_BLOCK, LINE, QUERIES, QUERY_HEADS, QUERY_ROWS, SPAN, VECTOR
from ..operations import (
    APPEND,
    ATTEND,
    MERGE,
    STEP_LASTS,
    STEP_N_TILES,
    STEP_POSITIONS,
    STEP_ROWS,
    STEP_SCRATCH,
    STEP_SCRATCH_BYTES,
    STEP_TABLES,
    STEP_TILES,
)
from ..simd.atomics import claim, real, word
from ..simd.decorators import inlined
from ..simd.transcendental import exp
from ..simd.vocabulary import LANES, first_lane, fma, load, load_scalar, splat, store, store_scalar
from .activations import quantize_row
from .attention_span import MINUS_INFINITY, TILE, make_span
from .cache_types import CACHE_TYPES
from .work_sharing import parallel_for

_APPEND, _ATTEND, _MERGE = APPEND.slots, ATTEND.slots, MERGE.slots
_V = VECTOR

# ---- pages -------------------------------------------------------------------------------------------------------


@inlined
def _pages(step: Any, row: Any, layer: Any) -> Any:
    """The addresses of the pages that a row's sequence has in a layer, by span."""
    return word(word(word(step, STEP_TABLES), row), layer)


def make_append(kind: str) -> Any:
    """Rows of keys and values into the pages of their positions.

    for each work item, a head of LANES neighbouring rows of the step:
        for each of these rows:
            the page of its position's span, and its place in it
            for each CACHE_BLOCK dimensions:
                keys to their lane, LANES elements apart; values side by side
    """
    cache = CACHE_TYPES[kind]
    row_bytes, write_keys, write_values = cache.row, cache.write_keys, cache.write_values

    @inlined
    def groups(op: Any, step: Any) -> Any:
        return (word(step, STEP_ROWS) + LANES - 1) // LANES * word(op, _APPEND.heads)

    @inlined
    def append(op: Any, step: Any, _thread: Any, item: Any) -> None:
        """One head of LANES rows. Neighbours' keys lie in the same cache lines, which threads should not share."""
        heads, size, head_bytes = word(op, _APPEND.heads), word(op, _APPEND.head_dim), word(op, _APPEND.head_bytes)
        first, head = item // heads * LANES, item % heads
        for row in range(first, min(first + LANES, word(step, STEP_ROWS))):
            position = word(word(step, STEP_POSITIONS), row)
            page, slot = word(_pages(step, row, word(op, _APPEND.layer)), position // SPAN), position % SPAN
            keys = page + head * head_bytes + row_bytes(size) * (slot // LANES * LANES)
            values = keys + heads * head_bytes
            source = row * word(op, _APPEND.stride) + 4 * size * head
            for d in range(0, size, CACHE_BLOCK):
                write_keys(keys + LANES * row_bytes(d), slot % LANES, word(op, _APPEND.k) + source + 4 * d)
                write_values(values, slot % LANES, size, d, word(op, _APPEND.v) + source + 4 * d)

    return parallel_for(groups, append)


# ---- folding partial results -------------------------------------------------------------------------------------


@inlined
def _reset(state: Any) -> None:
    """Nothing folded yet; a result that stays so is NaN."""
    store_scalar(state, MINUS_INFINITY)
    store_scalar(state + 4, np.float32(np.nan))


@inlined
def _fold(state: Any, partial: Any, head_dim: Any) -> None:
    """state + partial, both rescaled to the larger maximum m:

    a, b = exp(m_state - m), exp(m_partial - m)        one of them is 1
    l, o = fma(l_partial, b, l_state a), fma(o_partial, b, o_state a)

    A span of which the query sees no key has m = -inf, and is passed over; the first that it sees is copied. head_dim
    is whole vectors, and both are as long as `layout.partial_result_bytes` says.
    """
    m, n = load_scalar(state), load_scalar(partial)
    if n == MINUS_INFINITY:
        return
    top = max(m, n)
    a, b = exp(splat(m - top)), exp(splat(n - top))
    if m == MINUS_INFINITY:  # nothing yet, and what lies in the state undefined
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
def _gather(op: Any, row: Any, count: Any, head: Any, heads: Any, queries: Any, states: Any, result_bytes: Any) -> None:
    """`count` queries, `heads` from `head` on of each row from `row` on, side by side; a fresh state for each.

    Rows lie a power of two apart: read where they are, they would all want the same few lines of the cache.
    """
    size = 4 * word(op, _ATTEND.head_dim)
    for j in range(count):
        source = word(op, _ATTEND.q) + (row + j // heads) * word(op, _ATTEND.q_stride) + size * (head + j % heads)
        for d in range(0, size, _V):
            store(queries + j * result_bytes + d, load(source + d))
        _reset(states + j * result_bytes)


@inlined
def _scatter(op: Any, row: Any, count: Any, head: Any, heads: Any, states: Any, result_bytes: Any) -> None:
    """The results of `_gather`'s queries to their rows."""
    for j in range(count):
        y = _row_of(word(op, _ATTEND.y), word(op, _ATTEND.y_stride), row + j // heads)
        out = _row_of(word(op, _ATTEND.q_out), word(op, _ATTEND.q_out_stride), row + j // heads)
        _finish(states + j * result_bytes, word(op, _ATTEND.head_dim), head + j % heads, y, out, word(op, _ATTEND.zero))


def make_attend(kind: str) -> Any:
    """Several rows: a tile of rows, and up to QUERY_HEADS of the heads that share keys, is a work item.

    for each item claimed:
        gather the tile's queries
        for each span that a row of the tile sees, in order:
            for each QUERIES of the queries: their partial results over the span, folded into their states
        scatter o / l of each state
    """
    span = make_span(kind, (TILE, 2, 1))

    def attend(op: Any, step: Any, thread: Any) -> None:
        kv_heads, head_dim, head_bytes = (
            word(op, _ATTEND.kv_heads), word(op, _ATTEND.head_dim), word(op, _ATTEND.head_bytes),
        )  # fmt: skip
        window, ahead, cap = word(op, _ATTEND.window), word(op, _ATTEND.ahead), real(op, _ATTEND.softcap)
        group, result_bytes = word(op, _ATTEND.heads) // kv_heads, _V + 4 * head_dim
        parts = (group + QUERY_HEADS - 1) // QUERY_HEADS
        queries = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        states = queries + QUERY_ROWS * QUERY_HEADS * result_bytes
        partial = states + QUERY_ROWS * QUERY_HEADS * result_bytes
        s = partial + QUERIES * result_bytes
        item = claim(op, 1)
        while item < word(step, STEP_N_TILES) * kv_heads * parts:
            tile, kv_head, part = item // (kv_heads * parts), item // parts % kv_heads, item % parts
            row, rows = word(word(step, STEP_TILES), 2 * tile), word(word(step, STEP_TILES), 2 * tile + 1)
            head, heads = kv_head * group + part * QUERY_HEADS, min(QUERY_HEADS, group - part * QUERY_HEADS)
            position = word(word(step, STEP_POSITIONS), row)
            _gather(op, row, rows * heads, head, heads, queries, states, result_bytes)
            top, pages = word(word(step, STEP_LASTS), row), _pages(step, row, word(op, _ATTEND.layer))
            last = min(position + rows - 1 + ahead, top) // SPAN
            for number in range(max(0, position - window + 1) // SPAN, last + 1):
                k = word(pages, number) + kv_head * head_bytes
                after = word(pages, min(number + 1, last)) + kv_head * head_bytes
                for j in range(0, rows * heads, QUERIES):
                    count = min(QUERIES, rows * heads - j)
                    span(
                        queries + j * result_bytes, result_bytes, count, heads, position + j // heads + ahead, top,
                        number * SPAN, window + ahead, k, k + kv_heads * head_bytes, after, head_dim, cap, s, partial,
                        result_bytes,
                    )  # fmt: skip
                    for i in range(count):
                        _fold(states + (j + i) * result_bytes, partial + i * result_bytes, head_dim)
            _scatter(op, row, rows * heads, head, heads, states, result_bytes)
            item = claim(op, 1)

    return attend


@inlined
def _partial_of(partial: Any, head: Any, number: Any, spans: Any, head_dim: Any) -> Any:
    """The partial result of a head's span `number`, counted from the first it sees; of a head there are `spans`."""
    return partial + (head * spans + number) * (_V + 4 * head_dim)


def make_attend_one(kind: str) -> Any:
    """One row: every span of every key-value head is a work item. `merge` folds them.

    While a thread works on an item, it asks for the keys of the one that it has claimed after it.
    """
    span = make_span(kind, (4, 2, 1))

    def attend_one(op: Any, step: Any, thread: Any) -> None:
        kv_heads, head_dim, head_bytes = (
            word(op, _ATTEND.kv_heads), word(op, _ATTEND.head_dim), word(op, _ATTEND.head_bytes),
        )  # fmt: skip
        window, cap, result_bytes = word(op, _ATTEND.window), real(op, _ATTEND.softcap), _V + 4 * head_dim
        group, most = word(op, _ATTEND.heads) // kv_heads, word(op, _ATTEND.spans)
        s = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        position, pages = word(word(step, STEP_POSITIONS), 0), _pages(step, 0, word(op, _ATTEND.layer))
        first = max(0, position - window + 1) // SPAN
        items = (position // SPAN - first + 1) * kv_heads
        item, following = claim(op, 1), claim(op, 1)
        while item < items:
            number, kv_head, near = item // kv_heads, item % kv_heads, following if following < items else item
            k = word(pages, first + number) + kv_head * head_bytes
            after = word(pages, first + near // kv_heads) + near % kv_heads * head_bytes
            span(
                word(op, _ATTEND.q) + 4 * head_dim * group * kv_head, 4 * head_dim, group, group, position, position,
                (first + number) * SPAN, window, k, k + kv_heads * head_bytes, after, head_dim, cap, s,
                _partial_of(word(op, _ATTEND.partial), kv_head * group, number, most, head_dim), most * result_bytes,
            )  # fmt: skip
            item, following = following, claim(op, 1)

    return attend_one


def merge(op: Any, step: Any, thread: Any) -> None:
    """Fold the partial results of `attend_one`; a query head is a work item.

    for each head claimed:
        state = nothing
        for each span that the row sees, in order:
            state += the head's partial result over the span
        y or q = o / l of the state

    The order is that of `attend`, so a row has the same bits in company. The caller owes a barrier before: other
    threads wrote what is folded.
    """
    head_dim, partial, most = word(op, _MERGE.head_dim), word(op, _MERGE.partial), word(op, _MERGE.spans)
    position = word(word(step, STEP_POSITIONS), 0)
    spans = position // SPAN - max(0, position - word(op, _MERGE.window) + 1) // SPAN + 1
    state = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
    head = claim(op, 1)
    while head < word(op, _MERGE.heads):
        _reset(state)
        for number in range(spans):
            _fold(state, _partial_of(partial, head, number, most, head_dim), head_dim)
        _finish(state, head_dim, head, word(op, _MERGE.y), word(op, _MERGE.q), word(op, _MERGE.zero))
        head = claim(op, 1)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    table = {"merge": merge}
    for kind in CACHE_TYPES:
        table[f"append_{kind}"] = make_append(kind)
        table[f"attend_{kind}"] = make_attend(kind)
        table[f"attend_one_{kind}"] = make_attend_one(kind)
    return table
