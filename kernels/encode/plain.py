"""Q4_0 and Q8_0 as the reference of the gguf package rounds them, and the widening of float rows. Knows no search.

A block whose scale has no finite reciprocal (largest magnitude under 1e-37) becomes zeros; its float16 scale is 0 too.
A model trained for Q4_0 has weights that are whole multiples of a scale, in which the reference takes the largest for
the 8th: where it is the 7th to 4th instead (fewer are a part of these), that is found here first, and the reference's
bytes are those of blocks on no such grid.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ..simd.atomics import word
from ..simd.decorators import inlined
from .fit import VECTOR, inverse, ratio
from .lanes import (
    absolute,
    if_less,
    larger,
    load,
    load_bfloats,
    load_halves,
    nearest,
    real,
    scatter_byte,
    scatter_half,
    shift_left,
    smaller,
    splat,
    store,
    whole,
)
from .rows import WIDEN
from .tile import make_loop

_SOURCE, _OUT, _COUNT = WIDEN.slots

PEAK = -8.0
"""What a block's largest value is in multiples of the reference's scale."""
GRIDS = (4.0, 7.0, 6.0, 5.0)
"""What else it may be: first that which divides by a power of two."""
NEAR = 5 * 2.0**-9
"""How far from whole multiples, relatively, bfloat16 leaves values of which one gives the scale: 2^-7, with room."""
EXACT = 2.0**-12
"""Nearer than this they were not rounded, and the scale is right; otherwise the best one for all is taken."""


@inlined
def _peak(x: Any) -> Any:
    """The value of largest magnitude, the first of several."""
    peak = load(x)
    for i in range(1, 32):
        v = load(x + i * VECTOR)
        peak = if_less(absolute(peak), absolute(v), v, peak)
    return peak


@inlined
def _four_bits(x: Any, inv: Any) -> Any:
    return whole(smaller(load(x) * inv + splat(8.5), splat(15.0)))


@inlined
def _on_grid(x: Any, scale: Any) -> Any:
    """How much farther from levels than NEAR the values are at most, in units of the scale: not above 0 on a grid. And
    the scale, better where they were rounded."""
    inv, off, far, rq, qq = inverse(scale), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for i in range(32):
        u = load(x + i * VECTOR) * inv
        q = smaller(nearest(u), splat(7.0))
        r = u - q
        off, far = larger(off, absolute(r) - absolute(u) * splat(NEAR)), larger(far, absolute(r))
        rq, qq = rq + r * q, qq + q * q
    return off, if_less(splat(EXACT), far, scale + ratio(rq, qq) * scale, scale)


def _make_scale(grids: tuple[float, ...]) -> Any:
    count = len(grids)

    @inlined
    def scale_of(x: Any) -> Any:
        """The reference's, or that of the first grid that the values are on if they are not on the reference's."""
        peak = _peak(x)
        chosen = peak / splat(PEAK)
        least, _ = _on_grid(x, chosen)
        for k in range(count):
            off, scale = _on_grid(x, peak / splat(grids[k]))
            better = if_less(splat(0.0), off, chosen, scale)
            chosen = if_less(splat(0.0), least, better, chosen)
            least = smaller(least, off)
        return chosen

    return scale_of


_scale_of = _make_scale(GRIDS)


@inlined
def _q4_0(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
    """| d: f16 | 16 B nibbles |"""
    scale = _scale_of(x)
    scatter_half(y, 18, scale)
    inv = inverse(scale)
    for i in range(16):
        low, high = _four_bits(x + i * VECTOR, inv), _four_bits(x + (i + 16) * VECTOR, inv)
        scatter_byte(y + 2 + i, 18, low | shift_left(high, 4))


@inlined
def _q8_0(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
    """| d: f16 | 32 B signed |: the peak becomes 127 or -127; halves are rounded away from zero."""
    scale = absolute(_peak(x)) / splat(127.0)
    scatter_half(y, 34, scale)
    inv = inverse(scale)
    for i in range(32):
        u = load(x + i * VECTOR) * inv
        n = whole(u)
        rest = u - real(n)  # exact, in (-1, 1), with the sign of u
        scatter_byte(y + 2 + i, 34, n + whole(rest + rest))


def _make_widen(load16: Any, nbytes: int) -> Any:
    def widen(op: Any, _step: Any, _thread: Any) -> None:
        source, out, count = word(op, _SOURCE), word(op, _OUT), word(op, _COUNT)
        for start in range(0, count, 16):
            i = min(start, count - 16)
            store(out + 4 * i, load16(source + i * nbytes))

    return widen


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {
        "Q4_0": make_loop(32, 1, FORMATS["Q4_0"].nbytes, _q4_0),
        "Q8_0": make_loop(32, 1, FORMATS["Q8_0"].nbytes, _q8_0),
        "F16": _make_widen(load_halves, 2),
        "BF16": _make_widen(load_bfloats, 2),
    }
