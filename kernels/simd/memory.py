"""Constants, loads and stores, prefetches, and rows of a matrix across the lanes. Knows no format."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .types import (
    F32,
    FLOATS,
    I16,
    I32,
    I64,
    ISA,
    LANES,
    WORDS,
    F,
    I,
    ir_concat,
    ir_load,
    ir_row,
    ir_shuffle,
    ir_splat,
    ir_store,
    operation,
)


@operation(F, types.float32)
def splat(builder: Any, x: Any) -> Any:
    """Every lane x."""
    return ir_splat(builder, x)


@operation(I, types.int32)
def splat_int(builder: Any, x: Any) -> Any:
    """Every lane x."""
    return ir_splat(builder, x)


@operation(F, types.intp)
def load(builder: Any, address: Any) -> Any:
    """LANES float32."""
    return ir_load(builder, address, FLOATS)


@operation(I, types.intp)
def load_int(builder: Any, address: Any) -> Any:
    """LANES int32, or 4 x LANES bytes."""
    return ir_load(builder, address, WORDS)


@operation(F, types.intp)
def broadcast(builder: Any, address: Any) -> Any:
    """One float32, in every lane."""
    return ir_splat(builder, ir_load(builder, address, F32))


@operation(I, types.intp)
def broadcast_int(builder: Any, address: Any) -> Any:
    """One int32 (or 4 bytes), in every lane."""
    return ir_splat(builder, ir_load(builder, address, I32))


@operation(types.void, types.intp, F)
def store(builder: Any, address: Any, value: Any) -> None:
    """LANES float32."""
    ir_store(builder, address, value)


@operation(types.void, types.intp, I)
def store_int(builder: Any, address: Any, value: Any) -> None:
    """LANES int32, or 4 x LANES bytes."""
    ir_store(builder, address, value)


@operation(types.float32, types.intp)
def load_scalar(builder: Any, address: Any) -> Any:
    """One float32."""
    return ir_load(builder, address, F32)


@operation(types.void, types.intp, types.float32)
def store_scalar(builder: Any, address: Any, value: Any) -> None:
    """One float32."""
    ir_store(builder, address, value)


@operation(types.void, types.intp, types.int32)
def store_scalar_int(builder: Any, address: Any, value: Any) -> None:
    """One int32."""
    ir_store(builder, address, value)


_PREFETCH = {
    "x86": {1: "prefetcht0", 2: "prefetcht1", 3: "prefetcht2"},
    "arm": {1: "prfm pldl1keep,", 2: "prfm pldl2keep,", 3: "prfm pldl3keep,"},
}


def _emit_prefetches(builder: Any, address: Any, offsets: tuple[int, ...], level: int) -> None:
    """As assembly, because LLVM's own operation counts as a write, so that loads before and after it are not shared.

    As one statement, because LLVM schedules the code around each: with 80 statements in a loop of Q4_K it left 124
    vectors on the stack, with 40 none. Offsets are part of the instructions; ARM's must not be negative.
    """
    if ISA.machine not in _PREFETCH or not offsets:
        return
    least, brackets = (min(offsets), "[$0, #{}]") if ISA.machine == "arm" else (0, "{}($0)")
    name, base = _PREFETCH[ISA.machine][level], builder.add(address, ir.Constant(I64, least))
    text = "\n".join(f"{name} {brackets.format(offset - least)}" for offset in offsets)
    function_type = ir.FunctionType(ir.VoidType(), [I64])
    builder.call(ir.InlineAsm(function_type, text, "r", side_effect=True), [base], attrs=("readonly", "nounwind"))


def prefetches(*offsets: int, level: int) -> Any:
    """Declare an operation: prefetch the cache lines at address + each of `offsets`, for reading, into the cache of
    `level` 1, 2 or 3. Offsets are multiples of 8. Never faults.
    """

    def emit(builder: Any, address: Any) -> None:
        _emit_prefetches(builder, address, offsets, level)

    emit.__name__ = "prefetches"
    return operation(types.void, types.intp)(emit)


prefetch_far = prefetches(0, level=2)
"""Prefetch the cache line at an address, for reading, into the second-level cache. Never faults."""


# ---- one row of a matrix per lane ----------------------------------------------------------------------------------
# Only for what nobody writes while a kernel runs: weights.


def ir_constant(builder: Any, address: Any, pointee: ir.Type) -> Any:
    """What lies at an address, and stays the same: read once though a loop stores sums meanwhile."""
    value = ir_load(builder, address, pointee)
    value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


_ODD_AND_SHIFT = (0, 0), (1, 0), (1, 1), (3, 0), (1, 2), (5, 0), (3, 1), (7, 0)
"""r = odd << shift, for r = 0..7."""


def ir_rows(builder: Any, address: Any, stride: Any) -> list[Any]:
    """The addresses of LANES rows, such that each is an operand as it stands: base + stride x (1, 3, 5, 7) x (1, 2, 4).

    Of plain multiples LLVM makes a chain of `lea`, one a row. It does not see through an empty line of assembly. Where
    that was measured to help: AVX-VNNI reads Q6_K 5% faster with the chain.
    """
    if ISA.dot not in ("vpdpbusd.512", "vpmaddubsw"):
        return [ir_row(builder, address, stride, r) for r in range(LANES)]
    hidden = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
    odd = {n: builder.call(hidden, [builder.mul(stride, ir.Constant(I64, n))], attrs=("readnone",)) for n in (3, 5, 7)}
    odd |= {0: ir.Constant(I64, 0), 1: stride}
    rows = []
    for r in range(LANES):
        base = ir_row(builder, address, stride, r // 8 * 8)
        multiple, shift = _ODD_AND_SHIFT[r % 8]
        rows.append(builder.add(base, builder.shl(odd[multiple], ir.Constant(I64, shift))))
    return rows


def _rows_scalar(builder: Any, address: Any, stride: Any, element: ir.Type) -> Any:
    """Lane r: the element at address + r * stride, zero-extended to 32 bits."""
    vector = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
    for r, at in enumerate(ir_rows(builder, address, stride)):
        value = ir_constant(builder, at, element)
        vector = builder.insert_element(vector, value, ir.Constant(I32, r))
    return vector if element is I32 else builder.zext(vector, WORDS)


@operation(I, types.intp, types.intp)
def rows_short(builder: Any, address: Any, stride: Any) -> Any:
    """Lane r: the 16 bits at address + r * stride, zero-extended."""
    return _rows_scalar(builder, address, stride, I16)


@operation(I, types.intp, types.intp)
def rows_word(builder: Any, address: Any, stride: Any) -> Any:
    """Lane r: the 4 bytes at address + r * stride."""
    return _rows_scalar(builder, address, stride, I32)


@operation(types.UniTuple(I, 4), types.intp, types.intp)
def rows_16_bytes(builder: Any, address: Any, stride: Any) -> Any:
    """The 16 bytes at address + r * stride of each row r, as 4 vectors: lane r of vector k has bytes 4k..4k+3 of row r.

    A 4 x 4 transposition of 32-bit words inside each 128-bit part: part p of the loaded vector j is row 4p + j.
    """
    word4 = ir.VectorType(I32, 4)
    rows = [ir_constant(builder, at, word4) for at in ir_rows(builder, address, stride)]
    loaded = [ir_concat(builder, rows[j::4]) for j in range(4)]
    low, high = [], []  # words 0 1 and words 2 3 of two rows, interleaved
    for a, b in ((loaded[0], loaded[1]), (loaded[2], loaded[3])):
        low.append(ir_shuffle(builder, a, b, in_parts([0, LANES, 1, LANES + 1])))
        high.append(ir_shuffle(builder, a, b, in_parts([2, LANES + 2, 3, LANES + 3])))
    columns = []
    for a, b in (low, high):
        columns.append(ir_shuffle(builder, a, b, in_parts([0, 1, LANES, LANES + 1])))
        columns.append(ir_shuffle(builder, a, b, in_parts([2, 3, LANES + 2, LANES + 3])))
    return cgutils.pack_array(builder, columns)


def in_parts(pattern: list[int]) -> list[int]:
    """The same shuffle in each 128-bit part."""
    return [4 * p + i for p in range(LANES // 4) for i in pattern]
