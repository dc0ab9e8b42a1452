"""Kernels round to nearest and keep denormals, also in a thread whose host chose otherwise, and leave it its choice."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.operations import ADD
from edge_gemma.kernels.simd.float_mode import PLAIN, swap_float_mode
from edge_gemma.kernels.simd.vocabulary import load_scalar, store_scalar
from tests.kernels.harness import Step, assert_same_bits, row, run

llvm.initialize_native_asmparser()  # AArch64's is a line of assembly

FLUSH_TO_ZERO = 1 << 24 if PLAIN == 0 else 0x8040
STATUS = 0x3F  # of MXCSR: what has happened so far
TINY = np.float32(1e-39)


@njit
def swapped(mode: int) -> int:
    return swap_float_mode(mode)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_denormals_are_kept_for_a_caller_who_flushes_them(rows: int, threads: int) -> None:
    x, y = np.full((rows, 64), TINY), np.full((rows, 64), TINY)
    add = row(ADD, "elementwise.add", x=x, x_stride=256, y=y, y_stride=256, columns=64)
    before = swapped(PLAIN | FLUSH_TO_ZERO)
    try:
        run([add], Step(rows), threads)
    finally:
        after = swapped(before)
    assert_same_bits(y, np.full((rows, 64), TINY + TINY))
    assert after & ~STATUS == PLAIN | FLUSH_TO_ZERO


def test_the_mode_is_what_makes_the_difference() -> None:
    """Without it the test above would pass on a machine that flushes nothing."""

    @njit
    def doubled(x: int, y: int, mode: int) -> None:
        before = swap_float_mode(mode)
        store_scalar(y, load_scalar(x) + load_scalar(x))  # a sum of registers alone could be moved out
        swap_float_mode(before)

    x, y = np.full(1, TINY), np.full(1, TINY)
    doubled(x.ctypes.data, y.ctypes.data, PLAIN)
    assert y == TINY + TINY
    doubled(x.ctypes.data, y.ctypes.data, PLAIN | FLUSH_TO_ZERO)
    assert y == 0
