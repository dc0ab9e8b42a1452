"""The time inside a program: a row that notes the processor's counter. Knows no unit; `measure/profile.py` does."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ..isa import MACHINE
from ..operations import TIMESTAMP
from .atomics import read_shared, word, write_shared
from .decorators import intrinsic

(_AT,) = TIMESTAMP.slots
_I64 = ir.IntType(64)


@intrinsic
def ticks(_typing: Any) -> Any:
    """A counter that runs at one speed, the same for all cores: x86's `rdtsc`, on AArch64 the generic timer, for LLVM's
    own operation reads a counter there that programs may not.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        function_type = ir.FunctionType(_I64, [])
        if MACHINE == "arm":
            return builder.call(ir.InlineAsm(function_type, "mrs $0, cntvct_el0", "=r", side_effect=True), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", (), function_type), [])

    return types.intp(), codegen


def timestamp(op: Any, _step: Any, _thread: Any) -> None:
    """The first thread past the row's barrier writes the counter to the argument's address, where there is a 0.

    Not one certain thread: that one may have been put to sleep, and the others are at work again.
    """
    if read_shared(word(op, _AT), 0) == 0:
        write_shared(word(op, _AT), 0, ticks())


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"timestamp": timestamp}
