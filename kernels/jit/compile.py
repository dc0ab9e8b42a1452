"""Compile a kernel to machine code with Numba. The only place that asks Numba for a function.

Knows no cache and no thread. The result needs neither Numba nor Python to run: an object file with one function in
Numba's native convention, int32 status f(result*, exception**, int64 ...).
"""

from __future__ import annotations

from importlib import import_module

import llvmlite.binding as llvm
from numba import types
from numba.core import compiler
from numba.core import config as numba_config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.target_extension import target_override

from ..isa import target
from ..operations import Kernel
from ..simd.pipeline import IrPipeline, KernelLibrary

EXTERNAL = {"sched_yield", "SwitchToThread"}


@global_compiler_lock
def compile_kernel(kernel: Kernel, symbol: str) -> bytes:
    """An object file with the kernel under the name `symbol`."""
    return _emit(_lower(kernel), symbol)


def _lower(kernel: Kernel) -> KernelLibrary:
    """The library of the function, not yet optimized.

    No fast-math: contraction in one kernel and not in another would make equal sums differ, and the kernels say `fma`
    where they mean it.
    """
    numba_config.CPU_NAME, numba_config.CPU_FEATURES = target()
    llvm.initialize_native_asmparser()  # `prefetch` is a line of assembly
    module = import_module(f"edge_gemma.kernels.{kernel.module}")
    table = module.kernels(kernel.strategy) if kernel.strategy else module.kernels()
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    with target_override("cpu"):
        typing, context = cpu_target.typing_context, cpu_target.target_context
        typing.refresh()
        context.refresh()
        library = KernelLibrary(context.codegen(), kernel.name)
        function, signature = table[kernel.name], ((types.intp,) * 3, types.void)
        compiled = compiler.compile_extra(typing, context, function, *signature, flags, {}, library, IrPipeline)
    library.entry = compiled.fndesc.llvm_func_name
    return library


def _emit(library: KernelLibrary, name: str) -> bytes:
    """The object file of a library, its entry renamed to `name`, nothing else visible from outside."""
    library.finalize()
    module = library._final_module
    for function in module.functions:
        if function.is_declaration:
            _check_external(function.name, name)
        elif function.name == library.entry:
            function.name = name
    return bytes(library.codegen._tm.emit_object(module))


def _check_external(symbol: str, name: str) -> None:
    """An unknown symbol would end the process when the object is loaded."""
    if not symbol.startswith("llvm.") and symbol not in EXTERNAL:
        raise RuntimeError(f"kernel {name} calls {symbol}, which is no part of the operating system's interface")


@global_compiler_lock
def assembly(kernel: Kernel) -> str:
    """The machine code of a kernel as text, for tests that look for instructions."""
    library = _lower(kernel)
    library.finalize()
    return str(library.get_asm_str())
