"""Encoders of the formats in blocks of 32: one group, its float16 scale, perhaps a float16 minimum. Knows no loop.

The drawings of the blocks are in `formats`.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ..ops.formats import IQ4_VALUES
from ..simd.decorators import inlined
from .fit import Cuts, Levels, both_signs, make_error, make_level, make_line_fit, make_numbers, make_scale_fit, starts
from .lanes import byte, put_byte, scatter_half, splat
from .search import finite_half, make_half_scale, make_offset_fit
from .tile import make_loop

COUNT = 32
LANES = 16


@inlined
def _nibbles(numbers: Any, y: Any, nbytes: Any) -> Any:
    """Byte i of 16: number i in the low half, number i + 16 in the high one."""
    for lane in range(LANES):
        for i in range(16):
            low, high = byte(numbers + i * 16 + lane), byte(numbers + (i + 16) * 16 + lane)
            put_byte(y + lane * nbytes + i, low & 15 | (high & 15) << 4)


@inlined
def _fifth_bits(numbers: Any, y: Any, nbytes: Any) -> Any:
    """Four bytes: bit i is the fifth bit of number i. Then the nibbles."""
    for lane in range(LANES):
        for k in range(4):
            bits = 0
            for i in range(8):
                bits |= (byte(numbers + (8 * k + i) * 16 + lane) >> 4) << i
            put_byte(y + lane * nbytes + k, bits)
    _nibbles(numbers, y + 4, nbytes)


@inlined
def _signed(numbers: Any, y: Any, nbytes: Any) -> Any:
    """Bytes, of which 0 is the number 127."""
    for lane in range(LANES):
        for i in range(COUNT):
            put_byte(y + lane * nbytes + i, byte(numbers + i * 16 + lane) - 127)


def _make_scaled(name: str, levels: Levels, tries: tuple[float, ...], turns: int, pack: Any) -> Any:
    """| d: f16 | numbers |"""
    nbytes = FORMATS[name].nbytes
    level = make_level(levels)
    fit, numbers = make_scale_fit(COUNT, level, tries, turns), make_numbers(COUNT, levels)
    half_scale = make_half_scale(make_error(COUNT, level), 1)

    @inlined
    def body(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
        zero = splat(0.0)
        scale = half_scale(x, w, fit(x, w), zero)
        scatter_half(y, nbytes, scale)
        numbers(x, scale, zero, levels)
        pack(levels, y + 2, nbytes)

    return make_loop(COUNT, 1, nbytes, body)


def _make_line(name: str, top: int, cuts: Cuts, turns: int, pack: Any) -> Any:
    """| d: f16 | m: f16 | numbers |"""
    nbytes = FORMATS[name].nbytes
    levels = tuple(range(top + 1))
    level = make_level(levels)
    fit = make_line_fit(COUNT, level, cuts, top, turns, below_zero=False)
    numbers, offset_fit = make_numbers(COUNT, levels), make_offset_fit(COUNT, level)
    half_scale = make_half_scale(make_error(COUNT, level), 1)

    @inlined
    def body(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
        scale, offset = fit(x, w)
        offset = finite_half(offset_fit(x, w, finite_half(scale), offset))
        scale = half_scale(x, w, scale, offset)
        scatter_half(y, nbytes, scale)
        scatter_half(y + 2, nbytes, offset)
        numbers(x, scale, offset, levels)
        pack(levels, y + 4, nbytes)

    return make_loop(COUNT, 1, nbytes, body)


def _signed_levels(size: int) -> Levels:
    return tuple(range(-size, size))


def _both(cuts: tuple[float, ...]) -> Cuts:
    return cuts, cuts


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    nibble_starts = (*both_signs(starts(6.0, 10.0, 9)), 5.0, 4.0)  # the last for grids of trained weights, see `plain`
    return {
        "Q4_0": _make_scaled("Q4_0", _signed_levels(8), nibble_starts, 2, _nibbles),
        "Q5_0": _make_scaled("Q5_0", _signed_levels(16), both_signs(starts(13.0, 18.0, 11)), 2, _fifth_bits),
        "Q8_0": _make_scaled("Q8_0", tuple(range(-127, 128)), starts(124.0, 128.0, 9), 1, _signed),
        "IQ4_NL": _make_scaled("IQ4_NL", IQ4_VALUES, both_signs(starts(95.0, 135.0, 7)), 2, _nibbles),
        "Q4_1": _make_line("Q4_1", 15, _both((-0.8, -0.4, 0.0, 0.4, 0.8, 1.2)), 2, _nibbles),
        "Q5_1": _make_line("Q5_1", 31, _both((-1.6, -1.2, -0.8, -0.4, 0.0, 0.4)), 2, _fifth_bits),
    }
