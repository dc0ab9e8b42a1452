"""Lookups in grids, every way that the CPU has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.isa import current, may_use
from edge_gemma.kernels.layout import LANES
from edge_gemma.kernels.simd import vocabulary as simd
from edge_gemma.kernels.simd.grid_lookup import by_loads, by_permutations

WAYS = [by_loads, *([by_permutations] if current().dot == "vpdpbusd.512" and may_use("avx512vbmi") else [])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(256, 4), (512, 4), (256, 8), (512, 8), (1024, 8), (2048, 8)])
def test_grid_lookup(shape: tuple[int, int], way: Any) -> None:
    """Every index, with anything in the bits of its upper byte that do not count."""
    rng, (groups, size) = np.random.default_rng(0), shape
    grid = rng.integers(0, 2 ** (3 if size == 4 else 2), shape, dtype=np.uint8)
    look_up, vectors = simd.grid_lookup("grid", grid, way), size

    @njit
    def loop(count: Any, low: Any, high: Any, out: Any) -> None:
        for i in range(count):
            found = look_up(simd.load_int(low + 4 * LANES * i), simd.load_int(high + 4 * LANES * i))
            for k in range(vectors):
                simd.store_int(out + 4 * LANES * (size * i + k), found[k])

    indices = rng.permutation(groups).reshape(-1, LANES, 4)
    high = indices >> 8 | (0 if groups == 2048 else rng.integers(0, 256, indices.shape) & -(groups // 256))
    low, high = (a.astype(np.uint8) for a in (indices, high))
    out = np.zeros((len(indices), size, LANES, 4), np.uint8)
    loop(len(indices), low.ctypes.data, high.ctypes.data, out.ctypes.data)
    want = grid[indices].reshape(len(indices), LANES, size, 4).swapaxes(1, 2)
    assert np.array_equal(out & (7 if size == 4 else 3), want)
    assert way is not by_loads or not (out & 0x88).any()


@pytest.mark.parametrize("shape", [(256, 4), (256, 8), (512, 8)])
def test_grid_lookup_in_rows(shape: tuple[int, int]) -> None:
    """Every index, with anything in the upper bits of shorts, at odd addresses and distances."""
    rng, (groups, size) = np.random.default_rng(0), shape
    grid = rng.integers(0, 2 ** (3 if size == 4 else 2), shape, dtype=np.uint8)
    look_up, vectors, width = simd.grid_lookup_rows("rows", grid), size, 1 if groups == 256 else 2
    count, apart = groups // (4 * LANES), 4 * width * groups // (4 * LANES) + 3

    @njit
    def loop(count: Any, at: Any, stride: Any, out: Any) -> None:
        for i in range(count):
            found = look_up(at + 4 * width * i, stride)
            for k in range(vectors):
                simd.store_int(out + 4 * LANES * (size * i + k), found[k])

    indices = rng.permutation(groups).reshape(LANES, count, 4)
    stored = indices if groups == 256 else indices | rng.integers(0, 128, indices.shape) << 9
    memory = np.zeros((LANES, apart), np.uint8)
    memory[:, 1 : 1 + 4 * width * count] = stored.astype(f"<u{width}").reshape(LANES, -1).view(np.uint8)
    out = np.zeros((count, size, LANES, 4), np.uint8)
    loop(count, memory.ctypes.data + 1, apart, out.ctypes.data)
    want = grid[indices.swapaxes(0, 1)].reshape(count, LANES, size, 4).swapaxes(1, 2)
    assert np.array_equal(out & (7 if size == 4 else 3), want) and not (out & 0x88).any()
