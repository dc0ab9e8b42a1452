"""The block formats in NumPy: what the bytes of a row mean. The slow twin of `formats`, and its definition.

Knows no operation and no Numba.    R rows of weights   B blocks of 32 columns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS

from .. import grids
from ..layout import WIDE_ZERO, ZEROS

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

f32 = np.float32


@dataclass(frozen=True)
class Weights:
    """Blocks of 32 as integers and what they are worth: scale * subscale * value + minimum, halves of 16 apart."""

    values: Ints  # (R, B, 2, 16), zero subtracted
    scale: Floats  # (R, B)
    subscales: Ints | None = None  # (R, B, 2)
    minimum: Floats | None = None  # (R, B, 1), or (R, B, 2) beside subscales


def _fields(data: Bytes, groups: int, bits: int) -> Ints:
    """Bit fields of bytes: of each of `groups` runs, the lowest fields of all its bytes, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = (data.reshape(len(data), groups, 1, -1) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(data), -1).astype(np.int32)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as a column."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(f32)


def _four_bits(blocks: Bytes, at: int) -> Ints:
    return _fields(blocks[:, at : at + 16], 1, 4)


def _five_bits(blocks: Bytes, at: int) -> Ints:
    return _four_bits(blocks, at + 4) | _fields(blocks[:, at : at + 4], 4, 1) << 4


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)
"""The sixteen values of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl)."""

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int32)
"""Twice the values of a 4-bit float, by its bits (OCP Microscaling Formats 1.0, table 5)."""

Parts = tuple[Ints, Floats, Ints | None, Floats | None]  # unsigned values, scale, subscales, minimum


def _q4_0(b: Bytes) -> Parts:
    return _four_bits(b, 2), _half(b, 0), None, None


def _q4_1(b: Bytes) -> Parts:
    return _four_bits(b, 4), _half(b, 0), None, _half(b, 2)


def _q5_0(b: Bytes) -> Parts:
    return _five_bits(b, 2), _half(b, 0), None, None


def _q5_1(b: Bytes) -> Parts:
    return _five_bits(b, 4), _half(b, 0), None, _half(b, 2)


def _q8_0(b: Bytes) -> Parts:
    return b[:, 2:].view(np.int8) + np.int32(WIDE_ZERO), _half(b, 0), None, None


def _iq4_nl(b: Bytes) -> Parts:
    return LEVELS[_four_bits(b, 2)] + WIDE_ZERO, _half(b, 0), None, None


def _iq4_xs(b: Bytes) -> Parts:
    scales = _fields(b[:, 4:8], 4, 4) | _fields(b[:, 2:4], 2, 2) << 4
    return LEVELS[_fields(b[:, 8:], 8, 4)] + WIDE_ZERO, _half(b, 0) * (scales - 32).astype(f32), None, None


def _mxfp4(b: Bytes) -> Parts:
    exponent = b[:, :1].astype(np.int32) - 128  # one less than the power of two, as the values are doubled
    return E2M1[_four_bits(b, 1)] + ZEROS["MXFP4"], np.ldexp(f32(1), exponent), None, None


def _q2_k(b: Bytes) -> Parts:
    pairs = b[:, :16].astype(np.int32)
    return _fields(b[:, 16:80], 2, 2), _half(b, 80), pairs & 15, -_half(b, 82) * (pairs >> 4).astype(f32)


def _q3_k(b: Bytes) -> Parts:
    scales = _fields(b[:, 96:104], 1, 4) | _fields(b[:, 104:108], 1, 2) << 4
    return _fields(b[:, 32:96], 2, 2) | _fields(b[:, :32], 1, 1) << 2, _half(b, 108), scales - 32, None


def _six_bits(b: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of Q4_K and Q5_K, 8 each in 12 bytes."""
    low, other, shared = (b[:, at : at + 4].astype(np.int32) for at in (4, 8, 12))
    scales = np.hstack([low & 63, shared & 15 | low >> 6 << 4])
    minima = np.hstack([other & 63, shared >> 4 | other >> 6 << 4])
    return _half(b, 0) * scales.astype(f32), -(_half(b, 2) * minima.astype(f32))


def _q4_k(b: Bytes) -> Parts:
    scale, minimum = _six_bits(b)
    return _fields(b[:, 16:], 4, 4), scale, None, minimum


def _q5_k(b: Bytes) -> Parts:
    scale, minimum = _six_bits(b)
    return _fields(b[:, 48:], 4, 4) | _fields(b[:, 16:48], 1, 1) << 4, scale, None, minimum


def _q6_k(b: Bytes) -> Parts:
    values = _fields(b[:, :128], 2, 4) | _fields(b[:, 128:192], 2, 2) << 4
    return values, _half(b, 208), b[:, 192:208].view(np.int8).astype(np.int32), None


# ---- groups of a grid --------------------------------------------------------------------------------------------

IQ3_XXS_LEVELS, IQ3_S_LEVELS = np.array([4, 12, 20, 28, 36, 44, 52, 62]), np.array([1, 3, 5, 7, 9, 11, 13, 15])


def _words(blocks: Bytes, at: int, count: int) -> NDArray[np.uint32]:
    """The 32-bit words from byte `at` of each block on, (N, count)."""
    return blocks[:, at : at + 4 * count].copy().view("<u4")


def _signs(bits: Bytes) -> Ints:
    """-1 for each bit that is set, else 1: (N, bytes) to (N, 8 * bytes)."""
    return 1 - 2 * np.unpackbits(bits, axis=1, bitorder="little").astype(np.int32)


def _even_signs(seven: Bytes) -> Ints:
    """The same of bytes of 7 bits, an eighth being set if otherwise the number of set bits were odd."""
    odd = _signs(seven).reshape(len(seven), -1, 8).prod(axis=2) < 0
    return _signs(seven | odd.astype(np.uint8) << 7)


def _four_sevens(words: NDArray[np.uint32]) -> Bytes:
    """Bits 0..27 of each word as four bytes: (N, n) to (N, 4n)."""
    sevens = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    return sevens.reshape(len(words), -1).astype(np.uint8)


def _on_grid(name: str, levels: NDArray[np.int64], groups: Ints, signs: Ints) -> Ints:
    """The unsigned weights of groups of the grid of that name."""
    grid: grids.Grid = getattr(grids, name)
    values = levels[grid[groups]].reshape(signs.shape) * signs + ZEROS[name]
    return values.astype(np.int32)


def _iq3_xxs(b: Bytes) -> Parts:
    words = _words(b, 66, 8)
    scale = _half(b, 0) * ((words >> 28) * 2 + 1).astype(f32) * f32(0.25)
    values = _on_grid("IQ3_XXS", IQ3_XXS_LEVELS, b[:, 2:66].astype(np.int32), _even_signs(_four_sevens(words)))
    return values, scale, None, None


def _iq3_s(b: Bytes) -> Parts:
    groups = b[:, 2:66] | _fields(b[:, 66:74], 8, 1) << 8
    scale = _half(b, 0) * (_fields(b[:, 106:110], 4, 4) * 2 + 1).astype(f32)
    return _on_grid("IQ3_S", IQ3_S_LEVELS, groups, _signs(b[:, 74:106])), scale, None, None


IQ2_LEVELS = np.array([8, 25, 43])


def _iq2_xxs(b: Bytes) -> Parts:
    words = _words(b, 2, 16).reshape(-1, 8, 2)
    groups = words[:, :, 0].copy().view(np.uint8).astype(np.int32)
    scale = _half(b, 0) * ((words[:, :, 1] >> 28) * 2 + 1).astype(f32) * f32(0.125)
    return _on_grid("IQ2_XXS", IQ2_LEVELS, groups, _even_signs(_four_sevens(words[:, :, 1]))), scale, None, None


def _iq2_xs(b: Bytes) -> Parts:
    shorts = b[:, 2:66].copy().view("<u2").astype(np.int32)
    values = _on_grid("IQ2_XS", IQ2_LEVELS, shorts & 511, _even_signs((shorts >> 9).astype(np.uint8)))
    return values, _half(b, 0) * f32(0.125), _fields(b[:, 66:74], 8, 4) * 2 + 1, None


def _iq2_s(b: Bytes) -> Parts:
    groups = b[:, 2:34] | _fields(b[:, 66:74], 8, 2) << 8
    values = _on_grid("IQ2_S", IQ2_LEVELS, groups, _signs(b[:, 34:66]))
    return values, _half(b, 0) * f32(0.125), _fields(b[:, 74:82], 8, 4) * 2 + 1, None


def _on_iq1_grid(groups: Ints, negative: NDArray[np.bool_]) -> Ints:
    """The unsigned weights: 8 times the numbers of the grid, and 1 less where the group's delta is negative or more."""
    delta = np.where(negative, -1, 1)[..., None]
    values = (8 * (grids.IQ1.astype(np.int32)[groups] - 1)).reshape(*negative.shape, -1) + delta
    return (values + ZEROS["IQ1_S"]).reshape(len(groups), -1).astype(np.int32)


def _iq1_s(b: Bytes) -> Parts:
    shorts = b[:, 34:50].copy().view("<u2").astype(np.int32)
    high = (shorts[:, :, None] >> np.array([0, 3, 6, 9]) & 7).reshape(len(b), -1)
    scale = _half(b, 0) * ((shorts >> 12 & 7) * 2 + 1).astype(f32) * f32(0.125)
    return _on_iq1_grid(b[:, 2:34] | high << 8, shorts >= 1 << 15), scale, None, None


def _iq1_m(b: Bytes) -> Parts:
    nibbles, shorts = _fields(b[:, 32:48], 16, 4), b[:, 48:56].copy().view("<u2").astype(np.int32)
    bits = (shorts >> 12 << np.array([0, 4, 8, 12])).sum(axis=1, keepdims=True)
    scale = bits.astype(np.uint16).view(np.float16).astype(f32) * f32(0.125)
    subscales = (shorts[:, :, None] >> np.array([0, 3, 6, 9]) & 7).reshape(len(b), -1) * 2 + 1
    return _on_iq1_grid(b[:, :32] | (nibbles & 7) << 8, nibbles >= 8), scale, subscales, None


_PARTS: dict[str, Callable[[Bytes], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


def unpack(name: str, rows: Bytes) -> Weights:
    """Rows of the bytes of a quantized format, (R, row bytes)."""
    blocks = rows.reshape(-1, FORMATS[name].nbytes)
    count, per_block = len(rows), FORMATS[name].block // 32
    values, scale, subscales, minimum = _PARTS[name](blocks)
    return Weights(
        (values - ZEROS.get(name, 0)).reshape(count, -1, 2, 16),
        np.broadcast_to(scale, (len(blocks), per_block)).reshape(count, -1),
        None if subscales is None else subscales.reshape(count, -1, 2),
        None if minimum is None else minimum.reshape(count, -1, 1 if subscales is None else 2),
    )


def unpack_floats(name: str, rows: Bytes) -> Floats:
    """Rows of the bytes of F32, F16 or BF16."""
    if name == "BF16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(f32)
    return rows.view(np.float16 if name == "F16" else f32).astype(f32)


def factors(w: Weights) -> tuple[Floats, Floats]:
    """What a unit of each half's values is worth, and what is added: (R, B, 2, 1)."""
    scale = w.scale[:, :, None] * (f32(1) if w.subscales is None else w.subscales.astype(f32))
    halves = (*w.scale.shape, 2)
    offset = f32(0) if w.minimum is None else w.minimum
    return np.broadcast_to(scale, halves)[..., None], np.broadcast_to(offset, halves)[..., None]


def dequantize(name: str, rows: Bytes) -> Floats:
    """(R, row bytes) of any format to (R, columns), rounded as ggml does: after the product, and after the sum."""
    if FORMATS[name].is_float:
        return unpack_floats(name, rows)
    w = unpack(name, rows)
    factor, offset = factors(w)
    y = w.values.astype(f32) * factor
    return (y if w.minimum is None else y + offset).reshape(len(rows), -1)
