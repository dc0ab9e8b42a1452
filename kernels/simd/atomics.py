"""Memory words shared by threads, raw words of a program's row, and the call of a kernel by address.

Knows no kernel. Addresses are integers, of memory that is readable, or writable where it is written, and aligned to 8
bytes. All atomic operations are sequentially consistent; `word` and `real` are plain loads, of what no thread writes
meanwhile, and `set_word` is a plain store.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..operations import COUNTER
from .decorators import inlined, intrinsic

_i8p, _i32, _i64, _f64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_WORD = types.intp


def _address(builder: Any, base: Any, index: Any, element: ir.Type) -> Any:
    offset = builder.mul(index, ir.Constant(_i64, 8))
    return builder.inttoptr(builder.add(base, offset), element.as_pointer())


@intrinsic
def word(_typing: Any, base: Any, index: Any) -> Any:
    """The 64-bit integer at base + 8 * index."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(_address(builder, arguments[0], arguments[1], _i64))

    return _WORD(_WORD, _WORD), codegen


@intrinsic
def set_word(_typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Set the 64-bit integer at base + 8 * index, which no other thread reads or writes meanwhile."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(builder, arguments[0], arguments[1], _i64))
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD), codegen


@intrinsic
def real(_typing: Any, base: Any, index: Any) -> Any:
    """The float64 at base + 8 * index, as float32."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fptrunc(builder.load(_address(builder, arguments[0], arguments[1], _f64)), ir.FloatType())

    return types.float32(_WORD, _WORD), codegen


@intrinsic
def fetch_add(_typing: Any, base: Any, index: Any, amount: Any) -> Any:
    """Add `amount` to the word; its old value."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = _address(builder, arguments[0], arguments[1], _i64)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return _WORD(_WORD, _WORD, _WORD), codegen


@intrinsic
def read_shared(_typing: Any, base: Any, index: Any) -> Any:
    """The word, as other threads wrote it last."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(builder, arguments[0], arguments[1], _i64), "seq_cst", 8)

    return _WORD(_WORD, _WORD), codegen


@intrinsic
def write_shared(_typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Set the word for all threads."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = _address(builder, arguments[0], arguments[1], _i64)
        builder.store_atomic(arguments[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD), codegen


@intrinsic
def call_kernel(_typing: Any, function: Any, row: Any, step: Any, thread: Any) -> Any:
    """Call the kernel at the address `function` by Numba's convention: status f(result*, exception**, arguments)."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_i32, [_i8p.as_pointer(), _i8p.as_pointer(), _i64, _i64, _i64])
        result, exception = (cgutils.alloca_once(builder, _i8p) for _ in range(2))
        pointer = builder.inttoptr(arguments[0], function_type.as_pointer())
        return builder.call(pointer, [result, exception, *arguments[1:]])

    return types.int32(_WORD, _WORD, _WORD, _WORD), codegen


@intrinsic
def yield_cpu(_typing: Any) -> Any:
    """Let another thread have this processor (`sched_yield`, on Windows `SwitchToThread`)."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def codegen(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_i32, []), name)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@inlined
def claim(row: Any, amount: Any) -> Any:
    """The next `amount` work items of an operation are this thread's; the number of the first."""
    return fetch_add(row, COUNTER, amount)
