"""IQ3, IQ2 and IQ1: formats whose weights are, 4 or 8 at a time, a group of a grid.

    IQ3_XXS  | d: f16 | 64 B groups | 8 x 4 B: 4 x 7 signs, scale |
    IQ3_S    | d: f16 | 64 B groups | 8 B: ninth bits of them | 32 B signs | 4 B scales |
    IQ2_XXS  | d: f16 | 8 x (4 B groups, 4 B: 4 x 7 signs, scale) |
    IQ2_XS   | d: f16 | 32 x 2 B: group, 7 signs | 8 B scales |
    IQ2_S    | d: f16 | 32 B groups | 32 B signs | 8 B: two more bits of each group | 8 B scales |
    IQ1_S    | d: f16 | 32 B groups | 8 x 2 B: three more bits of 4 groups, scale, sign of delta |
    IQ1_M    | 32 B groups | 32 x 4 bits: three more of a group, sign of delta | 4 x 2 B: 4 x 3 bits scales, 4 of d |

A byte that is looked up in the table of levels has the number of a level in its lower bits, and in bit 3 the weight's
sign. Where 7 signs of 8 are stored, an even number of them is negative. Scales have 4 bits, for 32 weights, or for 16
in IQ2_XS and IQ2_S, and stand for odd multiples of d / 4 or d / 8. Unsigned weights are sums with the largest level.

Levels of IQ1 are -1, 0 and 1 plus or minus a delta of 1/8, one for 32 weights, or 8 in IQ1_M. Times 8 they are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_gemma.formats import FORMATS

from ... import grids
from ...layout import ZEROS
from ...simd.decorators import inlined
from ...simd.vocabulary import (
    FROM_MEMORY,
    bits_to_bytes,
    byte_table,
    grid_lookup,
    grid_lookup_rows,
    half_to_float,
    high_bytes,
    low_bytes,
    rows_16_bytes,
    rows_word,
    shift_right_signed,
    splat,
    splat_int,
    to_float,
    with_parity,
)
from .pieces import half_at, word_of
from .traits import IntFormat

_sign = bits_to_bytes(3)
_ninth = bits_to_bytes(0)


def _lookups(name: str, grid: grids.Grid) -> tuple[Any, Any]:
    """Of indices in two vectors, and in the memory of rows."""
    return grid_lookup(f"{name}_grid", grid), grid_lookup_rows(f"{name}_rows", grid)


@inlined
def _number(found: Any, mask: Any) -> Any:
    """What was looked up, its bits 3 and 7 being 0: as it came from memory, or under a mask."""
    return found if FROM_MEMORY else found & splat_int(mask)


def _make_signed(name: str, levels: Sequence[int]) -> Any:
    """A function of 8 vectors that have numbers of levels in the lowest bits, and of 32 sign bits a lane: weights."""
    zero, numbers = ZEROS[name], [*levels, *[0] * (8 - len(levels))]
    level = byte_table(f"{name}_level", [zero + v for v in numbers] + [zero - v for v in numbers])
    mask = 0x07070707 if len(levels) == 8 else 0x03030303

    @inlined
    def one(number: Any, signs: Any) -> Any:
        return level(_number(number, mask) | _sign(signs))

    @inlined
    def signed(v: Any, signs: Any) -> Any:
        return (
            one(v[0], signs), one(v[1], signs >> 4), one(v[2], signs >> 8), one(v[3], signs >> 12),
            one(v[4], signs >> 16), one(v[5], signs >> 20), one(v[6], signs >> 24), one(v[7], signs >> 28),
        )  # fmt: skip

    return signed


@inlined
def _eight_bytes(at: Any, stride: Any, i: Any) -> Any:
    """Bytes 8i..8i+7 as two words; those of an even i and the next one are read together."""
    words = rows_16_bytes(at + 16 * (i >> 1), stride)
    return (words[2], words[3]) if i & 1 else (words[0], words[1])


@inlined
def _four_bytes(at: Any, stride: Any, i: Any) -> Any:
    """Bytes 4i..4i+3; those of four neighbours are read together."""
    return word_of(rows_16_bytes(at + 16 * (i >> 2), stride), i & 3)


@inlined
def _even_signs(word: Any) -> Any:
    """Four times 7 bits to four bytes, each with an even number of bits."""
    return with_parity(
        (word & splat_int(0x7F)) | ((word << 1) & splat_int(0x7F00))
        | ((word << 2) & splat_int(0x7F0000)) | ((word << 3) & splat_int(0x7F000000))
    )  # fmt: skip


@inlined
def _odd(number: Any) -> Any:
    return (number << 1) | splat_int(1)


# ---- IQ3: 4 weights a group --------------------------------------------------------------------------------------

_iq3_xxs_grid, _iq3_xxs_rows = _lookups("iq3_xxs", grids.IQ3_XXS)
_iq3_xxs_signed = _make_signed("IQ3_XXS", (4, 12, 20, 28, 36, 44, 52, 62))
_iq3_s_grid = grid_lookup("iq3_s_grid", grids.IQ3_S)
_iq3_s_signed = _make_signed("IQ3_S", (1, 3, 5, 7, 9, 11, 13, 15))


def _iq3_xxs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    if FROM_MEMORY:
        groups = _iq3_xxs_rows(at + 2 + 8 * i, stride) + _iq3_xxs_rows(at + 6 + 8 * i, stride)
    else:
        first, second = _eight_bytes(at + 2, stride, i)
        groups = _iq3_xxs_grid(first, first) + _iq3_xxs_grid(second, second)
    return _iq3_xxs_signed(groups, _even_signs(_four_bytes(at + 66, stride, i)))


def _iq3_xxs_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    number = _four_bytes(at + 66, stride, i) >> 28
    return half_at(at, stride) * (to_float(_odd(number)) * splat(0.25))


def _iq3_s_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    first, second = _eight_bytes(at + 2, stride, i)
    high = word_of(rows_16_bytes(at + 66, stride), i >> 2) >> (8 * (i & 3))
    groups = _iq3_s_grid(first, _ninth(high)) + _iq3_s_grid(second, _ninth(high >> 4))
    return _iq3_s_signed(groups, _four_bytes(at + 74, stride, i))


def _iq3_s_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    number = (rows_word(at + 106, stride) >> (4 * i)) & splat_int(15)
    return half_at(at, stride) * to_float(_odd(number))


# ---- IQ2: 8 weights a group --------------------------------------------------------------------------------------

_IQ2_LEVELS = 8, 25, 43
_iq2_xxs_grid, _iq2_xxs_rows = _lookups("iq2_xxs", grids.IQ2_XXS)
_iq2_xs_grid, _iq2_xs_rows = _lookups("iq2_xs", grids.IQ2_XS)
_iq2_s_grid = grid_lookup("iq2_s_grid", grids.IQ2_S)
_iq2_signed = _make_signed("IQ2_XXS", _IQ2_LEVELS)


def _iq2_xxs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    indices, signs = _eight_bytes(at + 2, stride, i)
    groups = _iq2_xxs_rows(at + 2 + 8 * i, stride) if FROM_MEMORY else _iq2_xxs_grid(indices, indices)
    return _iq2_signed(groups, _even_signs(signs))


def _iq2_xxs_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    _, word = _eight_bytes(at + 2, stride, i)
    return half_at(at, stride) * (to_float(_odd(word >> 28)) * splat(0.125))


def _iq2_xs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """The lowest 9 bits of two bytes are the group's."""
    first, second = _eight_bytes(at + 2, stride, i)
    high = high_bytes(first, second)
    groups = _iq2_xs_rows(at + 2 + 8 * i, stride) if FROM_MEMORY else _iq2_xs_grid(low_bytes(first, second), high)
    return _iq2_signed(groups, with_parity((high >> 1) & splat_int(0x7F7F7F7F)))


def _iq2_s_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pairs = word_of(rows_16_bytes(at + 66, stride), i >> 2) >> (8 * (i & 3))
    high = (
        (pairs & splat_int(3)) | ((pairs << 6) & splat_int(0x300))
        | ((pairs << 12) & splat_int(0x30000)) | ((pairs << 18) & splat_int(0x3000000))
    )  # fmt: skip
    return _iq2_signed(_iq2_s_grid(_four_bytes(at + 2, stride, i), high), _four_bytes(at + 34, stride, i))


def _eighth(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """d / 8, of which each half of a 32-block has a multiple."""
    return half_at(at, stride) * splat(0.125)


@inlined
def _odd_pair(byte: Any) -> Any:
    """What the nibbles of a byte stand for; bits above it may be anything."""
    return _odd(byte & splat_int(15)), _odd((byte >> 4) & splat_int(15))


def _iq2_xs_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    words = rows_16_bytes(at + 58, stride)  # the last 8 count; behind them memory may end
    return _odd_pair(word_of(words, 2 + (i >> 2)) >> (8 * (i & 3)))


def _iq2_s_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _odd_pair(word_of(rows_16_bytes(at + 66, stride), 2 + (i >> 2)) >> (8 * (i & 3)))


# ---- IQ1: 8 weights a group --------------------------------------------------------------------------------------

_IQ1_LEVELS = [9 + 8 * (level - 1) + delta for delta in (1, -1) for level in (0, 1, 2)]
_iq1_grid = grid_lookup("iq1_grid", grids.IQ1)
_iq1_level = byte_table("iq1_level", [*_IQ1_LEVELS[:3], *[0] * 5, *_IQ1_LEVELS[3:], *[0] * 5])


@inlined
def _delta(words: Any, bit: Any) -> Any:
    """The sign that a lane has in a bit, as bit 3 of all its bytes."""
    return shift_right_signed(words << (31 - bit), 31) & splat_int(0x08080808)


@inlined
def _iq1_pair(first: Any, second: Any, delta: Any) -> Any:
    m = 0x03030303
    return _iq1_level(_number(first, m) | delta), _iq1_level(_number(second, m) | delta)


@inlined
def _short(words: Any, i: Any) -> Any:
    """16-bit number i of 8, in the low bits; what is above may be anything."""
    return word_of(words, i >> 1) >> (16 * (i & 1))


def _iq1_s_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    word = _short(rows_16_bytes(at + 34, stride), i)
    high = (
        (word & splat_int(7)) | ((word << 5) & splat_int(0x700))
        | ((word << 10) & splat_int(0x70000)) | ((word << 15) & splat_int(0x7000000))
    )  # fmt: skip
    v, delta = _iq1_grid(_four_bytes(at + 2, stride, i), high), _delta(word, 15)
    return (
        _iq1_pair(v[0], v[1], delta) + _iq1_pair(v[2], v[3], delta)
        + _iq1_pair(v[4], v[5], delta) + _iq1_pair(v[6], v[7], delta)
    )  # fmt: skip


def _iq1_s_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    number = (_short(rows_16_bytes(at + 34, stride), i) >> 12) & splat_int(7)
    return half_at(at, stride) * (to_float(_odd(number)) * splat(0.125))


def _iq1_m_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    nibbles = _short(rows_16_bytes(at + 32, stride), i) & splat_int(0xFFFF)
    pairs = (nibbles | (nibbles << 8)) & splat_int(0x00FF00FF)
    high = (pairs | (pairs << 4)) & splat_int(0x0F0F0F0F)
    v = _iq1_grid(_four_bytes(at, stride, i), high)
    return (
        _iq1_pair(v[0], v[1], _delta(high, 3)) + _iq1_pair(v[2], v[3], _delta(high, 11))
        + _iq1_pair(v[4], v[5], _delta(high, 19)) + _iq1_pair(v[6], v[7], _delta(high, 27))
    )  # fmt: skip


def _iq1_m_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """d / 8; the lowest bits of d come first."""
    words = rows_16_bytes(at + 40, stride)  # the last 8 bytes count
    low = ((words[2] >> 12) & splat_int(0xF)) | ((words[2] >> 24) & splat_int(0xF0))
    high = ((words[3] >> 4) & splat_int(0xF00)) | ((words[3] >> 16) & splat_int(0xF000))
    return half_to_float(low | high) * splat(0.125)


def _iq1_m_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    word = _short(rows_16_bytes(at + 40, stride), 4 + (i >> 1)) >> (6 * (i & 1))
    return _odd(word & splat_int(7)), _odd((word >> 3) & splat_int(7))


GRIDDED = (
    IntFormat(FORMATS["IQ3_XXS"], 124, _iq3_xxs_weights, _iq3_xxs_scale, group=4),
    IntFormat(FORMATS["IQ3_S"], 30, _iq3_s_weights, _iq3_s_scale, group=4),
    IntFormat(FORMATS["IQ2_XXS"], 86, _iq2_xxs_weights, _iq2_xxs_scale, group=4),
    IntFormat(FORMATS["IQ2_XS"], 86, _iq2_xs_weights, _eighth, _iq2_xs_subscales, group=4),
    IntFormat(FORMATS["IQ2_S"], 86, _iq2_s_weights, _eighth, _iq2_s_subscales, group=4),
    IntFormat(FORMATS["IQ1_S"], 18, _iq1_s_weights, _iq1_s_scale, group=4),
    IntFormat(FORMATS["IQ1_M"], 18, _iq1_m_weights, _iq1_m_scale, _iq1_m_subscales, group=4),
)
