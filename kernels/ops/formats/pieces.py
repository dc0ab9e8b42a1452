"""Pieces that several formats are read with: bit fields, halves. Know no format."""

from __future__ import annotations

from typing import Any

from ...simd.decorators import inlined
from ...simd.vocabulary import (
    bits_to_bytes,
    half_to_float,
    high_nibbles,
    rows_16_bytes,
    rows_short,
    shift_right_signed,
    splat_int,
)


@inlined
def nibbles(q: Any) -> Any:
    """16 bytes a row: the low nibbles are weights 0..15, the high ones 16..31."""
    m = splat_int(0x0F0F0F0F)
    return (
        q[0] & m, q[1] & m, q[2] & m, q[3] & m,
        high_nibbles(q[0]), high_nibbles(q[1]), high_nibbles(q[2]), high_nibbles(q[3]),
    )  # fmt: skip


@inlined
def bits(at: Any, stride: Any, shift: Any, mask: Any) -> Any:
    """32 bytes a row, one weight each: bits `shift`.. of every byte, under the repeated byte `mask`."""
    a, b = rows_16_bytes(at, stride), rows_16_bytes(at + 16, stride)
    m = splat_int(mask)
    return (
        (a[0] >> shift) & m, (a[1] >> shift) & m, (a[2] >> shift) & m, (a[3] >> shift) & m,
        (b[0] >> shift) & m, (b[1] >> shift) & m, (b[2] >> shift) & m, (b[3] >> shift) & m,
    )  # fmt: skip


@inlined
def join(low: Any, high: Any, shift: Any) -> Any:
    """low | high << shift, vector by vector."""
    return (
        low[0] | (high[0] << shift), low[1] | (high[1] << shift), low[2] | (high[2] << shift),
        low[3] | (high[3] << shift), low[4] | (high[4] << shift), low[5] | (high[5] << shift),
        low[6] | (high[6] << shift), low[7] | (high[7] << shift),
    )  # fmt: skip


_fifth = bits_to_bytes(4)


@inlined
def fifth_bits(q: Any, high: Any) -> Any:
    """Nibbles with bit e of `high` as bit 4 of weight e."""
    n = nibbles(q)
    return (
        n[0] | _fifth(high), n[1] | _fifth(high >> 4),
        n[2] | _fifth(high >> 8), n[3] | _fifth(high >> 12),
        n[4] | _fifth(high >> 16), n[5] | _fifth(high >> 20),
        n[6] | _fifth(high >> 24), n[7] | _fifth(high >> 28),
    )  # fmt: skip


@inlined
def half_at(at: Any, stride: Any) -> Any:
    """The float16 at an address of each row."""
    return half_to_float(rows_short(at, stride))


@inlined
def low_half(words: Any) -> Any:
    """The float16 in bits 0..15."""
    return half_to_float(words & splat_int(0xFFFF))


@inlined
def high_half(words: Any) -> Any:
    """The float16 in bits 16..31."""
    return half_to_float(words >> 16)


@inlined
def scale_first(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """Formats that begin with d as float16."""
    return half_at(at, stride)


@inlined
def signed_byte(words: Any, shift: Any) -> Any:
    """The byte at bit `shift`, sign-extended."""
    return shift_right_signed(words << (24 - shift), 24)


@inlined
def word_of(words: Any, k: Any) -> Any:
    """words[k] of 4, where k may be known when the kernel runs only."""
    return words[0] if k == 0 else words[1] if k == 1 else words[2] if k == 2 else words[3]


@inlined
def two_bytes(at: Any, stride: Any, i: Any) -> Any:
    """Bytes 2i and 2i + 1 of 16 a row, in the low bits: all are read together, once for a super-block."""
    return word_of(rows_16_bytes(at, stride), i >> 1) >> (16 * (i & 1))
