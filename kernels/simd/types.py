"""The two vector types, and what an operation on them is made of: LLVM IR by the line. Knows no operation.

The functions `ir_*` are for emitters alone: they take a builder and LLVM values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from ..isa import current
from .decorators import intrinsic

ISA = current()
LANES = ISA.lanes

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()


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


F = VectorType("F", F32, types.float32)
I = VectorType("I", I32, types.int32)  # noqa: E741

FLOATS, WORDS = F.llvm, I.llvm
BYTES = ir.VectorType(I8, 4 * LANES)

Emit = Callable[..., Any]


def operation(result: types.Type, *parameters: types.Type) -> Callable[[Emit], Any]:
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


def ir_const(value: int, count: int = LANES) -> ir.Constant:
    """The integer in each of `count` 32-bit lanes."""
    return ir.Constant(ir.VectorType(I32, count), [value] * count)


def ir_fconst(value: float) -> ir.Constant:
    """The float32 in each lane."""
    return ir.Constant(FLOATS, [ir.Constant(F32, value)] * LANES)


def ir_pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    """An address as a pointer."""
    return builder.inttoptr(address, pointee.as_pointer())


def ir_load(builder: Any, address: Any, pointee: ir.Type, align: int = 1) -> Any:
    """What lies at an address."""
    return builder.load(ir_pointer(builder, address, pointee), align=align)


def ir_store(builder: Any, address: Any, value: Any) -> None:
    """Put a value at an address."""
    builder.store(value, ir_pointer(builder, address, value.type), align=1)


def ir_call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    """Call an LLVM intrinsic, declared if need be."""
    function_type = ir.FunctionType(result, [v.type for v in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), values)


def ir_splat(builder: Any, scalar: Any) -> Any:
    """A scalar in every lane."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir_const(0))


def ir_shuffle(builder: Any, a: Any, b: Any, indices: list[int]) -> Any:
    """Lanes of a and b, numbered through, by constant indices."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(indices)), indices))


def ir_concat(builder: Any, parts: list[Any]) -> Any:
    """Join equal vectors, a power of two of them, pairwise."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        parts = [ir_shuffle(builder, a, b, list(range(n))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def ir_row(builder: Any, address: Any, stride: Any, row: int) -> Any:
    """address + row * stride."""
    return builder.add(address, builder.mul(stride, ir.Constant(I64, row)))


def ir_words(builder: Any, address: Any, count: int) -> Callable[[int], Any]:
    """A function that gives the k-th 4 bytes at an address in every lane, k below `count`, a multiple of 4."""
    if ISA.dot == "sdot":  # which takes one lane of a vector as it stands
        vectors = [
            ir_load(builder, builder.add(address, ir.Constant(I64, at)), WORDS) for at in range(0, 4 * count, 16)
        ]
        return lambda k: ir_shuffle(builder, vectors[k // 4], vectors[k // 4], [k % 4] * 4)
    return lambda k: ir_splat(builder, ir_load(builder, builder.add(address, ir.Constant(I64, 4 * k)), I32))
