"""IQ3, IQ2 and IQ1: formats whose weights are, 4 or 8 at a time, a group of a grid.

    IQ3_XXS  | d: f16 | 64 B groups | 8 x 4 B: 4 x 7 signs, scale |
    IQ3_S    | d: f16 | 64 B groups | 8 B: ninth bits of them | 32 B signs | 4 B scales |
    IQ2_XXS  | d: f16 | 8 x (4 B groups, 4 B: 4 x 7 signs, scale) |
    IQ2_XS   | d: f16 | 32 x 2 B: group, 7 signs | 8 B scales |
    IQ2_S    | d: f16 | 32 B groups | 32 B signs | 8 B: two more bits of each group | 8 B scales |

A byte that is looked up in the table of levels has the number of a level in its lower bits, and in bit 3 the weight's
sign. Where 7 signs of 8 are stored, an even number of them is negative. Scales have 4 bits, for 32 weights, or for 16
in IQ2_XS and IQ2_S, and stand for odd multiples of d / 4 or d / 8. A weight is a level or less, plus the largest level:
so none is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_gemma.formats import FORMATS

from ... import grids
from ...layout import ZEROS
from ...simd.decorators import inlined
from ...simd.vocabulary import (
    bits_to_bytes,
    byte_table,
    grid_lookup,
    high_bytes,
    low_bytes,
    rows_16_bytes,
    rows_word,
    splat,
    splat_int,
    to_float,
    with_parity,
)
from .pieces import half_at, word_of
from .traits import IntFormat

_sign = bits_to_bytes(3)
_ninth = bits_to_bytes(0)


def _make_signed(name: str, levels: Sequence[int]) -> Any:
    """A function of 8 vectors that have numbers of levels in the lowest bits, and of 32 sign bits a lane: weights."""
    zero, numbers = ZEROS[name], [*levels, *[0] * (8 - len(levels))]
    level = byte_table(f"{name}_level", [zero + v for v in numbers] + [zero - v for v in numbers])
    MASK = 0x07070707 if len(levels) == 8 else 0x03030303

    @inlined
    def one(number: Any, signs: Any) -> Any:
        return level((number & splat_int(MASK)) | _sign(signs))

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

_iq3_xxs_grid = grid_lookup("iq3_xxs_grid", grids.IQ3_XXS)
_iq3_xxs_signed = _make_signed("IQ3_XXS", (4, 12, 20, 28, 36, 44, 52, 62))
_iq3_s_grid = grid_lookup("iq3_s_grid", grids.IQ3_S)
_iq3_s_signed = _make_signed("IQ3_S", (1, 3, 5, 7, 9, 11, 13, 15))


def _iq3_xxs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
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
_iq2_xxs_grid = grid_lookup("iq2_xxs_grid", grids.IQ2_XXS)
_iq2_xs_grid = grid_lookup("iq2_xs_grid", grids.IQ2_XS)
_iq2_s_grid = grid_lookup("iq2_s_grid", grids.IQ2_S)
_iq2_signed = _make_signed("IQ2_XXS", _IQ2_LEVELS)


def _iq2_xxs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    groups, signs = _eight_bytes(at + 2, stride, i)
    return _iq2_signed(_iq2_xxs_grid(groups, groups), _even_signs(signs))


def _iq2_xxs_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    _, word = _eight_bytes(at + 2, stride, i)
    return half_at(at, stride) * (to_float(_odd(word >> 28)) * splat(0.125))


def _iq2_xs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """The lowest 9 bits of two bytes are the group's."""
    first, second = _eight_bytes(at + 2, stride, i)
    high = high_bytes(first, second)
    signs = with_parity((high >> 1) & splat_int(0x7F7F7F7F))
    return _iq2_signed(_iq2_xs_grid(low_bytes(first, second), high), signs)


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


GRIDDED = (
    IntFormat(FORMATS["IQ3_XXS"], 124, _iq3_xxs_weights, _iq3_xxs_scale, group=4),
    IntFormat(FORMATS["IQ3_S"], 30, _iq3_s_weights, _iq3_s_scale, group=4),
    IntFormat(FORMATS["IQ2_XXS"], 86, _iq2_xxs_weights, _iq2_xxs_scale, group=4),
    IntFormat(FORMATS["IQ2_XS"], 86, _iq2_xs_weights, _eighth, _iq2_xs_subscales, group=4),
    IntFormat(FORMATS["IQ2_S"], 86, _iq2_s_weights, _eighth, _iq2_s_subscales, group=4),
)
