"""Every load and store of the SIMD vocabulary, at odd addresses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.layout import LANES
from edge_gemma.kernels.simd import vocabulary as simd
from tests.kernels.simd.values import floats, integers

ASK = simd.prefetches(0, 64, -4096, level=1)


def test_loads_and_stores_at_odd_addresses() -> None:
    @njit
    def copies(a: Any, out: Any) -> None:
        simd.store(out, simd.load(a))
        simd.store_int(out + 4 * LANES, simd.load_int(a))
        simd.store(out + 8 * LANES, simd.broadcast(a))
        simd.store_int(out + 12 * LANES, simd.broadcast_int(a + 4))
        simd.store(out + 16 * LANES, simd.splat(simd.load_scalar(a)))
        simd.store_int(out + 20 * LANES, simd.splat_int(simd.first_lane_int(simd.broadcast_int(a + 4))))
        simd.store(out + 24 * LANES, simd.load_bfloat(a))
        simd.store_int(out + 28 * LANES, simd.lane_numbers())
        simd.store_scalar(out + 32 * LANES, simd.first_lane(simd.load(a)))
        simd.store_scalar_int(out + 32 * LANES + 4, simd.first_lane_int(simd.load_int(a)))
        ASK(a)
        ASK(0)
        simd.prefetch_far(0)

    for offset in (0, 1, 3):
        memory = np.random.default_rng(offset).integers(0, 255, 4 * LANES + 3, dtype=np.uint8)
        source = memory[offset:].copy()[: 4 * LANES].view(np.uint32)
        out = np.zeros(36 * LANES + 1, np.uint8)
        copies(memory.ctypes.data + offset, out.ctypes.data + 1)
        got = out[1:].copy().view(np.uint32)[: 8 * LANES + 2].tolist()
        bfloats = (source.view(np.uint16)[:LANES].astype(np.uint32) << 16).tolist()
        words = source.tolist()
        want = [*words, *words, *([words[0]] * LANES), *([words[1]] * LANES), *([words[0]] * LANES)]
        assert got == [*want, *([words[1]] * LANES), *bfloats, *range(LANES), words[0], words[0]]


def test_store_bytes_keeps_the_low_byte_of_each_lane() -> None:
    @njit
    def stored(a: Any, out: Any) -> None:
        simd.store_bytes(out, simd.load_int(a))

    words, out = integers(LANES, 1), np.full(LANES + 1, 7, np.uint8)
    stored(words.ctypes.data, out.ctypes.data)
    assert out.tolist() == [*(words & 255).tolist(), 7]


def test_load_bytes_extends_the_sign_and_store_first_half_stores_two_bytes() -> None:
    @njit
    def moved(a: Any, out: Any, half: Any) -> None:
        simd.store_int(out, simd.load_bytes(a + 1))
        simd.store_first_half(half, simd.to_float(simd.load_bytes(a + 1)))

    source, out = np.random.default_rng(0).integers(-128, 128, LANES + 1, dtype=np.int8), np.zeros(LANES, np.int32)
    half = np.full(3, 7, np.float16)
    moved(source.ctypes.data, out.ctypes.data, half.ctypes.data + 2)
    assert out.tolist() == source[1:].tolist() and half.tolist() == [7, source[1], 7]


@pytest.mark.parametrize("stride", [16, 18, 34, 210, 0])
def test_rows(stride: int) -> None:
    @njit
    def gathered(a: Any, stride: Any, out: Any) -> None:
        simd.store_int(out, simd.rows_short(a, stride))
        simd.store_int(out + 4 * LANES, simd.rows_word(a, stride))
        quads = simd.rows_16_bytes(a, stride)
        for k in range(4):
            simd.store_int(out + (8 + 4 * k) * LANES, quads[k])

    memory = np.random.default_rng(0).integers(0, 256, 220 * LANES, dtype=np.uint8)
    for offset in (0, 1, 2, 5):
        out = np.zeros((6, LANES), np.uint32)
        gathered(memory.ctypes.data + offset, stride, out.ctypes.data)
        rows = [memory[offset + r * stride :][:16] for r in range(LANES)]
        words = np.array([row.copy().view(np.uint32) for row in rows])
        assert np.array_equal(out[0], words[:, 0] & 0xFFFF)
        assert np.array_equal(out[1], words[:, 0]) and np.array_equal(out[2:], words.T)


@pytest.mark.parametrize("stride", [4, 6, 13])
def test_scatter(stride: int) -> None:
    @njit
    def scattered(a: Any, stride: Any, out: Any, halves: Any, low: Any) -> None:
        simd.scatter(out, stride, simd.load(a))
        simd.scatter_half(halves, stride, simd.load(a))
        simd.scatter_bytes(low, stride, simd.load_int(a))

    values = floats(LANES, 0)
    out, halves, low = (np.full(stride * LANES + 8, 7, np.uint8) for _ in range(3))
    scattered(values.ctypes.data, stride, out.ctypes.data + 1, halves.ctypes.data + 1, low.ctypes.data + 1)
    for lane, value in enumerate(values):
        at = 1 + stride * lane
        assert out[at : at + 4].tobytes() == value.tobytes()
        assert halves[at : at + 2].tobytes() == value.astype(np.float16).tobytes()
        assert low[at] == value.view(np.uint32) & 255 and low[at + 1] == 7
    assert out[0] == halves[0] == halves[3] == 7 and (stride == 4 or out[5] == 7)
