"""Operators, comparisons, and sums and maxima across lanes. Knows no format."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from ..layout import SUMS
from .types import FLOATS, I32, ISA, LANES, WORDS, F, I, VectorType, ir_call, ir_shuffle, ir_splat, operation


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
            amount = builder.trunc(amount, I32)
        return getattr(builder, method)(values[0], ir_splat(builder, amount))


for _vector, _table in (
    (F, {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}),
    (I, {"add": "add", "sub": "sub", "mul": "mul", "and_": "and_", "or_": "or_", "xor": "xor"}),
):
    for _name, _method in _table.items():
        _declare_operator(getattr(operator, _name), _vector, _method)
_declare_shift(operator.lshift, "shl")
_declare_shift(operator.rshift, "lshr")


@operation(F, F)
def swap_pairs(builder: Any, a: Any) -> Any:
    """Lanes 2i and 2i + 1 in each other's place."""
    return ir_shuffle(builder, a, a, [lane ^ 1 for lane in range(LANES)])


@operation(I, I, types.int32)
def shift_right_signed(builder: Any, a: Any, count: Any) -> Any:
    """Arithmetic shift of every lane."""
    return builder.ashr(a, ir_splat(builder, count))


def ir_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """See `fma`."""
    if not ISA.fma:
        return builder.fadd(builder.fmul(a, b), c)
    return ir_call(builder, f"llvm.fma.v{LANES}f32", FLOATS, a, b, c)


@operation(F, F, F, F)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU can (every row of the ladder but `generic`)."""
    return ir_fma(builder, a, b, c)


@operation(F, F, F)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger; the second operand where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@operation(F, F, F)
def minimum(builder: Any, a: Any, b: Any) -> Any:
    """The smaller; the second operand where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@operation(I, I, I)
def maximum_int(builder: Any, a: Any, b: Any) -> Any:
    """The larger (signed)."""
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@operation(F, F)
def absolute(builder: Any, a: Any) -> Any:
    """|a|."""
    return ir_call(builder, f"llvm.fabs.v{LANES}f32", FLOATS, a)


@operation(F, F, F, F, F)
def select_less(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x where a < b, else y, also where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), x, y)


@operation(F, I, I, F, F)
def where_less(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x where a < b (signed), else y."""
    return builder.select(builder.icmp_signed("<", a, b), x, y)


@operation(F, F)
def square_root(builder: Any, a: Any) -> Any:
    """Correctly rounded."""
    return ir_call(builder, f"llvm.sqrt.v{LANES}f32", FLOATS, a)


# ---- across lanes --------------------------------------------------------------------------------------------------


def ir_fold(builder: Any, a: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Halves onto each other until one lane is left: a fixed tree."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (ir_shuffle(builder, a, a, list(range(s, s + width))) for s in (0, width))
        a = combine(low, high)
    return builder.extract_element(a, ir.Constant(I32, 0))


_Sums = types.UniTuple(F, SUMS)


@operation(_Sums, _Sums, F)
def replace_first(builder: Any, sums: Any, a: Any) -> Any:
    """The others, then `a`: what replaces the first. After SUMS times each is in its place again."""
    return cgutils.pack_array(builder, [*(builder.extract_value(sums, i) for i in range(1, SUMS)), a])


@operation(types.float32, _Sums)
def sum_of_16(builder: Any, sums: Any) -> Any:
    """Sum of the lanes of SUMS vectors, halves first: ((0+8)+(4+12))+..."""
    vectors = [builder.extract_value(sums, i) for i in range(SUMS)]
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [builder.fadd(a, b) for a, b in zip(vectors[:half], vectors[half:], strict=True)]
    return ir_fold(builder, vectors[0], builder.fadd)


@operation(types.float32, F)
def max_lanes(builder: Any, a: Any) -> Any:
    """Largest lane."""
    return ir_fold(builder, a, lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


@operation(types.int32, I)
def max_lanes_int(builder: Any, a: Any) -> Any:
    """Largest lane (signed)."""
    return ir_fold(builder, a, lambda x, y: builder.select(builder.icmp_signed(">", x, y), x, y))


@operation(types.int32, I)
def sum_lanes_int(builder: Any, a: Any) -> Any:
    """Sum of the lanes."""
    return ir_fold(builder, a, builder.add)


@operation(types.int32, I)
def first_lane_int(builder: Any, a: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(a, ir.Constant(I32, 0))


@operation(types.float32, F)
def first_lane(builder: Any, a: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(a, ir.Constant(I32, 0))


@operation(I)
def lane_numbers(builder: Any) -> Any:
    """0, 1, 2, ..."""
    return ir.Constant(WORDS, list(range(LANES)))
