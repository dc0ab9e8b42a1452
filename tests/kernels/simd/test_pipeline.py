"""What Numba is asked for: IR of the functions that are inlined, machine code of the kernel alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from numba.core import typed_passes
from numba.core.compiler import DefaultPassBuilder, Flags
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from edge_gemma.kernels.jit import compile as compiler
from edge_gemma.kernels.operations import Kernel
from edge_gemma.kernels.simd.pipeline import NEEDLESS


def test_passes_that_are_left_out_exist() -> None:
    """Numba may give another name to what it has always run, which then would be run again, unseen."""
    usual = DefaultPassBuilder.define_nopython_pipeline(SimpleNamespace(flags=Flags(), func_ir=None))
    names = {one for one, _ in usual.passes}
    assert names > NEEDLESS and typed_passes.NativeLowering in names


@pytest.mark.parametrize("formats", [("Q4_0", "Q5_0"), ("Q4_0", "Q4_K")])
@global_compiler_lock
def test_nothing_but_the_kernel_becomes_machine_code(formats: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's engine is handed nothing; what LLVM emits is one function."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a helper becomes machine code")

    before, kernel = (Kernel("ops.matvec", name, "l2x3") for name in formats)
    compiler._lower(before)  # with the first one, Numba makes its runtime, `min` and `max` ready
    for method in ("add_module", "finalize_object"):
        monkeypatch.setattr(type(cpu_target.target_context.codegen()._engine), method, refuse)
    library = compiler._lower(kernel)
    assert library._linking_libraries
    library.finalize()
    module = library._final_module
    defined = [one.name for one in (*module.functions, *module.global_variables) if not one.is_declaration]
    assert defined == [library.entry]
