"""IQ3, IQ2 and IQ1: formats whose weights are, 4 or 8 at a time, a group of a grid.

    IQ3_XXS  | d: f16 | 64 B groups | 8 x 4 B: 4 x 7 signs, scale |
    IQ3_S    | d: f16 | 64 B groups | 8 B: ninth bits of them | 32 B signs | 4 B scales |

A byte that is looked up in the table of levels has the number of a level in its lower bits, and in bit 3 the weight's
sign. Signs of IQ3_XXS: an even number of each 8 is negative, so 7 are stored. Scales are of 4 bits, one per 32
weights, and stand for d times an odd number. Weights begin at their least, so that none is negative.
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


GRIDDED = (
    IntFormat(FORMATS["IQ3_XXS"], 124, _iq3_xxs_weights, _iq3_xxs_scale, group=4),
    IntFormat(FORMATS["IQ3_S"], 30, _iq3_s_weights, _iq3_s_scale, group=4),
)
