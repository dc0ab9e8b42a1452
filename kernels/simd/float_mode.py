"""How a thread does float arithmetic: kernels round to nearest and keep denormals, whatever a host prefers.

A library built with -ffast-math switches denormals off in the thread that loads it, audio programs do so on purpose,
and a few hosts have floating-point exceptions raise signals. A caller's thread comes with its host's choice.
Knows no kernel.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..isa import MACHINE
from .decorators import intrinsic

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()

PLAIN = 0 if MACHINE == "arm" else 0x1F80
"""FPCR, or MXCSR: round to nearest even, denormals as they are, no exception raises a signal."""


@intrinsic
def swap_float_mode(_typing: Any, mode: Any) -> Any:
    """Set the thread's control word for vector arithmetic to `mode`; what it was.

    LLVM keeps loads, stores and calls through an address, such as a kernel's, on their side of this, and may move
    arithmetic on registers across it.
    """
    return types.intp(types.intp), _swap_arm if MACHINE == "arm" else _swap_x86


def _swap_x86(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    word = cgutils.alloca_once(builder, _I32)
    pointer = builder.bitcast(word, ir.IntType(8).as_pointer())
    function_type = ir.FunctionType(_VOID, [pointer.type])
    names = "llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr"
    read, write = (cgutils.get_or_insert_function(builder.module, function_type, name) for name in names)
    builder.call(read, [pointer])
    before = builder.zext(builder.load(word), _I64)
    builder.store(builder.trunc(arguments[0], _I32), word)
    builder.call(write, [pointer])
    return before


def _swap_arm(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    read, write = ir.FunctionType(_I64, []), ir.FunctionType(_VOID, [_I64])
    before = builder.call(ir.InlineAsm(read, "mrs $0, fpcr", "=r", side_effect=True), [])
    builder.call(ir.InlineAsm(write, "msr fpcr, $0", "r", side_effect=True), [arguments[0]])
    return before
