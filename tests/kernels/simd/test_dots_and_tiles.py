"""Products of bytes, lookups, and register tiles of the SIMD vocabulary: exact, or the definition's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.layout import LANES, WIDE_ZERO
from edge_gemma.kernels.reference import operations as reference
from edge_gemma.kernels.simd import vocabulary as simd
from tests.kernels.compiled import lanewise
from tests.kernels.harness import Array, aligned, assert_same_bits
from tests.kernels.simd.values import WORDS, floats, integers

# ---- dot products, lookups ---------------------------------------------------------------------------------------


def by_hand(acc: Array, u: Array, s: Array) -> Array:
    products = u.view(np.uint8).astype(np.int64) * s.view(np.int8)
    return (acc + products.reshape(-1, 4).sum(axis=1)).astype(np.int32)


def test_dot4_is_exact() -> None:
    rng = np.random.default_rng(0)
    u = rng.integers(0, 128, 4096, dtype=np.uint8)
    s = rng.integers(-128, 128, 4096, dtype=np.int8)
    for n, (unsigned, signed) in enumerate([(127, -128), (127, 127), (0, -128), (1, -1)]):
        u[64 * n : 64 * n + 64], s[64 * n : 64 * n + 64] = unsigned, signed
    acc = integers(1024, 3) // 2
    u, s = u.view(np.int32), s.view(np.int32)
    assert_same_bits(lanewise(simd.dot4, "III:I")(acc, u, s), by_hand(acc, u, s))


PRODUCTS = [(15, 8), (24, 8), (30, 8), (31, 8), (86, 8), (124, 8), (255, 8), (3, 4), (7, 4), (18, 4), (63, 4), (86, 4)]
"""The largest byte of a format's weights, and how many vectors of them are multiplied at a time."""


def weight_bytes(top: int, shape: tuple[int, ...]) -> Array:
    """Bytes up to `top`, the first ones the largest; with 255 and without WIDE_ZERO, signed bytes and first -128."""
    u = np.random.default_rng(top).integers(0, top + 1, shape, dtype=np.uint8)
    u[0] = 128 if top == 255 and not WIDE_ZERO else top
    return u


def weight_values(u: Array, top: int) -> Array:
    return (u.view(np.int8) if top == 255 and not WIDE_ZERO else u).astype(np.int64)


@pytest.mark.parametrize(("top", "steps"), PRODUCTS)
def test_dots_are_exact(top: int, steps: int) -> None:
    dots, vectors = simd.dots(top), make_vectors(simd.load_int, steps)

    @njit
    def loop(u: Any, x: Any, out: Any) -> None:
        simd.store_int(out, dots(simd.splat_int(7), vectors(u), x))

    u = weight_bytes(top, (steps, LANES, 4))
    for x in (-127, 127, 1):
        inputs, out = np.full(4 * steps, x, np.int8), aligned((LANES,), np.int32)
        inputs[5:9] = (-127, 127, 0, -1)
        loop(u.ctypes.data, inputs.ctypes.data, out.ctypes.data)
        want = 7 + np.einsum("klb,kb->l", weight_values(u, top), inputs.reshape(steps, 4).astype(np.int64))
        assert np.array_equal(out, want)


_table = simd.byte_table("test_table", [(7 * i + 200) % 256 for i in range(16)])


def test_byte_table_looks_at_the_lower_half() -> None:
    indices = np.arange(4 * 256, dtype=np.uint8) % 128
    want = (7 * (indices.astype(np.int32) % 16) + 200).astype(np.uint8)
    assert_same_bits(lanewise(_table, "I:I")(indices.view(np.int32)), want.view(np.int32))


def test_high_nibbles() -> None:
    want = WORDS.view(np.uint8) >> 4
    assert_same_bits(lanewise(simd.high_nibbles, "I:I")(WORDS), want.view(np.int32))


@pytest.mark.parametrize("to", [0, 3, 4, 7])
def test_bits_to_bytes_looks_at_the_lowest_four(to: int) -> None:
    words = np.arange(64, dtype=np.int32) * np.int32(0x01234567)
    want = ((words[:, None] >> np.arange(4) & 1) << to).astype(np.uint8)
    assert_same_bits(lanewise(simd.bits_to_bytes(to), "I:I")(words), want.reshape(-1).view(np.int32))


def test_parity() -> None:
    seven = np.resize(np.arange(128, dtype=np.uint8), 1024)
    np.random.default_rng(1).shuffle(seven)
    odd = np.unpackbits(seven[:, None], axis=1).sum(axis=1, dtype=np.uint8) % 2
    assert_same_bits(lanewise(simd.with_parity, "I:I")(seven.view(np.int32)), (seven | odd << 7).view(np.int32))


def test_bytes_of_shorts() -> None:
    a, b = integers(64, 1), integers(64, 2)
    shorts = np.stack([a, b], axis=1).view(np.uint16)
    for operation, want in ((simd.low_bytes, shorts & 255), (simd.high_bytes, shorts >> 8)):
        assert_same_bits(lanewise(operation, "II:I")(a, b), want.astype(np.uint8).view(np.int32).reshape(-1))


# ---- register tiles ----------------------------------------------------------------------------------------------

TILES = [(1, 1), (1, 2), (2, 2), (4, 2), (1, 4), (3, 4)]
"""m rows and n vectors."""
VECTOR = 4 * LANES


def make_vectors(load: Any, count: int) -> Any:
    """A tuple of 1, 2, 4 or 8 vectors from neighbouring memory."""

    @njit
    def four(a: Any) -> Any:
        return load(a), load(a + VECTOR), load(a + 2 * VECTOR), load(a + 3 * VECTOR)

    @njit
    def vectors(a: Any) -> Any:
        if count == 1:
            return (load(a),)
        if count == 2:
            return load(a), load(a + VECTOR)
        return four(a) if count == 4 else four(a) + four(a + 4 * VECTOR)

    return vectors


@pytest.mark.parametrize(("m", "n"), TILES)
def test_float_tiles(m: int, n: int) -> None:
    vectors, row, size = make_vectors(simd.load, n), VECTOR * n, VECTOR * n * m
    count = m * n

    @njit
    def loop(b: Any, x: Any, stride: Any, out: Any) -> None:
        tile = simd.load_tile(simd.zeros(count), out, row, n)
        left = simd.load_tile(simd.zeros(m), b, VECTOR, 1)
        simd.store_tile(simd.outer_fma(tile, x, stride, vectors(b)), out + size, row, n)
        simd.store_tile(simd.tile_fma(tile, left, vectors(b)), out + 2 * size, row, n)
        simd.store_sums(tile, out + 3 * size, row, n)
        simd.store_tile(simd.halves_fma(tile, x, x + 4, stride, vectors(b)), out + 4 * size, row, n)
        simd.store_tile(simd.tile_scale(tile, tile, vectors(b)), out + 5 * size, row, n)

    out = aligned((6, m, n, LANES), np.float32)
    out[0] = floats(m * n * LANES, 1).reshape(m, n, LANES)
    b, x = floats(max(m, n) * LANES, 2).reshape(-1, LANES), floats(3 * m, 3)
    loop(b.ctypes.data, x.ctypes.data, 12, out.ctypes.data)
    assert_same_bits(out[1], reference.fma(x[::3, None, None], b[:n], out[0]))
    assert_same_bits(out[2], reference.fma(b[:m, None], b[:n], out[0]))
    assert_same_bits(np.ascontiguousarray(out[3].reshape(m, -1)[:, :n]), reference.sum_lanes(out[0]))
    factors = np.stack([x[2 * j // n :: 3] for j in range(n)], axis=1)
    assert_same_bits(out[4], reference.fma(factors[:, :, None], b[:n], out[0]))
    assert_same_bits(out[5], reference.fma(out[0], b[:n], out[0]))


@pytest.mark.parametrize(("m", "n"), TILES)
def test_integer_tiles(m: int, n: int) -> None:
    ints, scales = make_vectors(simd.load_int, n), make_vectors(simd.load, n)
    row, size, count = VECTOR * n, VECTOR * n * m, m * n

    @njit
    def loop(u: Any, x: Any, scale: Any, out: Any) -> None:
        start = simd.broadcast_rows(x, 8, simd.zeros_int(count), ints(u))
        total = simd.broadcast_rows(x + 4, 8, simd.zeros_int(count), ints(u))
        simd.store_tile(start, out, row, n)
        simd.store_tile(simd.tile_mul_add(start, total, ints(u)), out + size, row, n)
        like = simd.load_tile(simd.zeros(count), scale, row, n)
        simd.store_tile(simd.outer_scale(like, total, scale, 8, scales(scale)), out + 2 * size, row, n)

    u, x = integers(n * LANES, 3).reshape(n, LANES), integers(2 * m, 1).reshape(m, 2)
    scale, out = floats(m * n * LANES, 2).reshape(m, n, LANES), aligned((3, m, n, LANES), np.int32)
    loop(u.ctypes.data, x.ctypes.data, scale.ctypes.data, out.ctypes.data)
    start, total = (np.broadcast_to(x[:, i, None, None], (m, n, LANES)) for i in (0, 1))
    assert np.array_equal(out[0], start)
    assert_same_bits(out[1], (start + total.astype(np.int64) * u).astype(np.int32))
    inputs = scale.ravel()[0 : 2 * m : 2, None, None]
    want = reference.fma(total.astype(np.float32), scale[0] * inputs, scale)
    assert_same_bits(out[2].view(np.float32), want)


@pytest.mark.parametrize(("top", "steps"), PRODUCTS)
@pytest.mark.parametrize(("m", "n"), [(1, 2), (2, 2), (4, 2)])
def test_products_of_tiles_are_exact(m: int, n: int, steps: int, top: int) -> None:
    dots, row, count, apart = simd.outer_dots(top), VECTOR * n, m * n, (steps + 1) * VECTOR

    @njit
    def loop(u: Any, x: Any, out: Any) -> None:
        like = simd.load_tile(simd.zeros(n), u, VECTOR, 1)
        start = simd.broadcast_rows(x, 44, simd.zeros_int(count), like)
        simd.store_tile(dots(start, x + 4, 44, u, apart, n, steps), out, row, n)

    u, x = weight_bytes(top, (n, steps + 1, LANES, 4)), np.zeros((m, 44), np.int8)
    x[:, :4] = integers(m, 1).view(np.int8).reshape(m, 4) >> 4
    x[:, 4:] = np.random.default_rng(1).integers(-127, 128, (m, 40))
    x[0, 4:20] = -127
    out = aligned((m, n, LANES), np.int32)
    loop(u.ctypes.data, x.ctypes.data, out.ctypes.data)
    inputs = x[:, 4 : 4 + 4 * steps].reshape(m, steps, 4).astype(np.int64)
    total = np.einsum("nklb,mkb->mnl", weight_values(u[:, :steps], top), inputs)
    assert np.array_equal(out, x[:, :4].copy().view(np.int32)[:, :, None] + total)
