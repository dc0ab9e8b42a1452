"""How the elements of the key-value cache are stored: as f16, f32, or q8_0. Knows no attention and no page.

The keys and the values of a head lie in groups of LANES positions, the first of them first:

             keys of LANES positions, lane = position                   values of LANES positions
    f16, f32 [head_dim][LANES]                                          [LANES][head_dim]
    q8_0     [head_dim / 32] of | int8 q [32][LANES] | f16 d [LANES] |  | int8 q [LANES][head_dim] |
                                                                        | f16 d [head_dim / 32][LANES] |

q8_0 rounds as GGUF's Q8_0 does: d = max|x| / 127 of 32 values, q = x * (1 / d) rounded to nearest, halves away from
zero, then d to float16. Where max|x| is below 2^-120, q is 0: d is then 0 as float16 anyway. A NaN makes d NaN; an
infinity makes d infinite and q 0, which is NaN again.

What is said twice about q8_0 is cheaper than one multiplication for each value read. A score is summed for each 32
dimensions over q alone, and these sums times d are added in order, each with one rounding. A weight is multiplied by d
before it meets 32 dimensions of q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import CACHE_BLOCK, CACHE_BLOCK_BYTES, SCALED_WEIGHTS, SPAN
from ..simd.decorators import inlined
from ..simd.vocabulary import (
    LANES,
    absolute,
    bits_as_float,
    bits_as_int,
    first_lane,
    load,
    load_bytes,
    load_half,
    load_tile,
    max_lanes_int,
    maximum_int,
    prefetch_far,
    round_away,
    scatter,
    scatter_bytes,
    scatter_half,
    splat,
    splat_int,
    store,
    store_bytes,
    store_first_half,
    store_half,
    store_tile,
    tile_scale,
    to_float,
    zeros,
)

_SMALLEST = np.float32(2.0**-120)  # 1 / d may overflow below


@dataclass(frozen=True)
class CacheType:
    """element_bytes: of an element without scales. load(address): LANES of them. row(n): bytes of n elements of a
    position with their scales, n a multiple of CACHE_BLOCK.

    write_keys(block, lane, x): CACHE_BLOCK float32 at x as the keys of a lane, into the block that begins there.
    write_values(group, lane, head_dim, d, x): as dimensions d.. of the values of a lane, into the group.

    run(head_dim): dimensions of keys that share scales. key_scale_bytes: of the scales of LANES keys of a run.
    put_scores(m, n) makes a function of (tile, first, block, stride, s): the sums over the run from dimension `first`
    on, of m queries and n blocks of keys `stride` bytes apart, times their scales to the scores at s.

    value_at(v, key, head_dim): the address of a position's values.
    weights(m, n) makes a function of (weights, room, v, first, end, ahead, head_dim, d): where the weights of keys
    first..end lie, m rows, that n vectors of dimensions d.. are multiplied by; addresses for the first half of the
    vectors and for the second, and bytes from row to row. `room`, `layout.SCALED_WEIGHTS` bytes, may hold them.
    """

    element_bytes: int
    load: Any
    row: Any
    write_keys: Any
    write_values: Any
    run: Any
    key_scale_bytes: int
    put_scores: Callable[[int, int], Any]
    value_at: Any
    weights: Callable[[int, int], Any]


def _row(name: str) -> Any:
    BYTES = CACHE_BLOCK_BYTES[name]
    return inlined(lambda n: n // CACHE_BLOCK * BYTES)


def loader(load_elements: Any, n: int) -> Any:
    """A function that loads n vectors, `stride` bytes apart; n is 2 or 4.

    A tuple of its own for each n, as a register tile has its size from tuples' lengths. `load_elements` makes float32
    of what is stored; LANES elements at each address are readable.
    """
    if n == 2:
        return inlined(lambda at, stride: (load_elements(at), load_elements(at + stride)))
    return inlined(
        lambda at, stride: (
            load_elements(at),
            load_elements(at + stride),
            load_elements(at + 2 * stride),
            load_elements(at + 3 * stride),
        )
    )


# ---- floats ------------------------------------------------------------------------------------------------------


def _put_floats(_m: int, n: int) -> Any:
    return inlined(lambda tile, _first, _block, _stride, s: store_tile(tile, s, 4 * SPAN, n))


def _as_they_are(_m: int, _n: int) -> Any:
    return inlined(
        lambda weights, _room, _v, _first, _end, _ahead, _head_dim, _d: (weights, weights, np.int64(4 * SPAN))
    )


def _float_type(name: str, load_elements: Any, store_elements: Any, scatter_elements: Any) -> CacheType:
    SIZE = CACHE_BLOCK_BYTES[name] // CACHE_BLOCK

    @inlined
    def write_keys(block: Any, lane: Any, x: Any) -> None:
        for d in range(0, CACHE_BLOCK, LANES):
            scatter_elements(block + SIZE * (LANES * d + lane), SIZE * LANES, load(x + 4 * d))

    @inlined
    def write_values(group: Any, lane: Any, head_dim: Any, d: Any, x: Any) -> None:
        for i in range(0, CACHE_BLOCK, LANES):
            store_elements(group + SIZE * (head_dim * lane + d + i), load(x + 4 * i))

    return CacheType(
        SIZE,
        load_elements,
        _row(name),
        write_keys,
        write_values,
        run=inlined(lambda head_dim: head_dim),
        key_scale_bytes=0,
        put_scores=_put_floats,
        value_at=inlined(lambda v, key, head_dim: v + SIZE * head_dim * key),
        weights=_as_they_are,
    )


# ---- 8 bits and a scale ------------------------------------------------------------------------------------------


@inlined
def _largest(x: Any) -> Any:
    """The largest magnitude of CACHE_BLOCK float32. They compare as integers: a NaN is the largest."""
    top = bits_as_int(absolute(load(x)))
    for d in range(LANES, CACHE_BLOCK, LANES):
        top = maximum_int(bits_as_int(absolute(load(x + 4 * d))), top)
    return first_lane(bits_as_float(splat_int(max_lanes_int(top))))


@inlined
def _scale(x: Any) -> Any:
    """d of CACHE_BLOCK float32, and what they are multiplied by."""
    largest = _largest(x)
    d = largest / np.float32(127.0)
    return d, np.float32(1.0) / d if largest >= _SMALLEST else np.float32(0.0)


@inlined
def _write_q8_0_keys(block: Any, lane: Any, x: Any) -> None:
    scale, inverse = _scale(x)
    for d in range(0, CACHE_BLOCK, LANES):
        scatter_bytes(block + LANES * d + lane, LANES, round_away(load(x + 4 * d) * splat(inverse)))
    store_first_half(block + LANES * CACHE_BLOCK + 2 * lane, splat(scale))


@inlined
def _write_q8_0_values(group: Any, lane: Any, head_dim: Any, d: Any, x: Any) -> None:
    scale, inverse = _scale(x)
    for i in range(0, CACHE_BLOCK, LANES):
        store_bytes(group + head_dim * lane + d + i, round_away(load(x + 4 * i) * splat(inverse)))
    store_first_half(group + LANES * head_dim + d // CACHE_BLOCK * 2 * LANES + 2 * lane, splat(scale))


def _put_q8_0(m: int, n: int) -> Any:
    COUNT, load_scales = m * n, loader(load_half, n)

    @inlined
    def put(tile: Any, first: Any, block: Any, stride: Any, s: Any) -> None:
        totals = zeros(COUNT) if first == 0 else load_tile(zeros(COUNT), s, 4 * SPAN, n)
        scales = load_scales(block + LANES * CACHE_BLOCK, stride)
        store_tile(tile_scale(totals, tile, scales), s, 4 * SPAN, n)

    return put


@inlined
def _q8_0_value_at(v: Any, key: Any, head_dim: Any) -> Any:
    return v + head_dim * key + head_dim // CACHE_BLOCK * 2 * (key & -LANES)


def _scaled(m: int, n: int) -> Any:
    """The weights times the scales of one block, or of two neighbouring ones where n vectors are so many.

    for each block of CACHE_BLOCK dimensions that the n vectors touch:
        for each LANES keys from the vector in which `first` lies:
            ask for the scales that lie `ahead` of theirs
            for each of m queries:
                room = its weights * these keys' scales

    Whole vectors of keys are taken, as scales of LANES keys lie side by side: what that adds at both ends is never
    read. So weights before `first` and behind `end` are readable to the ends of their vectors, whatever they are, and
    room has SCALED_WEIGHTS bytes.
    """
    BLOCKS, STRIDE, row = max(1, n * LANES // CACHE_BLOCK), SCALED_WEIGHTS // 8, _row("q8_0")
    assert m * BLOCKS <= 8 and BLOCKS <= 2

    @inlined
    def scaled(weights: Any, room: Any, v: Any, first: Any, end: Any, ahead: Any, head_dim: Any, d: Any) -> Any:
        low = first & -LANES
        for block in range(BLOCKS):
            for key in range(low, end, LANES):
                at = v + row(head_dim) * key + LANES * (head_dim + 2 * (d // CACHE_BLOCK + block))
                prefetch_far(at + ahead)
                scale = load_half(at)
                for i in range(m):
                    out = room + STRIDE * (m * block + i) + 4 * (key - low)
                    store(out, load(weights + 4 * SPAN * i + 4 * key) * scale)
        left = room - 4 * low
        return left, left + STRIDE * m * (BLOCKS - 1), np.int64(STRIDE)

    return scaled


CACHE_TYPES = {
    "f16": _float_type("f16", load_half, store_half, scatter_half),
    "f32": _float_type("f32", load, store, scatter),
    "q8_0": CacheType(
        1,
        inlined(lambda at: to_float(load_bytes(at))),
        _row("q8_0"),
        _write_q8_0_keys,
        _write_q8_0_values,
        run=inlined(lambda _head_dim: CACHE_BLOCK),
        key_scale_bytes=2 * LANES,
        put_scores=_put_q8_0,
        value_at=_q8_0_value_at,
        weights=_scaled,
    ),
}
