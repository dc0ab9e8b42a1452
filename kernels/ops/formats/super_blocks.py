"""The K-quants: formats of 256-blocks whose scales are whole numbers times the block's."""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ...simd.decorators import inlined
from ...simd.vocabulary import high_nibbles, rows_16_bytes, rows_word, splat, splat_int, to_float
from .pieces import bits, half_at, high_half, join, low_half, signed_byte, two_bytes
from .traits import IntFormat

# 2-bit fields: weight 128h + 32j + l is in bits 2j of byte 32h + l (h = 0, 1; j = 0..3; l = 0..31); i = 4h + j.
# 4-bit fields of Q4_K, Q5_K: weight 64p + 32n + l is in nibble n of byte 32p + l; i = 2p + n.
# 4-bit fields of Q6_K: weight 128h + 32j + l is in nibble j / 2 of byte 64h + 32 (j mod 2) + l.


@inlined
def _six_bits(low: Any, other: Any, shared: Any, i: Any, nibble: Any) -> Any:
    """Scale or minimum i of Q4_K and Q5_K. Their 12 bytes, as three words a row:

    byte k of word 0:  scale k      in bits 0..5,  bits 4..5 of scale k + 4 in bits 6..7   (k = 0..3)
    byte k of word 1:  minimum k    likewise
    byte k of word 2:  bits 0..3 of scale k + 4 in the low, of minimum k + 4 in the high nibble
    """
    k = 8 * (i & 3)
    if i < 4:
        return (low >> k) & splat_int(63)
    return ((shared >> (k + nibble)) & splat_int(15)) | (((other >> (k + 6)) & splat_int(3)) << 4)


def _q4_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)  # d: f16, dmin: f16, 12 B of scales and minima
    return low_half(head[0]) * to_float(_six_bits(head[1], head[1], head[3], i, 0))


def _q4_k_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    m = high_half(head[0]) * to_float(_six_bits(head[2], head[2], head[3], i, 4))
    m = splat(0.0) - m
    return m, m


def _q4_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | dmin: f16 | 12 B scales | 128 B nibbles |"""
    q = at + 16 + 32 * (i >> 1)
    if i & 1 == 0:
        return bits(q, stride, 0, 0x0F0F0F0F)
    a, b = rows_16_bytes(q, stride), rows_16_bytes(q + 16, stride)
    return (
        high_nibbles(a[0]), high_nibbles(a[1]), high_nibbles(a[2]), high_nibbles(a[3]),
        high_nibbles(b[0]), high_nibbles(b[1]), high_nibbles(b[2]), high_nibbles(b[3]),
    )  # fmt: skip


def _q5_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | dmin: f16 | 12 B scales | 32 B: bit i of byte l is bit 4 of weight 32i + l | 128 B nibbles |"""
    low = bits(at + 48 + 32 * (i >> 1), stride, 4 * (i & 1), 0x0F0F0F0F)
    return join(low, bits(at + 16, stride, i, 0x01010101), 4)


def _q6_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 128 B low nibbles | 64 B high 2 bits | 16 B int8 scales, one per 16 weights | d: f16 |"""
    h, j = i >> 2, i & 3
    low = bits(at + 64 * h + 32 * (j & 1), stride, 4 * (j >> 1), 0x0F0F0F0F)
    return join(low, bits(at + 128 + 32 * h, stride, 2 * j, 0x03030303), 4)


def _q6_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return half_at(at + 208, stride)


def _q6_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = two_bytes(at + 192, stride, i)
    return signed_byte(pair, 0), signed_byte(pair, 8)


def _q2_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 16 B: scale in the low, minimum in the high nibble, for 16 weights | 64 B 2-bit fields | d, dmin: f16 |"""
    return bits(at + 16 + 32 * (i >> 2), stride, 2 * (i & 3), 0x03030303)


def _q2_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return low_half(rows_word(at + 80, stride))


def _q2_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = two_bytes(at, stride, i)
    return pair & splat_int(15), (pair >> 8) & splat_int(15)


def _q2_k_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = two_bytes(at, stride, i)
    dmin = splat(0.0) - high_half(rows_word(at + 80, stride))
    return dmin * to_float((pair >> 4) & splat_int(15)), dmin * to_float((pair >> 12) & splat_int(15))


def _q3_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 32 B: bit i of byte l is the third bit of weight 32i + l | 64 B 2-bit fields | 12 B scales | d: f16 |"""
    low = bits(at + 32 + 32 * (i >> 2), stride, 2 * (i & 3), 0x03030303)
    return join(low, bits(at, stride, i, 0x01010101), 2)


def _q3_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return half_at(at + 108, stride)


@inlined
def _q3_k_subscale(at: Any, stride: Any, s: Any) -> Any:
    """Scale s of 16: bits 0..3 in nibble s / 8 of byte s mod 8, bits 4..5 in bits 2 (s / 4) of byte 8 + s mod 4."""
    nibbles = rows_word(at + 100, stride) if s & 4 else rows_word(at + 96, stride)
    low = (nibbles >> (8 * (s & 3) + 4 * (s >> 3))) & splat_int(15)
    high = (rows_word(at + 104, stride) >> (8 * (s & 3) + 2 * (s >> 2))) & splat_int(3)
    return (low | (high << 4)) - splat_int(32)


def _q3_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _q3_k_subscale(at, stride, 2 * i), _q3_k_subscale(at, stride, 2 * i + 1)


SUPER_BLOCKS = (
    IntFormat(FORMATS["Q2_K"], 3, _q2_k_weights, _q2_k_scale, _q2_k_subscales, _q2_k_minimum, group=4),
    IntFormat(FORMATS["Q3_K"], 7, _q3_k_weights, _q3_k_scale, _q3_k_subscales, group=4),
    IntFormat(FORMATS["Q4_K"], 15, _q4_k_weights, _q4_k_scale, minimum=_q4_k_minimum, group=2),
    IntFormat(FORMATS["Q5_K"], 31, _q5_k_weights, _q4_k_scale, minimum=_q4_k_minimum, group=2),
    IntFormat(FORMATS["Q6_K"], 63, _q6_k_weights, _q6_k_scale, _q6_k_subscales, group=4),
)
