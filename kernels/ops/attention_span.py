"""The partial results of some queries over one span of keys. Knows no operation, thread or page table.

Both products are register tiles that run over a block of keys that the first-level cache holds, for one group of
queries after another; between them the scores rest in scratch memory, SPAN of a query side by side. Bits depend on
none of that: a score is one chain of fma over the head, a sum of values one chain over the keys.

Queries come in groups of the largest of SIZES that are left. `high` is the last key that query 0 may see, `heads`
neighbours share one: query j may see keys up to high + j // heads, and none behind `top`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import SPAN, SUMS, VALUE_KEYS, VECTOR
from ..simd.decorators import inlined
from ..simd.transcendental import exp, softcap
from ..simd.vocabulary import (
    ISA,
    LANES,
    halves_fma,
    lane_numbers,
    load,
    load_tile,
    max_lanes,
    maximum,
    outer_fma,
    prefetch_far,
    replace_first,
    splat,
    splat_int,
    store,
    store_scalar,
    store_tile,
    sum_of_16,
    where_less,
    zeros,
)
from .cache_types import CACHE_TYPES, CacheType, loader

MINUS_INFINITY = np.float32(-np.inf)

_SUMS = 16 if LANES == 16 or ISA.machine == "arm" else 8
"""Vectors of sums in a register tile: beside them, 2 to 4 vectors and an input fit the registers."""
TILE = _SUMS // 2
"""Queries of the largest tile."""
KEYS = 4 * LANES
"""Keys scored at a time; the scores of a span are computed in such blocks."""
_WIDTH = 4 * LANES
"""Dimensions of a head that every register tile divides."""


def _vectors(m: int) -> int:
    """Vectors of a register tile beside m queries: so many that the sums hide the latency of an fma."""
    return min(4, _SUMS // m)


def _groups(make: Any, sizes: tuple[int, ...]) -> Any:
    """`make(m)` for queries j..count in groups of m, the largest of `sizes` that are left."""
    if not sizes:
        return inlined(lambda j, count, *arguments: None)
    size, group, rest = sizes[0], make(sizes[0]), _groups(make, sizes[1:])

    @inlined
    def groups(j: Any, count: Any, *arguments: Any) -> None:
        while j + size <= count:
            group(j, *arguments)
            j += size
        rest(j, count, *arguments)

    return groups


@inlined
def _weigh(scores: Any, start: Any, first: Any, end: Any, low: Any, high: Any, cap: Any, result: Any) -> None:
    """Scores of keys first..end of the span that starts at position `start`, to exp(score - m); m and l to the result.

    Keys outside low..high are masked.
    """
    store_scalar(result, MINUS_INFINITY)
    if low >= start + end or high < start + first:
        return
    inverse, top, sums = np.float32(1.0) / cap, splat(MINUS_INFINITY), zeros(SUMS)
    for k in range(first, end, LANES):
        score = load(scores + 4 * k)
        if cap > np.float32(0.0):
            score = softcap(score, splat(cap), splat(inverse))
        if start + k < low or start + k + LANES - 1 > high:
            position = lane_numbers() + splat_int(start + k)
            score = where_less(position, splat_int(low), splat(MINUS_INFINITY), score)
            score = where_less(position, splat_int(high + 1), score, splat(MINUS_INFINITY))
        store(scores + 4 * k, score)
        top = maximum(score, top)
    m = max_lanes(top)
    for k in range(first, end, LANES):
        weight = exp(load(scores + 4 * k) - splat(m))
        store(scores + 4 * k, weight)
        sums = replace_first(sums, sums[0] + weight)
    weights = sum_of_16(sums)
    store_scalar(result, m if weights > np.float32(0.0) else np.float32(np.inf))  # what is NaN counts as seen
    store_scalar(result + 4, weights)


def _asker(step: int) -> Any:
    """Ask for the `step` bytes at an address; of less than a line, for the one they begin in."""
    LINES = (step + 63) // 64

    @inlined
    def ask(at: Any) -> None:
        for line in range(LINES):
            prefetch_far(at + 64 * line)

    return ask


def _make_scores(cache: CacheType, m: int) -> Any:
    """Scores of KEYS keys for m queries, with neither soft-cap nor mask. A tile is (m, n) vectors of sums:

    for each n vectors of keys in the block:
        for each run of dimensions of the head that share scales, which may be all:
            tile = 0
            for each dimension d of the run:
                ask for the line that lies `ahead` of these keys
                tile += d of each query * d of each key
            scores = tile, or += tile * scales
    """
    n, row, run = _vectors(m), cache.row, cache.run
    put, load_keys = cache.put_scores(m, n), loader(cache.load, n)
    COUNT, SIZE, STEP, SCALES = m * n, cache.element_bytes, n * cache.element_bytes * LANES, n * cache.key_scale_bytes
    ask, ask_scales = _asker(STEP), _asker(SCALES)

    @inlined
    def scores(
        j: Any, last: Any, heads: Any, key: Any, q: Any, stride: Any, k: Any, ahead: Any, head_dim: Any, s: Any,
    ) -> None:  # fmt: skip
        """last: the last key that query 0 sees; ahead: from the block to what is needed after it."""
        if key > last + (j + m - 1) // heads:
            return
        ahead = ahead if j == 0 else 0
        q, s, vector = q + j * stride, s + 4 * (j * SPAN + key), LANES * row(head_dim)
        for block in range(0, KEYS, n * LANES):
            at = k + row(head_dim) * (key + block)
            asked = at + ahead
            for first in range(0, head_dim, run(head_dim)):
                tile = zeros(COUNT)
                for d in range(run(head_dim)):
                    ask(asked + STEP * d)
                    tile = outer_fma(tile, q + 4 * (first + d), stride, load_keys(at + SIZE * LANES * d, vector))
                asked += STEP * run(head_dim)
                ask_scales(asked)
                put(tile, first, at, vector, s + 4 * block)
                at, asked = at + LANES * row(run(head_dim)), asked + SCALES

    return scores


def _make_values(cache: CacheType, m: int, n: int, part: int) -> Any:
    """The values of VALUE_KEYS keys, weighted, to the sums of m queries. A tile is (m, n) vectors of sums:

    for each n vectors of dimensions:
        tile = sums so far
        for each key that one of the queries sees:
            ask for the line that lies `ahead` of these values
            tile += weight of the key for each query, times the values' scale if there is one * these dimensions of q
        sums = tile

    Part 0 is as much of the head as every tile divides, part 1 the rest.
    """
    COUNT, SIZE, load_values, ask = (
        m * n,
        cache.element_bytes,
        loader(cache.load, n),
        _asker(n * cache.element_bytes * LANES),
    )
    at_of, scaled = cache.value_at, cache.weights(m, n)

    @inlined
    def values(
        j: Any, last: Any, written: Any, heads: Any, first: Any, s: Any, room: Any, v: Any, ahead: Any, head_dim: Any,
        out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        """last: the last key that query 0 sees, of so many as are `written`; ahead: from the block to what is needed
        after it."""
        end = min(last + (j + m - 1) // heads + 1, first + VALUE_KEYS, written)
        ahead, whole = ahead if j == 0 else 0, head_dim // _WIDTH * _WIDTH
        weights, out = s + j * 4 * SPAN, out + j * out_stride
        for d in range(part * whole, head_dim if part else whole, n * LANES):
            tile = load_tile(zeros(COUNT), out + 4 * d, out_stride, n)
            left, right, apart = scaled(weights, room, v, first, end, ahead, head_dim, d)
            for key in range(first, end):
                at = at_of(v, key, head_dim) + SIZE * d
                ask(at + ahead)
                tile = halves_fma(tile, left + 4 * key, right + 4 * key, apart, load_values(at, SIZE * LANES))
            store_tile(tile, out + 4 * d, out_stride, n)

    return values


def make_span(kind: str, sizes: tuple[int, ...]) -> Any:
    """The partial results of some queries over one span; `sizes` of tiles, the last one 1."""
    cache = CACHE_TYPES[kind]
    row_bytes = cache.row

    @inlined
    def weigh(
        count: Any, heads: Any, high: Any, top: Any, start: Any, first: Any, window: Any, cap: Any, s: Any,
        head_dim: Any, out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        """Scores to weights, query by query; the sums of values to zero."""
        for j in range(count):
            low, last, at = max(high + j // heads - window + 1, 0), min(high + j // heads, top), out + j * out_stride
            end = min((last + sizes[0] - start + KEYS - 1) // KEYS * KEYS, SPAN)
            _weigh(s + j * 4 * SPAN, start, first, end, low, last, cap, at)
            for d in range(VECTOR, VECTOR + 4 * head_dim, VECTOR):
                store(at + d, splat(0.0))

    score = _groups(lambda m: _make_scores(cache, m), sizes)
    add_values = _groups(lambda m: _make_values(cache, m, _vectors(m), 0), sizes)
    add_rest = _groups(lambda m: _make_values(cache, m, 2, 1), sizes[-1:])

    @inlined
    def span(
        q: Any, stride: Any, count: Any, heads: Any, high: Any, top: Any, start: Any, window: Any, k: Any, v: Any,
        after: Any, head_dim: Any, cap: Any, s: Any, out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        """`count` queries, `stride` bytes apart, over the span of keys at position `start`.

        window: so many keys, up to the last one, a query sees; less those behind `top`.
        k, v: the span's keys and values; after: the keys needed next; s: room for scores;
        out: the partial results, `out_stride` bytes apart.

            scores of the blocks of keys that a query sees
            for each query: soft-cap, mask, weights = exp(scores - m); m and l to its result, o = 0
            o += weights * values, for the keys that a query sees

        The caller owes, until this returns: SPAN keys at k, written or not, and at v the values up to the last key
        that a query sees; 4 * SPAN bytes at s for each query, then SCALED_WEIGHTS; `layout.partial_result_bytes` for
        each result, which nobody else touches; all aligned to vectors. `after` may lead anywhere: it is only asked for.
        """
        last, written = high - start, min(top - start + 1, SPAN)
        first, end = max(last - window + 1, 0), min(last + (count - 1) // heads + 1, written)
        first_block = first // KEYS * KEYS
        row, room, end_block = row_bytes(head_dim), s + 4 * SPAN * count, (end - 1) // KEYS * KEYS
        for key in range(first_block, end, KEYS):
            ahead = row * KEYS if key < end_block else v + row * first - (k + row * key)
            score(0, count, last, heads, key, q, stride, k, ahead, head_dim, s)
        weigh(count, heads, high, top, start, first_block, window, cap, s, head_dim, out, out_stride)
        for key in range(first, end, VALUE_KEYS):
            ahead = row * VALUE_KEYS if key + VALUE_KEYS < end else after - (v + row * key)
            add_values(0, count, last, written, heads, key, s, room, v, ahead, head_dim, out + VECTOR, out_stride)
            add_rest(0, count, last, written, heads, key, s, room, v, ahead, head_dim, out + VECTOR, out_stride)

    return span
