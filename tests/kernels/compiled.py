"""Small compiled loops around the vocabulary's operations, for the same CPU as the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import njit
from numba.core import config

from edge_gemma.kernels.isa import target
from edge_gemma.kernels.simd.vocabulary import LANES, load, load_int, store, store_int
from tests.kernels.harness import Array

llvm.initialize_native_asmparser()  # as the kernels' compiler does, for `prefetch`
config.CPU_NAME, config.CPU_FEATURES = target()

_LOAD = {"F": load, "I": load_int}
_STORE = {"F": store, "I": store_int}
_DTYPE = {"F": np.float32, "I": np.int32}


@cache
def lanewise(operation: Any, signature: str) -> Callable[..., Array]:
    """`operation` over whole arrays. signature "FI:F": a vector of floats and one of ints to one of floats."""
    parameters, _, result = signature.partition(":")
    loop = _loop(operation, [_LOAD[p] for p in parameters], _STORE[result])

    def apply(*arrays: Array) -> Array:
        size = arrays[0].size
        whole = -(-size // LANES) * LANES
        padded = [np.resize(np.asarray(a, _DTYPE[p]), whole) for a, p in zip(arrays, parameters, strict=True)]
        out = np.empty(whole, _DTYPE[result])
        loop(whole, *(a.ctypes.data for a in padded), out.ctypes.data)
        return out[:size]

    return apply


def _loop(operation: Any, loads: list[Any], put: Any) -> Any:
    """A loop over vectors, of as many operands as there are `loads`."""
    first, second, third, fourth = (loads * 4)[:4]

    @njit
    def one(count: Any, a: Any, out: Any) -> None:
        for i in range(0, 4 * count, 4 * LANES):
            put(out + i, operation(first(a + i)))

    @njit
    def two(count: Any, a: Any, b: Any, out: Any) -> None:
        for i in range(0, 4 * count, 4 * LANES):
            put(out + i, operation(first(a + i), second(b + i)))

    @njit
    def three(count: Any, a: Any, b: Any, c: Any, out: Any) -> None:
        for i in range(0, 4 * count, 4 * LANES):
            put(out + i, operation(first(a + i), second(b + i), third(c + i)))

    @njit
    def four(count: Any, a: Any, b: Any, c: Any, d: Any, out: Any) -> None:
        for i in range(0, 4 * count, 4 * LANES):
            put(out + i, operation(first(a + i), second(b + i), third(c + i), fourth(d + i)))

    return (one, two, three, four)[len(loads) - 1]
