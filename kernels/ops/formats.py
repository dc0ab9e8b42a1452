"""The block formats as traits: how 32 weights of `LANES` rows are read from the file's bytes into registers.

Knows no shape and no loop. A format is a singleton with a few facts and at most four operations, each for the 32-block
`i` of the file block that starts at address `at` in the first of LANES rows, `stride` bytes apart. Lane = row:

    weights(fmt, at, stride, i)    8 vectors of bytes: lane r of vector k has the unsigned weights 4k..4k+3 of row r
    scale(fmt, at, stride, i)      F: what one unit of the block's integer sum is worth
    subscales(fmt, at, stride, i)  2 x I: integer factors of the sums of weights 0..15 and 16..31  (fmt.subs == 2)
    minimum(fmt, at, stride, i)    2 x F: what is added per unit of the sum of inputs 0..15 and 16..31  (fmt.mins)

A weight is  scale * subscale * (unsigned - zero) + minimum; weights of 8 bits are signed where their zero is 0, on
AVX2 and AArch64. Sources: ggml's block structs (ggml-common.h) and the dequantizers of the gguf package, which the
tests hold these against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import (
    models,
    overload,
    register_model,
    typeof_impl,
)

from edge_gemma.formats import FORMATS, BlockFormat

from ..layout import WIDE_ZERO, ZEROS
from ..simd.decorators import inlined
from ..simd.vocabulary import (
    byte_table,
    half_to_float,
    high_nibbles,
    rows_16_bytes,
    rows_short,
    rows_word,
    shift_right_signed,
    splat,
    splat_int,
    spread_bits,
    to_float,
)


@dataclass(frozen=True, eq=False)
class IntFormat:
    """Facts of a quantized format.

    `top` is the largest byte that `weights` gives; `group` neighbouring 32-blocks share the bytes they are read from.
    """

    layout: BlockFormat
    top: int
    weights: Callable[..., Any]
    scale: Callable[..., Any]
    subscales: Callable[..., Any] | None = None
    minimum: Callable[..., Any] | None = None
    group: int = 1

    @property
    def name(self) -> str:
        """As in GGUF."""
        return self.layout.name

    @property
    def zero(self) -> int:
        """What is subtracted from the unsigned weights."""
        return ZEROS.get(self.name, 0)

    @property
    def blocks(self) -> int:
        """32-blocks in one block of the file."""
        return self.layout.block // 32

    @property
    def subs(self) -> int:
        """Parts of a 32-block with an integer scale of their own: 1 means none, or 2."""
        return 1 if self.subscales is None else 2

    @property
    def mins(self) -> bool:
        """Whether blocks have a minimum."""
        return self.minimum is not None

    @property
    def wide(self) -> bool:
        """Whether weights take all 8 bits; they come plus WIDE_ZERO, which may be 0, and are signed then."""
        return self.top == 255

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_name, (self.name,)


def _by_name(name: str) -> IntFormat:
    return INT_FORMATS[name]


class _FormatType(types.Dummy):
    def __init__(self, name: str) -> None:
        super().__init__(name=f"Format({name})")
        self.format_name = name


register_model(_FormatType)(models.OpaqueModel)


@typeof_impl.register(IntFormat)
def _typeof_format(value: IntFormat, _context: Any) -> _FormatType:
    return _FormatType(value.name)


def weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """8 vectors of unsigned bytes; see the module's docstring. Compiled code only."""
    raise NotImplementedError


def scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the module's docstring. Compiled code only."""
    raise NotImplementedError


def subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the module's docstring. Compiled code only."""
    raise NotImplementedError


def minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the module's docstring. Compiled code only."""
    raise NotImplementedError


def _dispatch(operation: Callable[..., Any], trait: str) -> None:
    @overload(operation, inline="never", jit_options={"forceinline": True})
    def _resolve(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
        return getattr(INT_FORMATS[fmt.format_name], trait)


_dispatch(weights, "weights")
_dispatch(scale, "scale")
_dispatch(subscales, "subscales")
_dispatch(minimum, "minimum")


# ---- pieces shared by several formats ----------------------------------------------------------------------------


@inlined
def _nibbles(q: Any) -> Any:
    """16 bytes a row: the low nibbles are weights 0..15, the high ones 16..31."""
    m = splat_int(0x0F0F0F0F)
    return (
        q[0] & m, q[1] & m, q[2] & m, q[3] & m,
        high_nibbles(q[0]), high_nibbles(q[1]), high_nibbles(q[2]), high_nibbles(q[3]),
    )  # fmt: skip


@inlined
def _bits(at: Any, stride: Any, shift: Any, mask: Any) -> Any:
    """32 bytes a row, one weight each: bits `shift`.. of every byte, under the repeated byte `mask`."""
    a, b = rows_16_bytes(at, stride), rows_16_bytes(at + 16, stride)
    m = splat_int(mask)
    return (
        (a[0] >> shift) & m, (a[1] >> shift) & m, (a[2] >> shift) & m, (a[3] >> shift) & m,
        (b[0] >> shift) & m, (b[1] >> shift) & m, (b[2] >> shift) & m, (b[3] >> shift) & m,
    )  # fmt: skip


@inlined
def _join(low: Any, high: Any, shift: Any) -> Any:
    """low | high << shift, vector by vector."""
    return (
        low[0] | (high[0] << shift), low[1] | (high[1] << shift), low[2] | (high[2] << shift),
        low[3] | (high[3] << shift), low[4] | (high[4] << shift), low[5] | (high[5] << shift),
        low[6] | (high[6] << shift), low[7] | (high[7] << shift),
    )  # fmt: skip


@inlined
def _fifth_bits(q: Any, high: Any) -> Any:
    """Nibbles with bit e of `high` as bit 4 of weight e."""
    n = _nibbles(q)
    return (
        n[0] | spread_bits(high), n[1] | spread_bits(high >> 4),
        n[2] | spread_bits(high >> 8), n[3] | spread_bits(high >> 12),
        n[4] | spread_bits(high >> 16), n[5] | spread_bits(high >> 20),
        n[6] | spread_bits(high >> 24), n[7] | spread_bits(high >> 28),
    )  # fmt: skip


@inlined
def _half_at(at: Any, stride: Any) -> Any:
    return half_to_float(rows_short(at, stride))


@inlined
def _low_half(words: Any) -> Any:
    return half_to_float(words & splat_int(0xFFFF))


@inlined
def _high_half(words: Any) -> Any:
    return half_to_float(words >> 16)


@inlined
def _scale_first(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """Formats that begin with d as float16."""
    return _half_at(at, stride)


# ---- 32-blocks ---------------------------------------------------------------------------------------------------
# Q4_0  | d: f16 | 16 B nibbles |                 Q4_1  | d: f16 | m: f16 | 16 B nibbles |
# Q5_0  | d: f16 | 4 B fifth bits | 16 B |        Q5_1  | d: f16 | m: f16 | 4 B fifth bits | 16 B nibbles |
# Q8_0  | d: f16 | 32 B signed |                  IQ4_NL as Q4_0, nibbles being indices of a table


def _q4_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _nibbles(rows_16_bytes(at + 2, stride))


def _q4_1_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _nibbles(rows_16_bytes(at + 4, stride))


def _q4_1_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _low_half(rows_word(at, stride))


def _q4_1_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    m = _high_half(rows_word(at, stride))
    return m, m


# What stands before the nibbles is read together, with bytes that are not used: a transposition of 16 bytes takes half
# the instructions of a gather of a half and of a word.


def _q5_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    return _fifth_bits(rows_16_bytes(at + 6, stride), (head[0] >> 16) | (head[1] << 16))


def _q5_0_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _low_half(rows_16_bytes(at, stride)[0])


def _q5_1_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _fifth_bits(rows_16_bytes(at + 8, stride), rows_16_bytes(at, stride)[1])


def _q5_1_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _low_half(rows_16_bytes(at, stride)[0])


def _q5_1_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    m = _high_half(rows_16_bytes(at, stride)[0])
    return m, m


_FLIP = -0x7F7F7F80 if WIDE_ZERO else 0  # 0x80 in every byte: signed to unsigned + 128


def _q8_0_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    a, b = rows_16_bytes(at + 2, stride), rows_16_bytes(at + 18, stride)
    m = splat_int(_FLIP)
    return a[0] ^ m, a[1] ^ m, a[2] ^ m, a[3] ^ m, b[0] ^ m, b[1] ^ m, b[2] ^ m, b[3] ^ m


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen levels of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl)."""

_iq4 = byte_table("iq4_level", [(v + WIDE_ZERO) % 256 for v in IQ4_VALUES])


@inlined
def _iq4_levels(at: Any, stride: Any) -> Any:
    n = _nibbles(rows_16_bytes(at, stride))
    return _iq4(n[0]), _iq4(n[1]), _iq4(n[2]), _iq4(n[3]), _iq4(n[4]), _iq4(n[5]), _iq4(n[6]), _iq4(n[7])


def _iq4_nl_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _iq4_levels(at + 2, stride)


# ---- 256-blocks --------------------------------------------------------------------------------------------------
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
    return _low_half(head[0]) * to_float(_six_bits(head[1], head[1], head[3], i, 0))


def _q4_k_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    m = _high_half(head[0]) * to_float(_six_bits(head[2], head[2], head[3], i, 4))
    m = splat(0.0) - m
    return m, m


def _q4_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | dmin: f16 | 12 B scales | 128 B nibbles |"""
    q = at + 16 + 32 * (i >> 1)
    if i & 1 == 0:
        return _bits(q, stride, 0, 0x0F0F0F0F)
    a, b = rows_16_bytes(q, stride), rows_16_bytes(q + 16, stride)
    return (
        high_nibbles(a[0]), high_nibbles(a[1]), high_nibbles(a[2]), high_nibbles(a[3]),
        high_nibbles(b[0]), high_nibbles(b[1]), high_nibbles(b[2]), high_nibbles(b[3]),
    )  # fmt: skip


def _q5_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | dmin: f16 | 12 B scales | 32 B: bit i of byte l is bit 4 of weight 32i + l | 128 B nibbles |"""
    low = _bits(at + 48 + 32 * (i >> 1), stride, 4 * (i & 1), 0x0F0F0F0F)
    return _join(low, _bits(at + 16, stride, i, 0x01010101), 4)


def _q6_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 128 B low nibbles | 64 B high 2 bits | 16 B int8 scales, one per 16 weights | d: f16 |"""
    h, j = i >> 2, i & 3
    low = _bits(at + 64 * h + 32 * (j & 1), stride, 4 * (j >> 1), 0x0F0F0F0F)
    return _join(low, _bits(at + 128 + 32 * h, stride, 2 * j, 0x03030303), 4)


def _q6_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _half_at(at + 208, stride)


@inlined
def _signed_byte(words: Any, shift: Any) -> Any:
    """The byte at bit `shift`, sign-extended."""
    return shift_right_signed(words << (24 - shift), 24)


@inlined
def _two_bytes(at: Any, stride: Any, i: Any) -> Any:
    """Bytes 2i and 2i + 1 of 16 a row, in the low bits: all are read together, once for a super-block."""
    words, k = rows_16_bytes(at, stride), i >> 1
    word = words[0] if k == 0 else words[1] if k == 1 else words[2] if k == 2 else words[3]
    return word >> (16 * (i & 1))


def _q6_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = _two_bytes(at + 192, stride, i)
    return _signed_byte(pair, 0), _signed_byte(pair, 8)


def _q2_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 16 B: scale in the low, minimum in the high nibble, for 16 weights | 64 B 2-bit fields | d, dmin: f16 |"""
    return _bits(at + 16 + 32 * (i >> 2), stride, 2 * (i & 3), 0x03030303)


def _q2_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _low_half(rows_word(at + 80, stride))


def _q2_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = _two_bytes(at, stride, i)
    return pair & splat_int(15), (pair >> 8) & splat_int(15)


def _q2_k_minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    pair = _two_bytes(at, stride, i)
    dmin = splat(0.0) - _high_half(rows_word(at + 80, stride))
    return dmin * to_float((pair >> 4) & splat_int(15)), dmin * to_float((pair >> 12) & splat_int(15))


def _q3_k_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| 32 B: bit i of byte l is the third bit of weight 32i + l | 64 B 2-bit fields | 12 B scales | d: f16 |"""
    low = _bits(at + 32 + 32 * (i >> 2), stride, 2 * (i & 3), 0x03030303)
    return _join(low, _bits(at, stride, i, 0x01010101), 2)


def _q3_k_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _half_at(at + 108, stride)


@inlined
def _q3_k_subscale(at: Any, stride: Any, s: Any) -> Any:
    """Scale s of 16: bits 0..3 in nibble s / 8 of byte s mod 8, bits 4..5 in bits 2 (s / 4) of byte 8 + s mod 4."""
    nibbles = rows_word(at + 100, stride) if s & 4 else rows_word(at + 96, stride)
    low = (nibbles >> (8 * (s & 3) + 4 * (s >> 3))) & splat_int(15)
    high = (rows_word(at + 104, stride) >> (8 * (s & 3) + 2 * (s >> 2))) & splat_int(3)
    return (low | (high << 4)) - splat_int(32)


def _q3_k_subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _q3_k_subscale(at, stride, 2 * i), _q3_k_subscale(at, stride, 2 * i + 1)


def _iq4_xs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | 2 B: bits 4..5 of scale i in bits 2i | 4 B: bits 0..3 of scale i in nibble i | 8 x 16 B nibbles |"""
    return _iq4_levels(at + 8 + 16 * i, stride)


def _iq4_xs_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    low, high = (head[1] >> (4 * i)) & splat_int(15), (head[0] >> (16 + 2 * i)) & splat_int(3)
    return _low_half(head[0]) * to_float((low | (high << 4)) - splat_int(32))


def _table(*formats: IntFormat) -> dict[str, IntFormat]:
    return {f.name: f for f in formats}


_L = FORMATS
INT_FORMATS: dict[str, IntFormat] = _table(
    IntFormat(_L["Q4_0"], 15, _q4_0_weights, _scale_first),
    IntFormat(_L["Q4_1"], 15, _q4_1_weights, _q4_1_scale, minimum=_q4_1_minimum),
    IntFormat(_L["Q5_0"], 31, _q5_0_weights, _q5_0_scale),
    IntFormat(_L["Q5_1"], 31, _q5_1_weights, _q5_1_scale, minimum=_q5_1_minimum),
    IntFormat(_L["Q8_0"], 255, _q8_0_weights, _scale_first),
    IntFormat(_L["IQ4_NL"], 255, _iq4_nl_weights, _scale_first),
    IntFormat(_L["Q2_K"], 3, _q2_k_weights, _q2_k_scale, _q2_k_subscales, _q2_k_minimum, group=4),
    IntFormat(_L["Q3_K"], 7, _q3_k_weights, _q3_k_scale, _q3_k_subscales, group=4),
    IntFormat(_L["Q4_K"], 15, _q4_k_weights, _q4_k_scale, minimum=_q4_k_minimum, group=2),
    IntFormat(_L["Q5_K"], 31, _q5_k_weights, _q4_k_scale, minimum=_q4_k_minimum, group=2),
    IntFormat(_L["Q6_K"], 63, _q6_k_weights, _q6_k_scale, _q6_k_subscales, group=4),
    IntFormat(_L["IQ4_XS"], 255, _iq4_xs_weights, _iq4_xs_scale),
)
"""The formats whose products with int8 activations are exact integers."""
