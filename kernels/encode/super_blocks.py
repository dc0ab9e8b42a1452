"""Encoders of the formats in blocks of 256: groups of 16 or 32 whose scales are small integers. Knows no loop.

The drawings of the blocks are in `formats`. A tile holds one block of 16 groups or two of 8; in `extra` lie 16 bytes
each of the groups' scales and minima, and the float16 factors of every lane, 2 bytes each.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ..ops.formats import IQ4_VALUES
from ..simd.decorators import inlined
from .fit import Levels, both_signs, make_error, make_level, make_line_fit, make_numbers, make_scale_fit, starts
from .lanes import byte, put_byte, scatter_half, splat, store_bytes
from .search import make_shared_line, make_shared_scale
from .tile import make_loop

SCALES, MINIMA, FACTOR, MIN_FACTOR = 0, 16, 32, 64
"""Where they lie in `extra`."""
_BLOCK = 256


@inlined
def _copy_half(source: Any, out: Any) -> Any:
    put_byte(out, byte(source))
    put_byte(out + 1, byte(source + 1))


def _make_scaled(name: str, count: int, levels: Levels, size: int, fit: Any, shared: Any, pack: Any) -> Any:
    """A format whose value is factor * scale * level; scales are stored by `pack` as they are, plus `size`."""
    nbytes, group = FORMATS[name].nbytes, _BLOCK // count
    numbers, zero_scale = make_numbers(count, levels), float(size)

    @inlined
    def body(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
        factor, ints = shared(x, w, fit(x, w))
        numbers(x, factor * ints, splat(0.0), levels)
        store_bytes(extra + SCALES, ints + splat(zero_scale))
        scatter_half(extra + FACTOR, 2, factor)
        for first in range(0, 16, group):
            pack(levels + first, extra + first, extra + FACTOR + 2 * first, y + first // group * nbytes)

    return make_loop(count, group, nbytes, body)


def _make_line(name: str, count: int, top: int, fit: Any, shared: Any, pack: Any) -> Any:
    """A format whose value is factor * scale * number - minimum's factor * minimum."""
    nbytes, group = FORMATS[name].nbytes, _BLOCK // count
    numbers = make_numbers(count, tuple(range(top + 1)))

    @inlined
    def body(x: Any, w: Any, levels: Any, extra: Any, y: Any) -> Any:
        scale, offset = fit(x, w)
        factor, min_factor, ints, minima = shared(x, w, scale, offset)
        numbers(x, factor * ints, splat(0.0) - min_factor * minima, levels)
        store_bytes(extra + SCALES, ints)
        store_bytes(extra + MINIMA, minima)
        scatter_half(extra + FACTOR, 2, factor)
        scatter_half(extra + MIN_FACTOR, 2, min_factor)
        for first in range(0, 16, group):
            pack(levels + first, extra + first, extra + FACTOR + 2 * first, y + first // group * nbytes)

    return make_loop(count, group, nbytes, body)


# ---- bytes: number i of group g is at numbers + 16 i + g, scale g at scales + g, minimum g 16 bytes further ---------


@inlined
def _two_bits(numbers: Any, y: Any) -> Any:
    """The low two bits of number 128h + 32j + l in bits 2j of byte 32h + l; groups of 16."""
    for h in range(2):
        for line in range(32):
            at = numbers + 16 * (line & 15) + 8 * h + (line >> 4)
            bits = 0
            for j in range(4):
                bits |= (byte(at + 2 * j) & 3) << (2 * j)
            put_byte(y + 32 * h + line, bits)


@inlined
def _pack_q2_k(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """| 16 scales of 4 bits, minima above them | two bits | factor | minima's factor |."""
    for g in range(16):
        put_byte(y + g, byte(scales + g) | byte(scales + MINIMA + g) << 4)
    _two_bits(numbers, y + 16)
    _copy_half(factors, y + 80)
    _copy_half(factors + 32, y + 82)


@inlined
def _pack_q3_k(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """| third bits: of number 32j + l in bit j of byte l | two bits | 16 scales of 6 bits | factor |.

    Scales k and k + 8 have their low halves in byte k; the upper two bits of scale 4j + k are bits 2j of byte 8 + k.
    """
    for line in range(32):
        bits = 0
        for j in range(8):
            bits |= (byte(numbers + 16 * (line & 15) + 2 * j + (line >> 4)) >> 2) << j
        put_byte(y + line, bits)
    _two_bits(numbers, y + 32)
    for k in range(8):
        put_byte(y + 96 + k, byte(scales + k) & 15 | (byte(scales + 8 + k) & 15) << 4)
    for k in range(4):
        bits = 0
        for j in range(4):
            bits |= (byte(scales + 4 * j + k) >> 4) << (2 * j)
        put_byte(y + 104 + k, bits)
    _copy_half(factors, y + 108)


@inlined
def _six_bits(scales: Any, y: Any) -> Any:
    """12 bytes of 8 scales and 8 minima: six bits of the first four of each, in whose upper two bits are those of the
    last four; then low halves of the last four, minima above scales."""
    minima = scales + MINIMA
    for k in range(4):
        put_byte(y + k, byte(scales + k) | (byte(scales + 4 + k) >> 4) << 6)
        put_byte(y + 4 + k, byte(minima + k) | (byte(minima + 4 + k) >> 4) << 6)
        put_byte(y + 8 + k, byte(scales + 4 + k) & 15 | (byte(minima + 4 + k) & 15) << 4)


@inlined
def _pairs(numbers: Any, y: Any) -> Any:
    """Number 64p + 32n + l in nibble n of byte 32p + l; groups of 32."""
    for p in range(4):
        for line in range(32):
            at = numbers + 16 * line + 2 * p
            put_byte(y + 32 * p + line, byte(at) & 15 | (byte(at + 1) & 15) << 4)


@inlined
def _pack_q4_k(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """| factor | minima's factor | 8 scales and 8 minima of 6 bits | nibbles |."""
    _copy_half(factors, y)
    _copy_half(factors + 32, y + 2)
    _six_bits(scales, y + 4)
    _pairs(numbers, y + 16)


@inlined
def _pack_q5_k(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """As Q4_K, with the fifth bits before the nibbles: of number 32g + l in bit g of byte l."""
    _copy_half(factors, y)
    _copy_half(factors + 32, y + 2)
    _six_bits(scales, y + 4)
    for line in range(32):
        bits = 0
        for g in range(8):
            bits |= (byte(numbers + 16 * line + g) >> 4) << g
        put_byte(y + 16 + line, bits)
    _pairs(numbers, y + 48)


@inlined
def _pack_q6_k(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """| nibbles | upper two bits | 16 scales, int8 | factor |.

    Of numbers 128h + 32j + l the nibbles j and j + 2 share byte 64h + 32j + l, and all four have their upper bits in
    bits 2j of byte 32h + l.
    """
    for h in range(2):
        for line in range(32):
            at = numbers + 16 * (line & 15) + 8 * h + (line >> 4)
            for j in range(2):
                low, high = byte(at + 2 * j) & 15, byte(at + 2 * j + 4) & 15
                put_byte(y + 64 * h + 32 * j + line, low | high << 4)
            bits = 0
            for j in range(4):
                bits |= (byte(at + 2 * j) >> 4) << (2 * j)
            put_byte(y + 128 + 32 * h + line, bits)
    for g in range(16):
        put_byte(y + 192 + g, byte(scales + g) - 128)
    _copy_half(factors, y + 208)


@inlined
def _pack_iq4_xs(numbers: Any, scales: Any, factors: Any, y: Any) -> Any:
    """| factor | upper bits of 8 scales | their low halves, two a byte | nibbles: numbers i, i + 16 of a group |."""
    _copy_half(factors, y)
    for k in range(2):
        bits = 0
        for j in range(4):
            bits |= (byte(scales + 4 * k + j) >> 4) << (2 * j)
        put_byte(y + 2 + k, bits)
    for k in range(4):
        put_byte(y + 4 + k, byte(scales + 2 * k) & 15 | (byte(scales + 2 * k + 1) & 15) << 4)
    for g in range(8):
        for i in range(16):
            at = numbers + 16 * i + g
            put_byte(y + 8 + 16 * g + i, byte(at) | byte(at + 256) << 4)


# ---- formats -----------------------------------------------------------------------------------------------------


def _make_q2_k() -> Any:
    level = make_level((0, 1, 2, 3))
    fit = make_line_fit(16, level, ((0.0, 0.3, 0.6), (0.0, 0.3, 0.6)), 3, 2, below_zero=True)
    shared = make_shared_line(16, level, make_error(16, level), 16, 15, (15.0, 14.0, 13.0, 12.0), 1, 4)
    return _make_line("Q2_K", 16, 3, fit, shared, _pack_q2_k)


def _make_q4_k() -> Any:
    level = make_level(tuple(range(16)))
    fit = make_line_fit(32, level, ((0.0, 0.5), (-0.9, -0.45, 0.0, 0.45)), 15, 2, below_zero=True)
    shared = make_shared_line(32, level, make_error(32, level), 8, 63, (63.0,), 1, 2)
    return _make_line("Q4_K", 32, 15, fit, shared, _pack_q4_k)


def _make_q5_k() -> Any:
    level = make_level(tuple(range(32)))
    fit = make_line_fit(32, level, ((-0.4, 0.0, 0.4), (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0)), 31, 2, below_zero=True)
    shared = make_shared_line(32, level, make_error(32, level), 8, 63, (63.0,), 1, 2)
    return _make_line("Q5_K", 32, 31, fit, shared, _pack_q5_k)


def _make_q3_k() -> Any:
    levels = tuple(range(-4, 4))
    level = make_level(levels)
    fit = make_scale_fit(16, level, both_signs(starts(2.6, 5.4, 10)), 3)
    tops = both_signs((32.0, 31.0, 29.0))
    shared = make_shared_scale(16, level, make_error(16, level), 16, 32, tops, 1, 3)
    return _make_scaled("Q3_K", 16, levels, 32, fit, shared, _pack_q3_k)


def _make_q6_k() -> Any:
    levels = tuple(range(-32, 32))
    level = make_level(levels)
    fit = make_scale_fit(16, level, both_signs(starts(28.0, 34.0, 7)), 2)
    shared = make_shared_scale(16, level, make_error(16, level), 16, 128, (128.0, -128.0, 127.0), 1, 1)
    return _make_scaled("Q6_K", 16, levels, 128, fit, shared, _pack_q6_k)


def _make_iq4_xs() -> Any:
    level = make_level(IQ4_VALUES)
    fit = make_scale_fit(32, level, both_signs(starts(95.0, 135.0, 7)), 2)
    shared = make_shared_scale(32, level, make_error(32, level), 8, 32, (32.0, -32.0, 31.0), 1, 2)
    return _make_scaled("IQ4_XS", 32, IQ4_VALUES, 32, fit, shared, _pack_iq4_xs)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {
        "Q2_K": _make_q2_k(),
        "Q3_K": _make_q3_k(),
        "Q4_K": _make_q4_k(),
        "Q5_K": _make_q5_k(),
        "Q6_K": _make_q6_k(),
        "IQ4_XS": _make_iq4_xs(),
    }
