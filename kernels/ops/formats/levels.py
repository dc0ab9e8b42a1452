"""Formats whose nibbles are indices of a table of sixteen levels."""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ...layout import WIDE_ZERO, ZEROS
from ...simd.decorators import inlined
from ...simd.vocabulary import (
    bits_as_float,
    byte_table,
    rows_16_bytes,
    rows_short,
    splat_int,
    to_float,
    where_less,
)
from .pieces import low_half, nibbles, scale_first
from .traits import IntFormat

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen levels of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl)."""

_iq4 = byte_table("iq4_level", [(v + WIDE_ZERO) % 256 for v in IQ4_VALUES])


@inlined
def _iq4_levels(at: Any, stride: Any) -> Any:
    n = nibbles(rows_16_bytes(at, stride))
    return _iq4(n[0]), _iq4(n[1]), _iq4(n[2]), _iq4(n[3]), _iq4(n[4]), _iq4(n[5]), _iq4(n[6]), _iq4(n[7])


def _iq4_nl_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    return _iq4_levels(at + 2, stride)


def _iq4_xs_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| d: f16 | 2 B: bits 4..5 of scale i in bits 2i | 4 B: bits 0..3 of scale i in nibble i | 8 x 16 B nibbles |"""
    return _iq4_levels(at + 8 + 16 * i, stride)


def _iq4_xs_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    head = rows_16_bytes(at, stride)
    low, high = (head[1] >> (4 * i)) & splat_int(15), (head[0] >> (16 + 2 * i)) & splat_int(3)
    return low_half(head[0]) * to_float((low | (high << 4)) - splat_int(32))


E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of a 4-bit float, by its bits (OCP Microscaling Formats 1.0, table 5)."""

_e2m1 = byte_table("e2m1_level", [v + ZEROS["MXFP4"] for v in E2M1_VALUES])


def _mxfp4_weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """| e: the scale is 2^(e - 127), of values that are doubled here | 16 B nibbles |"""
    n = nibbles(rows_16_bytes(at + 1, stride))
    return _e2m1(n[0]), _e2m1(n[1]), _e2m1(n[2]), _e2m1(n[3]), _e2m1(n[4]), _e2m1(n[5]), _e2m1(n[6]), _e2m1(n[7])


def _mxfp4_scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """2^(e - 128): the bits of 2^-128 and 2^-127 are 1 << 21 and 1 << 22, those of others e - 1 where exponents are."""
    e = rows_short(at, stride) & splat_int(255)
    small, normal = (e << 21) + splat_int(1 << 21), (e - splat_int(1)) << 23
    return where_less(e, splat_int(2), bits_as_float(small), bits_as_float(normal))


LEVELS = (
    IntFormat(FORMATS["IQ4_NL"], 255, _iq4_nl_weights, scale_first),
    IntFormat(FORMATS["IQ4_XS"], 255, _iq4_xs_weights, _iq4_xs_scale),
    IntFormat(FORMATS["MXFP4"], 24, _mxfp4_weights, _mxfp4_scale),
)
