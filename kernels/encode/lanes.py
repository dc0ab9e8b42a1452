"""The vocabulary of the encoders: 16 lanes, whatever the CPU, so that a file's bytes do not depend on it.

Knows no format. `V` is 16 float32 and `N` 16 int32; LLVM splits them into the registers there are. Every operation is
one IEEE operation per lane, or made of such (no fused multiply-add, no conversion instruction that some CPU lacks),
and sums across lanes are taken in a fixed order. Addresses are plain integers.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, models, register_model, type_callable

from ..simd.decorators import inlined
from ..simd.types import ir_call, ir_load, ir_pointer, operation

LANES = 16

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32 = ir.FloatType()


class LanesType(types.Type):
    """16 values of one 32-bit element type."""

    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm = ir.VectorType(element, LANES)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: LanesType) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


V = LanesType("V16", _f32)
N = LanesType("N16", _i32)
_VV, _VN = V.llvm, N.llvm
_WORD, _REAL = types.intp, types.float32


def _const(value: int) -> ir.Constant:
    return ir.Constant(_VN, [value] * LANES)


def _fconst(value: float) -> ir.Constant:
    return ir.Constant(_VV, [ir.Constant(_f32, value)] * LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _const(0))


# ---- memory ------------------------------------------------------------------------------------------------------


@operation(V, _REAL)
def splat(builder: Any, x: Any) -> Any:
    """Every lane x."""
    return _splat(builder, x)


@operation(V, _WORD)
def load(builder: Any, address: Any) -> Any:
    """16 float32 from `address`."""
    return ir_load(builder, address, _VV, align=4)


@operation(types.void, _WORD, V)
def store(builder: Any, address: Any, value: Any) -> None:
    """16 float32 to `address`."""
    builder.store(value, ir_pointer(builder, address, _VV), align=4)


@operation(types.void, _WORD, V)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """Whole numbers -128..255, one byte a lane."""
    data = builder.trunc(builder.fptosi(value, _VN), ir.VectorType(_i8, LANES))
    builder.store(data, ir_pointer(builder, address, data.type), align=1)


@operation(_WORD, _WORD)
def byte(builder: Any, address: Any) -> Any:
    """The unsigned byte at `address`."""
    return builder.zext(ir_load(builder, address, _i8), _i64)


@operation(types.void, _WORD, _WORD)
def put_byte(builder: Any, address: Any, value: Any) -> None:
    """The low 8 bits of `value` to `address`."""
    builder.store(builder.trunc(value, _i8), ir_pointer(builder, address, _i8), align=1)


@operation(types.void, _WORD, _WORD, V)
def scatter_half(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Lane l as float16 to address + l * stride."""
    halves = builder.trunc(_half_bits(builder, value), ir.VectorType(_i16, LANES))
    for lane in range(LANES):
        at = builder.add(address, builder.mul(stride, ir.Constant(_i64, lane)))
        part = builder.extract_element(halves, ir.Constant(_i32, lane))
        builder.store(part, ir_pointer(builder, at, _i16), align=1)


@operation(types.void, _WORD, _WORD, N)
def scatter_byte(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """The low 8 bits of lane l to address + l * stride."""
    parts = builder.trunc(value, ir.VectorType(_i8, LANES))
    for lane in range(LANES):
        at = builder.add(address, builder.mul(stride, ir.Constant(_i64, lane)))
        part = builder.extract_element(parts, ir.Constant(_i32, lane))
        builder.store(part, ir_pointer(builder, at, _i8), align=1)


def _interleave(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a0 b0 a1 b1 ... in two vectors."""
    low = [i // 2 + (i % 2) * LANES for i in range(LANES)]
    high = [i + LANES // 2 for i in low]
    return tuple(builder.shuffle_vector(a, b, ir.Constant(_VN, pattern)) for pattern in (low, high))


@operation(types.void, _WORD, _WORD, _WORD)
def transpose(builder: Any, address: Any, stride: Any, out: Any) -> None:
    """16 rows of 16 float32, `stride` bytes apart, to 16 vectors at `out`, lane = row."""
    rows = []
    for row in range(LANES):
        at = builder.add(address, builder.mul(stride, ir.Constant(_i64, row)))
        rows.append(ir_load(builder, at, _VV, align=4))
    for _ in range(4):  # a perfect shuffle of 256 values, four times: halves row and column bits past each other
        rows = [part for k in range(LANES // 2) for part in _interleave(builder, rows[k], rows[k + LANES // 2])]
    for column, value in enumerate(rows):
        at = builder.add(out, ir.Constant(_i64, 4 * LANES * column))
        builder.store(value, ir_pointer(builder, at, _VV), align=4)


# ---- arithmetic --------------------------------------------------------------------------------------------------


def _declare_operator(function: Any, vector: LanesType, method: str) -> None:
    @type_callable(function)
    def _typer(_context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return vector if a is vector and b is vector else None

        return typer

    @lower_builtin(function, vector, vector)
    def _lower(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return getattr(builder, method)(*values)


for _vector, _table in (
    (V, {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}),
    (N, {"add": "add", "or_": "or_"}),
):
    for _name, _method in _table.items():
        _declare_operator(getattr(operator, _name), _vector, _method)


@operation(V, V, V)
def smaller(builder: Any, a: Any, b: Any) -> Any:
    """The lesser in every lane."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@operation(V, V, V)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """The greater in every lane."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@operation(V, V, V, V, V)
def if_less(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x where a < b, else y."""
    return builder.select(builder.fcmp_ordered("<", a, b), x, y)


@operation(V, V)
def absolute(builder: Any, a: Any) -> Any:
    """Without the sign."""
    return builder.bitcast(builder.and_(builder.bitcast(a, _VN), _const(0x7FFFFFFF)), _VV)


@operation(V, V)
def root(builder: Any, a: Any) -> Any:
    """The square root, correctly rounded as IEEE 754 demands of every CPU."""
    return ir_call(builder, f"llvm.sqrt.v{LANES}f32", _VV, a)


@operation(V, V)
def nearest(builder: Any, a: Any) -> Any:
    """The nearest whole number, halves to even, of |a| < 2^22."""
    magic = _fconst(1.5 * 2.0**23)
    return builder.fsub(builder.fadd(a, magic), magic)


@operation(N, V)
def whole(builder: Any, a: Any) -> Any:
    """Towards zero, as integers, of |a| < 2^31."""
    return builder.fptosi(a, _VN)


@operation(V, N)
def real(builder: Any, a: Any) -> Any:
    """Integers as float32."""
    return builder.sitofp(a, _VV)


@operation(N, N, _WORD)
def shift_left(builder: Any, a: Any, count: Any) -> Any:
    """Every lane."""
    return builder.shl(a, _splat(builder, builder.trunc(count, _i32)))


def _half_bits(builder: Any, value: Any) -> Any:
    """float16 bits in 32-bit lanes: nearest even, overflow to infinity. No NaN comes here."""
    bits = builder.bitcast(value, _VN)
    sign = builder.and_(builder.lshr(bits, _const(16)), _const(0x8000))
    magnitude = builder.and_(bits, _const(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _const(13)), _const(1))
    normal = builder.lshr(builder.add(builder.sub(magnitude, _const(0x38000000 - 0xFFF)), odd), _const(13))
    # Below 2^-14 the sum with 0.5 has the half's subnormal as its low mantissa bits.
    tiny = builder.bitcast(builder.fadd(builder.bitcast(magnitude, _VV), _fconst(0.5)), _VN)
    tiny = builder.sub(tiny, _const(0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", magnitude, _const(0x38800000)), tiny, normal)
    half = builder.select(builder.icmp_unsigned(">=", magnitude, _const(0x477FF000)), _const(0x7C00), half)
    return builder.or_(half, sign)


def _half_value(builder: Any, words: Any) -> Any:
    """The float32 of float16 bits; an exponent of all ones gives infinity or NaN."""
    shifted = builder.shl(builder.and_(words, _const(0x7FFF)), _const(13))
    finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, _VV), _fconst(2.0**112)), _VN)
    special = builder.icmp_unsigned(">=", builder.and_(words, _const(0x7FFF)), _const(0x7C00))
    bits = builder.select(special, builder.or_(finite, _const(0x7F800000)), finite)
    sign = builder.shl(builder.and_(words, _const(0x8000)), _const(16))
    return builder.bitcast(builder.or_(bits, sign), _VV)


@operation(V, V)
def as_half(builder: Any, a: Any) -> Any:
    """Rounded to float16."""
    return _half_value(builder, _half_bits(builder, a))


@operation(V, V, types.int64)
def next_half(builder: Any, a: Any, steps: Any) -> Any:
    """A float16 value, `steps` float16 values further from zero (at zero, up), or closer to it for negative steps."""
    bits = _half_bits(builder, a)
    magnitude = builder.and_(bits, _const(0x7FFF))
    moved = builder.add(magnitude, _splat(builder, builder.trunc(steps, _i32)))
    moved = builder.select(builder.icmp_signed("<", moved, _const(0)), _const(0), moved)
    moved = builder.select(builder.icmp_signed(">", moved, _const(0x7BFF)), magnitude, moved)
    return _half_value(builder, builder.or_(moved, builder.and_(bits, _const(0x8000))))


@operation(V, _WORD)
def load_halves(builder: Any, address: Any) -> Any:
    """16 float16 from `address`."""
    words = ir_load(builder, address, ir.VectorType(_i16, LANES))
    return _half_value(builder, builder.zext(words, _VN))


@operation(V, _WORD)
def load_bfloats(builder: Any, address: Any) -> Any:
    """16 bfloat16 from `address`."""
    words = ir_load(builder, address, ir.VectorType(_i16, LANES))
    return builder.bitcast(builder.shl(builder.zext(words, _VN), _const(16)), _VV)


# ---- across lanes ------------------------------------------------------------------------------------------------


def _exchange(distance: int) -> Any:
    def emit(builder: Any, a: Any) -> Any:
        pattern = ir.Constant(_VN, [lane ^ distance for lane in range(LANES)])
        return builder.shuffle_vector(a, a, pattern)

    emit.__name__ = f"exchange_{distance}"
    emit.__doc__ = f"Lane l gets lane l ^ {distance}."
    return operation(V, V)(emit)


_exchange_1, _exchange_2, _exchange_4, _exchange_8 = (_exchange(d) for d in (1, 2, 4, 8))


def make_group_sum(group: int) -> Any:
    """A function: in every lane the sum over its group of 8 or 16 neighbours."""

    @inlined
    def eight(a: Any) -> Any:
        a = a + _exchange_1(a)
        a = a + _exchange_2(a)
        return a + _exchange_4(a)

    @inlined
    def sixteen(a: Any) -> Any:
        b = eight(a)
        return b + _exchange_8(b)

    return eight if group == 8 else sixteen


def make_group_larger(group: int) -> Any:
    """A function: in every lane the largest of its group of 8 or 16 neighbours."""

    @inlined
    def eight(a: Any) -> Any:
        a = larger(a, _exchange_1(a))
        a = larger(a, _exchange_2(a))
        return larger(a, _exchange_4(a))

    @inlined
    def sixteen(a: Any) -> Any:
        b = eight(a)
        return larger(b, _exchange_8(b))

    return eight if group == 8 else sixteen
