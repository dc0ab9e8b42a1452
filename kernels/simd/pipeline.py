"""How Numba compiles the functions that kernels consist of: to LLVM IR, and no further.

LLVM inlines all of them into a kernel, which alone becomes machine code. Left to itself, Numba makes machine code of
each of them before, and looks for what no kernel contains: a quarter of a kernel's time. Knows no kernel.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import _dynfunc
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass

NEEDLESS = {
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.AnnotateTypes,
    typed_passes.DumpParforDiagnostics,
}
"""Passes for `with`, closures inside a function, exceptions made at run time, arrays, and reports. What needs one does
not compile."""


class IrLibrary(CPUCodeLibrary):
    """The IR of a function and of those it calls, optimized as Numba does.

    It is optimized again where it is inlined; yet of functions that are not, LLVM makes slower kernels: decoding
    products with Q4_K and Q6_K took 25 and 40% longer (Zen 4), as loops were unrolled too late for loads to be shared.
    """

    def _finalize_final_module(self) -> None:
        """No machine code."""
        self._finalized = True


class KernelLibrary(IrLibrary):
    """The same, optimized as a whole, once `entry` is the name of the function that is called from outside."""

    entry = ""

    def _optimize_final_module(self) -> None:
        """All but `entry` becomes internal before, so that LLVM drops each function where it is inlined."""
        for definition in (*self._final_module.functions, *self._final_module.global_variables):
            if not definition.is_declaration and definition.name != self.entry:
                definition.linkage = llvm.Linkage.internal
        super()._optimize_final_module()


@register_pass(mutates_CFG=True, analysis_only=False)
class IrLowering(typed_passes.NativeLowering):
    """Lowering without machine code."""

    _name = "edge_gemma_lowering"

    def run_pass(self, state: Any) -> bool:
        """Numba knows a function that others call by an object, which has no address here."""
        state.flags.no_compile = True
        super().run_pass(state)
        lowered, function = state["cr"], state["cr"].fndesc
        key = _dynfunc.make_function(function.lookup_module(), function.qualname, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(key, function, [state.library])
        state["cr"] = lowered._replace(cfunc=key)
        return True


class IrPipeline(CompilerBase):
    """Numba's passes but those above, with our lowering, into an `IrLibrary` unless the caller has a library."""

    def define_pipelines(self) -> list[Any]:
        """As Numba asks for them."""
        state = self.state
        if state.library is None:
            state.library = IrLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        manager = DefaultPassBuilder.define_nopython_pipeline(state)
        kept = [(one, why) for one, why in manager.passes if one not in NEEDLESS]
        manager.passes = [(IrLowering if one is typed_passes.NativeLowering else one, why) for one, why in kept]
        manager.finalize()
        return [manager]
