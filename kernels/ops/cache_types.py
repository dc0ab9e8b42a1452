"""How the elements of the key-value cache are stored: as f16, f32, or q8_0. Knows no attention and no page.

A type says how 32 dimensions of a position are written, and how vectors of several are read. What the kernels see:

             keys of LANES positions, lane = position                     values of a position
    f16, f32 [head_dim][LANES]                                            [head_dim]
    q8_0     [head_dim / 32] of | int8 [32][LANES] | f16 d [LANES] |      | int8 [head_dim] | f16 d [head_dim / 32] |

So the written positions come first in the keys and in the values of a head, whatever the type.

q8_0 rounds as GGUF's Q8_0 does: d = max|x| / 127 of 32 values, q = x * (1 / d) rounded to nearest, halves away from
zero, then d to float16. Where max|x| is below 2^-120, q is 0: d is then 0 as float16 anyway. A NaN makes d NaN; an
infinity makes d infinite and q 0, which is NaN again. A value is read as float(q) * float(d), which is exact: 8 bits
times 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import CACHE_BLOCK_BYTES
from ..layout import CACHE_BLOCK as BLOCK
from ..simd.decorators import inlined
from ..simd.vocabulary import (
    LANES,
    absolute,
    bits_as_float,
    bits_as_int,
    broadcast_half,
    first_lane,
    load,
    load_bytes,
    load_half,
    max_lanes_int,
    maximum_int,
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
    to_float,
)

_SMALLEST = np.float32(2.0**-120)  # 1 / d may overflow below


@dataclass(frozen=True)
class CacheType:
    """`element_bytes`: of an element without scales; `row(n)`: bytes of n elements with them, n a multiple of BLOCK.

    `write_keys(block, lane, x)`: BLOCK float32 at x as the keys of a lane of the block that begins there;
    `write_values(row, head_dim, d, x)`: as dimensions d.. of the values in a row.

    `run(head_dim)`: dimensions whose keys share scales; `scale_bytes`: those of LANES keys of a run.
    `scales(n)`, `keys(n)`, `values(n)` make functions that read n vectors: `scales(block, stride)` of the keys of n
    blocks that are `stride` bytes apart, `keys(at, stride, scales)` of one dimension of each, and
    `values(row, head_dim, d)` of dimensions d.., a multiple of n LANES.
    """

    element_bytes: int
    row: Any
    write_keys: Any
    write_values: Any
    run: Any
    scale_bytes: int
    scales: Callable[[int], Any]
    keys: Callable[[int], Any]
    values: Callable[[int], Any]


def _several(n: int, read: Any) -> Any:
    """A function of some arguments: read(0, *arguments), ..., read(n - 1, *arguments); n is 2 or 4."""
    if n == 2:
        return inlined(lambda *a: (read(0, *a), read(1, *a)))
    return inlined(lambda *a: (read(0, *a), read(1, *a), read(2, *a), read(3, *a)))


def _row(name: str) -> Any:
    BYTES = CACHE_BLOCK_BYTES[name]
    return inlined(lambda n: n // BLOCK * BYTES)


# ---- floats ------------------------------------------------------------------------------------------------------


def _float_type(name: str, load_elements: Any, store_elements: Any, scatter_elements: Any) -> CacheType:
    SIZE = CACHE_BLOCK_BYTES[name] // BLOCK

    @inlined
    def write_keys(block: Any, lane: Any, x: Any) -> None:
        for d in range(0, BLOCK, LANES):
            scatter_elements(block + SIZE * (LANES * d + lane), SIZE * LANES, load(x + 4 * d))

    @inlined
    def write_values(row: Any, _head_dim: Any, d: Any, x: Any) -> None:
        for i in range(0, BLOCK, LANES):
            store_elements(row + SIZE * (d + i), load(x + 4 * i))

    key = inlined(lambda j, at, stride, _scales: load_elements(at + stride * j))
    value = inlined(lambda j, row, _head_dim, d: load_elements(row + SIZE * d + SIZE * LANES * j))
    return CacheType(
        SIZE,
        _row(name),
        write_keys,
        write_values,
        run=inlined(lambda head_dim: head_dim),
        scale_bytes=0,
        scales=lambda _n: inlined(lambda _block, _stride: 0),
        keys=lambda n: _several(n, key),
        values=lambda n: _several(n, value),
    )


# ---- 8 bits and a scale ------------------------------------------------------------------------------------------


@inlined
def _largest(x: Any) -> Any:
    """The largest magnitude of BLOCK float32. They compare as integers: a NaN is the largest."""
    top = bits_as_int(absolute(load(x)))
    for d in range(LANES, BLOCK, LANES):
        top = maximum_int(bits_as_int(absolute(load(x + 4 * d))), top)
    return first_lane(bits_as_float(splat_int(max_lanes_int(top))))


@inlined
def _scale(x: Any) -> Any:
    """d of BLOCK float32, and what they are multiplied by."""
    largest = _largest(x)
    d = largest / np.float32(127.0)
    return d, np.float32(1.0) / d if largest >= _SMALLEST else np.float32(0.0)


@inlined
def _write_q8_0_keys(block: Any, lane: Any, x: Any) -> None:
    scale, inverse = _scale(x)
    for d in range(0, BLOCK, LANES):
        scatter_bytes(block + LANES * d + lane, LANES, round_away(load(x + 4 * d) * splat(inverse)))
    store_first_half(block + LANES * BLOCK + 2 * lane, splat(scale))


@inlined
def _write_q8_0_values(row: Any, head_dim: Any, d: Any, x: Any) -> None:
    scale, inverse = _scale(x)
    for i in range(0, BLOCK, LANES):
        store_bytes(row + d + i, round_away(load(x + 4 * i) * splat(inverse)))
    store_first_half(row + head_dim + d // BLOCK * 2, splat(scale))


@inlined
def _q8_0_scale(j: Any, block: Any, stride: Any) -> Any:
    return load_half(block + LANES * BLOCK + stride * j)


@inlined
def _q8_0_key(j: Any, at: Any, stride: Any, scales: Any) -> Any:
    return to_float(load_bytes(at + stride * j)) * scales[j]


@inlined
def _q8_0_value(j: Any, row: Any, head_dim: Any, d: Any) -> Any:
    scale = broadcast_half(row + head_dim + d // BLOCK * 2 + LANES * j // BLOCK * 2)
    return to_float(load_bytes(row + d + LANES * j)) * scale


_Q8_0 = CacheType(
    1,
    _row("q8_0"),
    _write_q8_0_keys,
    _write_q8_0_values,
    run=inlined(lambda _head_dim: BLOCK),
    scale_bytes=2 * LANES,
    scales=lambda n: _several(n, _q8_0_scale),
    keys=lambda n: _several(n, _q8_0_key),
    values=lambda n: _several(n, _q8_0_value),
)

CACHE_TYPES = {
    "f16": _float_type("f16", load_half, store_half, scatter_half),
    "f32": _float_type("f32", load, store, scatter),
    "q8_0": _Q8_0,
}
