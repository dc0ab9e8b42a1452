"""Formats whose nibbles are indices of a table of sixteen levels."""

from __future__ import annotations

from typing import Any

from edge_gemma.formats import FORMATS

from ...layout import WIDE_ZERO
from ...simd.decorators import inlined
from ...simd.vocabulary import byte_table, rows_16_bytes, splat_int, to_float
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


LEVELS = (
    IntFormat(FORMATS["IQ4_NL"], 255, _iq4_nl_weights, scale_first),
    IntFormat(FORMATS["IQ4_XS"], 255, _iq4_xs_weights, _iq4_xs_scale),
)
