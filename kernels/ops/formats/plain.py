"""Formats of 32-blocks: whole numbers times a scale, some plus a minimum."""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ...layout import WIDE_ZERO
from ...simd.vocabulary import rows_16_bytes, rows_word, splat_int
from .pieces import fifth_bits, high_half, low_half, nibbles, scale_first
from .traits import IntFormat

# Q4_0  | d: f16 | 16 B nibbles |                 Q4_1  | d: f16 | m: f16 | 16 B nibbles |
# Q5_0  | d: f16 | 4 B fifth bits | 16 B |        Q5_1  | d: f16 | m: f16 | 4 B fifth bits | 16 B nibbles |
# Q8_0  | d: f16 | 32 B signed |


def _q4_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return nibbles(rows_16_bytes(at + 2, stride))


def _q4_1_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return nibbles(rows_16_bytes(at + 4, stride))


def _q4_1_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return low_half(rows_word(at, stride))


def _q4_1_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    m = high_half(rows_word(at, stride))
    return m, m


# What stands before the nibbles is read together, with bytes that are not used: a transposition of 16 bytes takes half
# the instructions of a gather of a half and of a word.


def _q5_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    return fifth_bits(rows_16_bytes(at + 6, stride), (head[0] >> 16) | (head[1] << 16))


def _q5_0_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return low_half(rows_16_bytes(at, stride)[0])


def _q5_1_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return fifth_bits(rows_16_bytes(at + 8, stride), rows_16_bytes(at, stride)[1])


def _q5_1_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return low_half(rows_16_bytes(at, stride)[0])


def _q5_1_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    m = high_half(rows_16_bytes(at, stride)[0])
    return m, m


_FLIP = -0x7F7F7F80 if WIDE_ZERO else 0  # 0x80 in every byte: signed to unsigned + 128


def _q8_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    a, b = rows_16_bytes(at + 2, stride), rows_16_bytes(at + 18, stride)
    m = splat_int(_FLIP)
    return a[0] ^ m, a[1] ^ m, a[2] ^ m, a[3] ^ m, b[0] ^ m, b[1] ^ m, b[2] ^ m, b[3] ^ m


PLAIN = (
    IntFormat(FORMATS["Q4_0"], 15, _q4_0_weights, scale_first),
    IntFormat(FORMATS["Q4_1"], 15, _q4_1_weights, _q4_1_scale, minimum=_q4_1_minimum),
    IntFormat(FORMATS["Q5_0"], 31, _q5_0_weights, _q5_0_scale),
    IntFormat(FORMATS["Q5_1"], 31, _q5_1_weights, _q5_1_scale, minimum=_q5_1_minimum),
    IntFormat(FORMATS["Q8_0"], 255, _q8_0_weights, scale_first),
)
