"""The loop that all encoders share: 16 groups of values at a time into a tile, lane = group. Knows no format.

scratch:  | x: count vectors | weights: count vectors | numbers of levels: 16 bytes per vector | 256 bytes |
"""

from __future__ import annotations

from typing import Any

from edge_gemma.kernels.atomics import word
from edge_gemma.kernels.encode import ENCODE, GROUPS
from edge_gemma.kernels.encode_fit import VECTOR
from edge_gemma.kernels.encode_lanes import splat, store, transpose
from edge_gemma.kernels.jit import inlined

_X, _Y, _ROWS, _COLUMNS, _IMPORTANCE, _SCRATCH = ENCODE.slots


def make_loop(count: int, group: int, nbytes: int, body: Any) -> Any:
    """A kernel: `body(x, w, levels, extra, y)` for every 16 groups of `count`; `group` of them are a block of `nbytes`.

    The last tile may overlap the one before, and writes the same bytes again.
    """

    @inlined
    def fill(source: Any, out: Any) -> Any:
        for part in range(0, count, 16):
            transpose(source + 4 * part, 4 * count, out + part * VECTOR)

    def loop(op: Any, _step: Any, _thread: Any) -> None:
        columns, importance = word(op, _COLUMNS), word(op, _IMPORTANCE)
        groups = word(op, _ROWS) * columns // count
        x = word(op, _SCRATCH)
        w = x + count * VECTOR
        levels = w + count * VECTOR
        for i in range(count):
            store(w + i * VECTOR, splat(1.0))
        for start in range(0, groups, GROUPS):
            first = min(start, groups - GROUPS)
            fill(word(op, _X) + first * count * 4, x)
            if importance != 0:
                fill(importance + (first * count) % columns * 4, w)
            body(x, w, levels, levels + count * 16, word(op, _Y) + first // group * nbytes)

    return loop
