"""The two decorators of compiled code. Every njit function of the kernels is one of these, or an entry of `compile`.

Knows no kernel. They exist to be typed: the results are callable from compiled code with any arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import extending

from .pipeline import IrPipeline

Function = Callable[..., Any]

INLINED: dict[str, Any] = {
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": IrPipeline,
}
"""What Numba is told of a function that compiled code calls and LLVM always inlines. Wrappers would go unused."""


def inlined(function: Function) -> Any:
    """A function that compiled code calls and LLVM always inlines."""
    return extending.register_jitable(**INLINED)(function)


def intrinsic(function: Function) -> Any:
    """One operation as LLVM IR; `function(typing_context, *types)` gives its signature and code generator."""
    return extending.intrinsic(function)


def intrinsic_of_constants(function: Function) -> Any:
    """As `intrinsic`, for operations that need integer arguments as constants."""
    return extending.intrinsic(prefer_literal=True)(function)
