"""Compile a kernel to machine code with Numba. The only place that asks Numba for a function.

Knows no cache and no thread. The result needs neither Numba nor Python to run: an object file with one function in
Numba's native convention, int32 status f(result*, exception**, int64 ...).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from numba.core import compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.target_extension import target_override

from edge_gemma.kernels.operations import Kernel

ARGUMENTS = {"execute": 4}
"""Number of int64 arguments where it is not the usual three: row, step, thread."""


@global_compiler_lock
def compile_kernel(kernel: Kernel) -> tuple[str, bytes, str]:
    """(symbol, object file, assembly) of a kernel.

    No fast-math: contraction in one kernel and not in another would make equal sums differ, and the kernels say `fma`
    where they mean it.
    """
    module = import_module(f"edge_gemma.kernels.{kernel.module}")
    function = module.kernels()[kernel.name]
    arguments = (types.intp,) * ARGUMENTS.get(kernel.name, 3)
    result = types.intp if kernel.name == "execute" else types.void
    flags = compiler.Flags()
    flags.nrt = True
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    with target_override("cpu"):
        typing, target = cpu_target.typing_context, cpu_target.target_context
        typing.refresh()
        target.refresh()
        compiled = compiler.compile_extra(typing, target, function, arguments, result, flags, {})
    return compiled.fndesc.llvm_func_name, *_emit(compiled.library)


def _emit(library: Any) -> tuple[bytes, str]:
    library.finalize()
    machine = library.codegen._tm
    module = library._final_module
    return machine.emit_object(module), machine.emit_assembly(module)
