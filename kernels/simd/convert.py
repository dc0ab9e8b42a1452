"""Between floats, halves and integers, in registers and on the way to memory. Knows no format."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from .memory import load
from .types import (
    FLOATS,
    I8,
    I16,
    I32,
    ISA,
    LANES,
    WORDS,
    F,
    I,
    ir_const,
    ir_fconst,
    ir_load,
    ir_row,
    ir_store,
    operation,
)


@operation(F, I)
def to_float(builder: Any, a: Any) -> Any:
    """Signed integers to float32, rounded to nearest even above 2^24."""
    return builder.sitofp(a, FLOATS)


_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest-even integer in the low bits of the mantissa


@operation(I, F)
def to_int(builder: Any, a: Any) -> Any:
    """Nearest integer, halves to even. |a| must be below 2^22."""
    biased = builder.bitcast(builder.fadd(a, ir_fconst(_ROUND)), WORDS)
    return builder.sub(biased, ir.Constant(WORDS, [0x4B400000] * LANES))


@operation(I, F)
def round_away(builder: Any, a: Any) -> Any:
    """Nearest integer, halves away from zero; 0 of NaN. |a| must be below 2^31."""
    # Half's predecessor: what is just below a half would otherwise be rounded up by the addition.
    below_half = ir.Constant(WORDS, [0x3EFFFFFF] * LANES)
    sign = builder.and_(builder.bitcast(a, WORDS), ir.Constant(WORDS, [0x80000000] * LANES))
    moved = builder.fadd(a, builder.bitcast(builder.or_(sign, below_half), FLOATS))
    number = builder.fcmp_ordered("ord", moved, moved)
    return builder.fptosi(builder.select(number, moved, ir.Constant(FLOATS, None)), WORDS)


@operation(F, I)
def bits_as_float(builder: Any, a: Any) -> Any:
    """The same bits, read as float32."""
    return builder.bitcast(a, FLOATS)


@operation(I, F)
def bits_as_int(builder: Any, a: Any) -> Any:
    """The same bits, read as int32."""
    return builder.bitcast(a, WORDS)


def ir_half_to_float(builder: Any, words: Any) -> Any:
    """float16 bits in the low half of 32-bit lanes. Without F16C: move the exponent by a multiplication with 2^112."""
    if ISA.half:
        return builder.fpext(builder.bitcast(builder.trunc(words, _short_vector()), _half_vector()), FLOATS)
    magnitude = builder.bitcast(builder.shl(builder.and_(words, ir_const(0x7FFF)), ir_const(13)), FLOATS)
    finite = builder.bitcast(builder.fmul(magnitude, ir_fconst(2.0**112)), WORDS)
    special = builder.icmp_unsigned(">=", builder.and_(words, ir_const(0x7FFF)), ir_const(0x7C00))
    bits = builder.select(special, builder.or_(finite, ir_const(0x7F800000)), finite)
    return builder.bitcast(builder.or_(bits, builder.shl(builder.and_(words, ir_const(0x8000)), ir_const(16))), FLOATS)


def ir_float_to_half(builder: Any, value: Any) -> Any:
    """Vector of LANES 16-bit integers: float16 bits, nearest even, overflow to infinity."""
    if ISA.half:
        return builder.bitcast(builder.fptrunc(value, _half_vector()), _short_vector())
    bits = builder.bitcast(value, WORDS)
    sign = builder.and_(builder.lshr(bits, ir_const(16)), ir_const(0x8000))
    magnitude = builder.and_(bits, ir_const(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, ir_const(13)), ir_const(1))
    normal = builder.add(builder.sub(magnitude, ir_const(0x38000000 - 0xFFF)), odd)
    normal = builder.lshr(normal, ir_const(13))
    # Below 2^-14 the sum with 0.5 has the half's subnormal as its low mantissa bits.
    tiny = builder.bitcast(builder.fadd(builder.bitcast(magnitude, FLOATS), ir_fconst(0.5)), WORDS)
    tiny = builder.sub(tiny, ir_const(0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", magnitude, ir_const(0x38800000)), tiny, normal)
    half = builder.select(builder.icmp_unsigned(">=", magnitude, ir_const(0x477FF000)), ir_const(0x7C00), half)
    nan = builder.icmp_unsigned(">", magnitude, ir_const(0x7F800000))
    half = builder.select(nan, ir_const(0x7E00), half)
    return builder.trunc(builder.or_(half, sign), _short_vector())


def _short_vector() -> ir.VectorType:
    return ir.VectorType(I16, LANES)


def _half_vector() -> ir.VectorType:
    return ir.VectorType(ir.HalfType(), LANES)


@operation(F, I)
def half_to_float(builder: Any, words: Any) -> Any:
    """float16 bits in the low half of each lane, to float32. Exact."""
    return ir_half_to_float(builder, words)


@operation(F, types.intp)
def load_half(builder: Any, address: Any) -> Any:
    """LANES float16, as float32."""
    if ISA.half:
        return builder.fpext(ir_load(builder, address, _half_vector()), FLOATS)
    return ir_half_to_float(builder, builder.zext(ir_load(builder, address, _short_vector()), WORDS))


@operation(types.void, types.intp, F)
def store_first_half(builder: Any, address: Any, value: Any) -> None:
    """Lane 0 as one float16, rounded to nearest even."""
    ir_store(builder, address, builder.extract_element(ir_float_to_half(builder, value), ir.Constant(I32, 0)))


@operation(types.void, types.intp, F)
def store_half(builder: Any, address: Any, value: Any) -> None:
    """LANES float16, rounded to nearest even."""
    ir_store(builder, address, ir_float_to_half(builder, value))


@operation(F, types.intp)
def load_bfloat(builder: Any, address: Any) -> Any:
    """LANES bfloat16, as float32."""
    words = builder.zext(ir_load(builder, address, _short_vector()), WORDS)
    return builder.bitcast(builder.shl(words, ir_const(16)), FLOATS)


FLOAT_LOADS = {"F32": (load, 4), "F16": (load_half, 2), "BF16": (load_bfloat, 2)}
"""How LANES elements of a float format are loaded, and an element's bytes."""


@operation(I, types.intp)
def load_bytes(builder: Any, address: Any) -> Any:
    """LANES int8, sign-extended."""
    return builder.sext(ir_load(builder, address, ir.VectorType(I8, LANES)), WORDS)


@operation(types.void, types.intp, I)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """The low byte of each lane: LANES bytes."""
    ir_store(builder, address, builder.trunc(value, ir.VectorType(I8, LANES)))


def _scatter(builder: Any, address: Any, stride: Any, vector: Any) -> None:
    for lane in range(LANES):
        element = builder.extract_element(vector, ir.Constant(I32, lane))
        ir_store(builder, ir_row(builder, address, stride, lane), element)


@operation(types.void, types.intp, types.intp, F)
def scatter_half(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Lane l as float16 to address + l * stride."""
    _scatter(builder, address, stride, ir_float_to_half(builder, value))


@operation(types.void, types.intp, types.intp, F)
def scatter(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Lane l as float32 to address + l * stride."""
    _scatter(builder, address, stride, value)


@operation(types.void, types.intp, types.intp, I)
def scatter_bytes(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """The low byte of lane l to address + l * stride."""
    _scatter(builder, address, stride, builder.trunc(value, ir.VectorType(I8, LANES)))
