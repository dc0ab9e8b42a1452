"""The SIMD vocabulary: two vector types and the operations the kernels are written in.

Knows no format and no shape. `F` is a vector of `LANES` float32, `I` of `LANES` 32-bit integers; an `I` also serves as
4 x LANES bytes, byte 4l+i being bits 8i..8i+7 of lane l. Addresses are plain integers (intp); loads and stores need
no alignment. An intrinsic here is one operation in straight-line LLVM IR, never a loop. What differs between
instruction sets is inside `dot4`, `dot4_wide`, `fma` and the half-precision conversions, and nowhere else.

Operators: F + - * F, I + - * & | ^ I, and I << I >> int, >> being the logical shift.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    lower_builtin,
    models,
    register_model,
    type_callable,
)

from edge_gemma.kernels.isa import current
from edge_gemma.kernels.jit import intrinsic, intrinsic_of_constants

ISA = current()
LANES = ISA.lanes

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32 = ir.FloatType()


class VectorType(types.Type):
    """`LANES` values of one 32-bit element type in a register."""

    def __init__(self, name: str, element: ir.Type, scalar: types.Type) -> None:
        super().__init__(name=f"{name}x{LANES}")
        self.llvm = ir.VectorType(element, LANES)
        self.scalar = scalar


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


F = VectorType("F", _f32, types.float32)
I = VectorType("I", _i32, types.int32)  # noqa: E741

_VF, _VI = F.llvm, I.llvm
_BYTES = ir.VectorType(_i8, 4 * LANES)

Emit = Callable[..., Any]


def _op(result: types.Type, *parameters: types.Type) -> Callable[[Emit], Any]:
    """Declare an intrinsic: `emit(builder, *values)` returns the LLVM value of type `result`."""

    def declare(emit: Emit) -> Any:
        signature = result(*parameters)

        def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            out = emit(builder, *values)
            return _context.get_dummy_value() if result is types.void else out

        def stub(_typing_context: Any, *_arguments: Any) -> Any:
            return signature, codegen

        stub.__name__ = stub.__qualname__ = emit.__name__
        stub.__doc__ = emit.__doc__
        names = ["typing_context", *(f"a{i}" for i in range(len(parameters)))]
        stub.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # Numba asks for the arity
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        return intrinsic(stub)

    return declare


def _const(value: int, count: int = LANES) -> ir.Constant:
    return ir.Constant(ir.VectorType(_i32, count), [value] * count)


def _fconst(value: float) -> ir.Constant:
    return ir.Constant(_VF, [ir.Constant(_f32, value)] * LANES)


def _pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _load(builder: Any, address: Any, pointee: ir.Type, align: int = 1) -> Any:
    return builder.load(_pointer(builder, address, pointee), align=align)


def _store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    function_type = ir.FunctionType(result, [v.type for v in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), values)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _const(0))


def _shuffle(builder: Any, a: Any, b: Any, indices: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_i32, len(indices)), indices))


def _concat(builder: Any, parts: list[Any]) -> Any:
    """Join equal vectors, a power of two of them, pairwise."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        parts = [_shuffle(builder, a, b, list(range(n))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


# ---- constants, loads, stores ------------------------------------------------------------------------------------


@_op(F, types.float32)
def splat(builder: Any, x: Any) -> Any:
    """Every lane x."""
    return _splat(builder, x)


@_op(I, types.int32)
def splat_int(builder: Any, x: Any) -> Any:
    """Every lane x."""
    return _splat(builder, x)


@_op(F, types.intp)
def load(builder: Any, address: Any) -> Any:
    """LANES float32."""
    return _load(builder, address, _VF)


@_op(I, types.intp)
def load_int(builder: Any, address: Any) -> Any:
    """LANES int32, or 4 x LANES bytes."""
    return _load(builder, address, _VI)


@_op(F, types.intp)
def broadcast(builder: Any, address: Any) -> Any:
    """One float32, in every lane."""
    return _splat(builder, _load(builder, address, _f32))


@_op(I, types.intp)
def broadcast_int(builder: Any, address: Any) -> Any:
    """One int32 (or 4 bytes), in every lane."""
    return _splat(builder, _load(builder, address, _i32))


@_op(types.void, types.intp, F)
def store(builder: Any, address: Any, value: Any) -> None:
    """LANES float32."""
    _store(builder, address, value)


@_op(types.void, types.intp, I)
def store_int(builder: Any, address: Any, value: Any) -> None:
    """LANES int32, or 4 x LANES bytes."""
    _store(builder, address, value)


@_op(types.float32, types.intp)
def load_scalar(builder: Any, address: Any) -> Any:
    """One float32."""
    return _load(builder, address, _f32)


@_op(types.void, types.intp, types.float32)
def store_scalar(builder: Any, address: Any, value: Any) -> None:
    """One float32."""
    _store(builder, address, value)


@_op(types.int32, types.intp)
def load_scalar_int(builder: Any, address: Any) -> Any:
    """One int32."""
    return _load(builder, address, _i32)


@_op(types.void, types.intp, types.int32)
def store_scalar_int(builder: Any, address: Any, value: Any) -> None:
    """One int32."""
    _store(builder, address, value)


_PREFETCH = {
    "x86": ("prefetcht0 ($0)", "prefetcht1 ($0)"),
    "arm": ("prfm pldl1keep, [$0]", "prfm pldl2keep, [$0]"),
}


def _ask(builder: Any, address: Any, level: int) -> None:
    """As assembly, because LLVM's own operation counts as a write, so that loads before and after it are not shared,
    and because it gathers them: more at a time than the core has line buffers, and everything waits.
    """
    if ISA.machine in _PREFETCH:
        function_type = ir.FunctionType(ir.VoidType(), [_i64])
        instruction = ir.InlineAsm(function_type, _PREFETCH[ISA.machine][level], "r", side_effect=True)
        builder.call(instruction, [address], attrs=("readonly", "nounwind"))


@_op(types.void, types.intp)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at `address`, for reading, into the first-level cache. Never faults."""
    _ask(builder, address, 0)


@_op(types.void, types.intp)
def prefetch_far(builder: Any, address: Any) -> None:
    """Ask for the cache line at `address`, for reading, into the second-level cache. Never faults."""
    _ask(builder, address, 1)


# ---- one row of a matrix per lane --------------------------------------------------------------------------------


def _row(builder: Any, address: Any, stride: Any, row: int) -> Any:
    return builder.add(address, builder.mul(stride, ir.Constant(_i64, row)))


def _rows_scalar(builder: Any, address: Any, stride: Any, element: ir.Type) -> Any:
    """Lane r: the element at address + r * stride, zero-extended to 32 bits."""
    vector = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
    for r in range(LANES):
        value = _load(builder, _row(builder, address, stride, r), element)
        vector = builder.insert_element(vector, value, ir.Constant(_i32, r))
    return vector if element is _i32 else builder.zext(vector, _VI)


@_op(I, types.intp, types.intp)
def rows_byte(builder: Any, address: Any, stride: Any) -> Any:
    """Lane r: the byte at address + r * stride, zero-extended."""
    return _rows_scalar(builder, address, stride, _i8)


@_op(I, types.intp, types.intp)
def rows_short(builder: Any, address: Any, stride: Any) -> Any:
    """Lane r: the 16 bits at address + r * stride, zero-extended."""
    return _rows_scalar(builder, address, stride, _i16)


@_op(I, types.intp, types.intp)
def rows_word(builder: Any, address: Any, stride: Any) -> Any:
    """Lane r: the 4 bytes at address + r * stride."""
    return _rows_scalar(builder, address, stride, _i32)


@_op(types.UniTuple(I, 4), types.intp, types.intp)
def rows_16_bytes(builder: Any, address: Any, stride: Any) -> Any:
    """The 16 bytes at address + r * stride of each row r, as 4 vectors: lane r of vector k has bytes 4k..4k+3 of row r.

    A 4 x 4 transposition of 32-bit words inside each 128-bit part: part p of the loaded vector j is row 4p + j.
    """
    word4 = ir.VectorType(_i32, 4)
    loaded = []
    for j in range(4):
        parts = [_load(builder, _row(builder, address, stride, 4 * p + j), word4) for p in range(LANES // 4)]
        loaded.append(_concat(builder, parts))
    low, high = [], []  # words 0 1 and words 2 3 of two rows, interleaved
    for a, b in ((loaded[0], loaded[1]), (loaded[2], loaded[3])):
        low.append(_shuffle(builder, a, b, _in_parts([0, LANES, 1, LANES + 1])))
        high.append(_shuffle(builder, a, b, _in_parts([2, LANES + 2, 3, LANES + 3])))
    columns = []
    for a, b in (low, high):
        columns.append(_shuffle(builder, a, b, _in_parts([0, 1, LANES, LANES + 1])))
        columns.append(_shuffle(builder, a, b, _in_parts([2, 3, LANES + 2, LANES + 3])))
    return cgutils.pack_array(builder, columns)


def _in_parts(pattern: list[int]) -> list[int]:
    """The same shuffle in each 128-bit part."""
    return [4 * p + i for p in range(LANES // 4) for i in pattern]


# ---- arithmetic --------------------------------------------------------------------------------------------------


def _declare_operator(function: Any, vector: VectorType, method: str) -> None:
    @type_callable(function)
    def _typer(_context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return vector if a is vector and b is vector else None

        return typer

    @lower_builtin(function, vector, vector)
    def _lower(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return getattr(builder, method)(*values)


def _declare_shift(function: Any, method: str) -> None:
    @type_callable(function)
    def _typer(_context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return I if a is I and isinstance(b, types.Integer) else None

        return typer

    @lower_builtin(function, I, types.Integer)
    def _lower(_context: Any, builder: Any, signature: Any, values: Any) -> Any:
        amount = values[1]
        if amount.type.width > 32:
            amount = builder.trunc(amount, _i32)
        return getattr(builder, method)(values[0], _splat(builder, amount))


for _vector, _table in (
    (F, {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}),
    (I, {"add": "add", "sub": "sub", "mul": "mul", "and_": "and_", "or_": "or_", "xor": "xor"}),
):
    for _name, _method in _table.items():
        _declare_operator(getattr(operator, _name), _vector, _method)
_declare_shift(operator.lshift, "shl")
_declare_shift(operator.rshift, "lshr")


@_op(I, I, types.int32)
def shift_right_signed(builder: Any, a: Any, count: Any) -> Any:
    """Arithmetic shift of every lane."""
    return builder.ashr(a, _splat(builder, count))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    if not ISA.fma:
        return builder.fadd(builder.fmul(a, b), c)
    return _call(builder, f"llvm.fma.v{LANES}f32", _VF, a, b, c)


@_op(F, F, F, F)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU can (every row of the ladder but `generic`)."""
    return _fma(builder, a, b, c)


@_op(F, F, F)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger; the second operand where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_op(F, F, F)
def minimum(builder: Any, a: Any, b: Any) -> Any:
    """The smaller; the second operand where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@_op(I, I, I)
def maximum_int(builder: Any, a: Any, b: Any) -> Any:
    """The larger (signed)."""
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@_op(F, F)
def absolute(builder: Any, a: Any) -> Any:
    """|a|."""
    return _call(builder, f"llvm.fabs.v{LANES}f32", _VF, a)


@_op(F, F, F, F, F)
def select_less(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x where a < b, else y, also where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), x, y)


@_op(F, I, I, F, F)
def where_less(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x where a < b (signed), else y."""
    return builder.select(builder.icmp_signed("<", a, b), x, y)


@_op(F, F)
def square_root(builder: Any, a: Any) -> Any:
    """Correctly rounded."""
    return _call(builder, f"llvm.sqrt.v{LANES}f32", _VF, a)


# ---- conversions -------------------------------------------------------------------------------------------------


@_op(F, I)
def to_float(builder: Any, a: Any) -> Any:
    """Signed integers to float32, rounded to nearest even above 2^24."""
    return builder.sitofp(a, _VF)


_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest-even integer in the low bits of the mantissa


@_op(I, F)
def to_int(builder: Any, a: Any) -> Any:
    """Nearest integer, halves to even. |a| must be below 2^22."""
    biased = builder.bitcast(builder.fadd(a, _fconst(_ROUND)), _VI)
    return builder.sub(biased, ir.Constant(_VI, [0x4B400000] * LANES))


@_op(F, I)
def bits_as_float(builder: Any, a: Any) -> Any:
    """The same bits, read as float32."""
    return builder.bitcast(a, _VF)


@_op(I, F)
def bits_as_int(builder: Any, a: Any) -> Any:
    """The same bits, read as int32."""
    return builder.bitcast(a, _VI)


def _half_to_float(builder: Any, words: Any) -> Any:
    """float16 bits in the low half of 32-bit lanes. Without F16C: move the exponent by a multiplication with 2^112."""
    if ISA.half:
        return builder.fpext(builder.bitcast(builder.trunc(words, _short_vector()), _half_vector()), _VF)
    magnitude = builder.bitcast(builder.shl(builder.and_(words, _const(0x7FFF)), _const(13)), _VF)
    finite = builder.bitcast(builder.fmul(magnitude, _fconst(2.0**112)), _VI)
    special = builder.icmp_unsigned(">=", builder.and_(words, _const(0x7FFF)), _const(0x7C00))
    bits = builder.select(special, builder.or_(finite, _const(0x7F800000)), finite)
    return builder.bitcast(builder.or_(bits, builder.shl(builder.and_(words, _const(0x8000)), _const(16))), _VF)


def _float_to_half(builder: Any, value: Any) -> Any:
    """Vector of LANES 16-bit integers: float16 bits, nearest even, overflow to infinity."""
    if ISA.half:
        return builder.bitcast(builder.fptrunc(value, _half_vector()), _short_vector())
    bits = builder.bitcast(value, _VI)
    sign = builder.and_(builder.lshr(bits, _const(16)), _const(0x8000))
    magnitude = builder.and_(bits, _const(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _const(13)), _const(1))
    normal = builder.add(builder.sub(magnitude, _const(0x38000000 - 0xFFF)), odd)
    normal = builder.lshr(normal, _const(13))
    # Below 2^-14 the sum with 0.5 has the half's subnormal as its low mantissa bits.
    tiny = builder.bitcast(builder.fadd(builder.bitcast(magnitude, _VF), _fconst(0.5)), _VI)
    tiny = builder.sub(tiny, _const(0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", magnitude, _const(0x38800000)), tiny, normal)
    half = builder.select(builder.icmp_unsigned(">=", magnitude, _const(0x477FF000)), _const(0x7C00), half)
    nan = builder.icmp_unsigned(">", magnitude, _const(0x7F800000))
    half = builder.select(nan, _const(0x7E00), half)
    return builder.trunc(builder.or_(half, sign), _short_vector())


def _short_vector() -> ir.VectorType:
    return ir.VectorType(_i16, LANES)


def _half_vector() -> ir.VectorType:
    return ir.VectorType(ir.HalfType(), LANES)


@_op(F, I)
def half_to_float(builder: Any, words: Any) -> Any:
    """float16 bits in the low half of each lane, to float32. Exact."""
    return _half_to_float(builder, words)


@_op(F, types.intp)
def load_half(builder: Any, address: Any) -> Any:
    """LANES float16, as float32."""
    if ISA.half:
        return builder.fpext(_load(builder, address, _half_vector()), _VF)
    return _half_to_float(builder, builder.zext(_load(builder, address, _short_vector()), _VI))


@_op(types.void, types.intp, F)
def store_half(builder: Any, address: Any, value: Any) -> None:
    """LANES float16, rounded to nearest even."""
    _store(builder, address, _float_to_half(builder, value))


@_op(F, types.intp)
def load_bfloat(builder: Any, address: Any) -> Any:
    """LANES bfloat16, as float32."""
    words = builder.zext(_load(builder, address, _short_vector()), _VI)
    return builder.bitcast(builder.shl(words, _const(16)), _VF)


FLOAT_LOADS = {"F32": (load, 4), "F16": (load_half, 2), "BF16": (load_bfloat, 2)}
"""How LANES elements of a float format are loaded, and an element's bytes."""


@_op(types.void, types.intp, I)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """The low byte of each lane: LANES bytes."""
    _store(builder, address, builder.trunc(value, ir.VectorType(_i8, LANES)))


@_op(types.void, types.intp, types.intp, F)
def scatter_half(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Lane l as float16 to address + l * stride."""
    halves = _float_to_half(builder, value)
    for lane in range(LANES):
        _store(builder, _row(builder, address, stride, lane), builder.extract_element(halves, ir.Constant(_i32, lane)))


@_op(types.void, types.intp, types.intp, F)
def scatter(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Lane l as float32 to address + l * stride."""
    for lane in range(LANES):
        _store(builder, _row(builder, address, stride, lane), builder.extract_element(value, ir.Constant(_i32, lane)))


# ---- dot products ------------------------------------------------------------------------------------------------


def _bytes(builder: Any, a: Any) -> Any:
    return builder.bitcast(a, _BYTES)


def _dot4_plain(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    for byte in range(4):
        unsigned = builder.and_(builder.lshr(u, _const(8 * byte)), _const(0xFF))
        signed = builder.ashr(builder.shl(s, _const(24 - 8 * byte)), _const(24))
        acc = builder.add(acc, builder.mul(unsigned, signed))
    return acc


def _dot4_partial_reduce(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """LLVM turns this into `usdot`, or `sdot` and a correction, on AArch64."""
    wide = ir.VectorType(_i32, 4 * LANES)
    product = builder.mul(builder.zext(_bytes(builder, u), wide), builder.sext(_bytes(builder, s), wide))
    return _call(builder, f"llvm.vector.partial.reduce.add.v{LANES}i32.v{4 * LANES}i32", _VI, acc, product)


def _vpdpbusd(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
    return _call(builder, name, _VI, acc, _bytes(builder, u), _bytes(builder, s))


def _vpmaddubsw(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    shorts = ir.VectorType(_i16, 2 * LANES)
    pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, _bytes(builder, u), _bytes(builder, s))
    ones = ir.Constant(shorts, [1] * (2 * LANES))
    return builder.add(acc, _call(builder, "llvm.x86.avx2.pmadd.wd", _VI, pairs, ones))


def _vpmaddwd(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """Even and odd bytes as 16-bit numbers: exact over the whole range of u, at three times the cost."""
    shorts = ir.VectorType(_i16, 2 * LANES)
    eight = ir.Constant(shorts, [8] * (2 * LANES))
    u16, s16 = builder.bitcast(u, shorts), builder.bitcast(s, shorts)
    even = builder.and_(u16, ir.Constant(shorts, [0xFF] * (2 * LANES))), builder.ashr(builder.shl(s16, eight), eight)
    odd = builder.lshr(u16, eight), builder.ashr(s16, eight)
    for pair in (even, odd):
        acc = builder.add(acc, _call(builder, "llvm.x86.avx2.pmadd.wd", _VI, *pair))
    return acc


_DOT4 = {
    "vpdpbusd.512": (_vpdpbusd, _vpdpbusd),
    "vpdpbusd.256": (_vpdpbusd, _vpdpbusd),
    "vpmaddubsw": (_vpmaddubsw, _vpmaddwd),
    "partial.reduce": (_dot4_partial_reduce, _dot4_partial_reduce),
    "plain": (_dot4_plain, _dot4_plain),
}[ISA.dot]


@_op(I, I, I, I)
def dot4(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + the four products of unsigned bytes of u, at most 127, with signed bytes of s, per lane. Exact.

    The bound is AVX2's: `vpmaddubsw` saturates a sum of two products at 2^15 - 1.
    """
    return _DOT4[0](builder, acc, u, s)


@_op(I, I, I, I)
def dot4_wide(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """As `dot4`, with u up to 255."""
    return _DOT4[1](builder, acc, u, s)


# ---- table lookup ------------------------------------------------------------------------------------------------


def _lookup_plain(builder: Any, table: list[int], indices: Any) -> Any:
    result = ir.Constant(_BYTES, [table[0]] * (4 * LANES))
    for index, value in enumerate(table[1:], start=1):
        hit = builder.icmp_unsigned("==", indices, ir.Constant(_BYTES, [index] * (4 * LANES)))
        result = builder.select(hit, ir.Constant(_BYTES, [value] * (4 * LANES)), result)
    return result


def _lookup_shuffle(name: str) -> Emit:
    def emit(builder: Any, table: list[int], indices: Any) -> Any:
        return _call(builder, name, _BYTES, ir.Constant(_BYTES, table * (LANES // 4)), indices)

    return emit


_LOOKUP: Emit = {
    "vpdpbusd.512": _lookup_shuffle("llvm.x86.avx512.pshuf.b.512"),
    "vpdpbusd.256": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "vpmaddubsw": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
}.get(ISA.dot, _lookup_plain)


def byte_table(name: str, table: list[int]) -> Any:
    """Declare an operation I -> I that replaces each byte, which must be 0..15, by its entry of `table` (0..255)."""

    def emit(builder: Any, indices: Any) -> Any:
        return builder.bitcast(_LOOKUP(builder, table, _bytes(builder, indices)), _VI)

    emit.__name__ = name
    return _op(I, I)(emit)


# ---- across lanes ------------------------------------------------------------------------------------------------


def _fold(builder: Any, a: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Halves onto each other until one lane is left: a fixed tree."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (_shuffle(builder, a, a, list(range(s, s + width))) for s in (0, width))
        a = combine(low, high)
    return builder.extract_element(a, ir.Constant(_i32, 0))


@_op(types.float32, F)
def sum_lanes(builder: Any, a: Any) -> Any:
    """Sum of the lanes, halves first: ((0+8)+(4+12))+..."""
    return _fold(builder, a, builder.fadd)


@_op(types.float32, F)
def max_lanes(builder: Any, a: Any) -> Any:
    """Largest lane."""
    return _fold(builder, a, lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


@_op(types.int32, I)
def max_lanes_int(builder: Any, a: Any) -> Any:
    """Largest lane (signed)."""
    return _fold(builder, a, lambda x, y: builder.select(builder.icmp_signed(">", x, y), x, y))


@_op(types.int32, I)
def sum_lanes_int(builder: Any, a: Any) -> Any:
    """Sum of the lanes."""
    return _fold(builder, a, builder.add)


@_op(types.int32, I)
def first_lane_int(builder: Any, a: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(a, ir.Constant(_i32, 0))


@_op(types.float32, F)
def first_lane(builder: Any, a: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(a, ir.Constant(_i32, 0))


@_op(I)
def lane_numbers(builder: Any) -> Any:
    """0, 1, 2, ..."""
    return ir.Constant(_VI, list(range(LANES)))


# ---- register tiles ----------------------------------------------------------------------------------------------
# A tile is a tuple of m x n vectors, n neighbours of one row after another; m and n follow from the tuples' lengths.


def _elements(builder: Any, value: Any, count: int) -> list[Any]:
    return [builder.extract_value(value, i) for i in range(count)]


def _outer(builder: Any, tile: Any, b: Any, sizes: tuple[int, int], each: Callable[[int, Any, Any], Any]) -> Any:
    m, n = sizes
    acc, vectors = _elements(builder, tile, m * n), _elements(builder, b, n)
    return cgutils.pack_array(builder, [each(i, acc[i * n + j], vectors[j]) for i in range(m) for j in range(n)])


def _sizes(tile: Any, b: Any) -> tuple[int, int]:
    return tile.count // b.count, b.count


@intrinsic
def outer_dot4(_typing: Any, tile: Any, address: Any, stride: Any, u: Any) -> Any:
    """tile[i][j] + dot4(u[j], the 4 bytes at address + i * stride in every lane). u at most 127."""
    return _outer_dot(tile, address, stride, u, wide=False)


@intrinsic
def outer_dot4_wide(_typing: Any, tile: Any, address: Any, stride: Any, u: Any) -> Any:
    """As `outer_dot4`, with u up to 255."""
    return _outer_dot(tile, address, stride, u, wide=True)


def _outer_dot(tile: Any, address: Any, stride: Any, u: Any, *, wide: bool) -> Any:
    sizes = _sizes(tile, u)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, vectors = arguments
        inputs = [_splat(builder, _load(builder, _row(builder, base, step, i), _i32)) for i in range(sizes[0])]
        return _outer(builder, acc, vectors, sizes, lambda i, c, w: _DOT4[wide](builder, c, w, inputs[i]))

    return tile(tile, types.intp, types.intp, u), codegen


@intrinsic
def outer_fma(_typing: Any, tile: Any, address: Any, stride: Any, b: Any) -> Any:
    """fma(the float32 at address + i * stride, b[j], tile[i][j])."""
    sizes = _sizes(tile, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, vectors = arguments
        inputs = [_splat(builder, _load(builder, _row(builder, base, step, i), _f32)) for i in range(sizes[0])]
        return _outer(builder, acc, vectors, sizes, lambda i, c, w: _fma(builder, inputs[i], w, c))

    return tile(tile, types.intp, types.intp, b), codegen


@intrinsic
def broadcast_rows(_typing: Any, address: Any, stride: Any, like: Any, b: Any) -> Any:
    """A tile of int32 shaped as `like`: tile[i][j] is the int32 at address + i * stride in every lane."""
    m, n = _sizes(like, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        base, step, _, _ = arguments
        inputs = [_splat(builder, _load(builder, _row(builder, base, step, i), _i32)) for i in range(m)]
        return cgutils.pack_array(builder, [inputs[i] for i in range(m) for _ in range(n)])

    return types.UniTuple(I, m * n)(types.intp, types.intp, like, b), codegen


@intrinsic
def outer_scale(_typing: Any, tile: Any, total: Any, address: Any, stride: Any, scale: Any) -> Any:
    """fma(float(total[i][j]), scale[j] * the float32 at address + i * stride, tile[i][j])."""
    sizes = _sizes(tile, scale)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, totals, base, step, vectors = arguments
        inputs = [_splat(builder, _load(builder, _row(builder, base, step, i), _f32)) for i in range(sizes[0])]
        floats = [builder.sitofp(v, _VF) for v in _elements(builder, totals, tile.count)]

        def each(i: int, c: Any, w: Any) -> Any:
            return _fma(builder, floats.pop(0), builder.fmul(w, inputs[i]), c)

        return _outer(builder, acc, vectors, sizes, each)

    return tile(tile, total, types.intp, types.intp, scale), codegen


@intrinsic
def tile_mul_add(_typing: Any, tile: Any, total: Any, factor: Any) -> Any:
    """tile[i][j] + total[i][j] * factor[j], in int32."""
    sizes = _sizes(tile, factor)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, totals, vectors = arguments
        values = _elements(builder, totals, tile.count)
        each = lambda _i, c, w: builder.add(c, builder.mul(values.pop(0), w))  # noqa: E731
        return _outer(builder, acc, vectors, sizes, each)

    return tile(tile, total, factor), codegen


@intrinsic
def tile_fma(_typing: Any, tile: Any, a: Any, b: Any) -> Any:
    """fma(a[i], b[j], tile[i][j])."""
    sizes = _sizes(tile, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, left, right = arguments
        rows = _elements(builder, left, sizes[0])
        return _outer(builder, acc, right, sizes, lambda i, c, w: _fma(builder, rows[i], w, c))

    return tile(tile, a, b), codegen


@intrinsic_of_constants
def store_sums(_typing: Any, tile: Any, address: Any, stride: Any, n: Any) -> Any:
    """The sum of lanes of tile[i][j], rows of n, as float32 to address + i * stride + 4 * j."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    columns = n.literal_value

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, _ = arguments
        for k in range(tile.count):
            i, j = divmod(k, columns)
            at = builder.add(_row(builder, base, step, i), ir.Constant(_i64, 4 * j))
            _store(builder, at, _fold(builder, builder.extract_value(acc, k), builder.fadd))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, n), codegen


def _tile_of(count: Any, vector: VectorType, zero: ir.Constant) -> Any:
    size = count.literal_value

    def codegen(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        return cgutils.pack_array(builder, [zero] * size)

    return types.UniTuple(vector, size)(count), codegen


@intrinsic_of_constants
def zeros(_typing: Any, count: Any) -> Any:
    """A tuple of `count` zero F vectors; count is a constant."""
    return _tile_of(count, F, ir.Constant(_VF, None)) if isinstance(count, types.IntegerLiteral) else None


@intrinsic_of_constants
def zeros_int(_typing: Any, count: Any) -> Any:
    """A tuple of `count` zero I vectors; count is a constant."""
    return _tile_of(count, I, ir.Constant(_VI, None)) if isinstance(count, types.IntegerLiteral) else None


def _tile_memory(tile: Any, address: Any, stride: Any, n: Any, *, write: bool) -> Any:
    columns = n.literal_value

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, _ = arguments
        loaded = []
        for k in range(tile.count):
            i, j = divmod(k, columns)
            at = builder.add(_row(builder, base, step, i), ir.Constant(_i64, 4 * LANES * j))
            if write:
                _store(builder, at, builder.extract_value(acc, k))
            else:
                loaded.append(_load(builder, at, _VF))
        return context.get_dummy_value() if write else cgutils.pack_array(builder, loaded)

    return (types.void if write else tile)(tile, types.intp, types.intp, n), codegen


@intrinsic_of_constants
def store_tile(_typing: Any, tile: Any, address: Any, stride: Any, n: Any) -> Any:
    """Row i of the tile, n vectors, to address + i * stride."""
    return _tile_memory(tile, address, stride, n, write=True) if isinstance(n, types.IntegerLiteral) else None


@intrinsic_of_constants
def load_tile(_typing: Any, like: Any, address: Any, stride: Any, n: Any) -> Any:
    """A tile shaped as `like` whose row i, n vectors, is read from address + i * stride."""
    return _tile_memory(like, address, stride, n, write=False) if isinstance(n, types.IntegerLiteral) else None
