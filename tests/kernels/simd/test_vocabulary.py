"""Every operation of the SIMD vocabulary against plain arithmetic, at the ends of its range."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.isa import current, may_use
from edge_gemma.kernels.layout import LANES, SUMS, WIDE_ZERO
from edge_gemma.kernels.reference import operations as reference
from edge_gemma.kernels.simd import vocabulary as simd
from edge_gemma.kernels.simd.grid_lookup import by_loads, by_permutations
from tests.kernels.compiled import lanewise
from tests.kernels.harness import Array, aligned, assert_same_bits

NAN, INF = np.float32(np.nan), np.float32(np.inf)
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan, 3.0],
    np.float32,
)
LEFT, RIGHT = (a.ravel() for a in np.meshgrid(SPECIAL, SPECIAL))
"""Every pair of special values."""


def integers(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count).astype(np.int32)


def floats(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


ENDS = np.array([0, -1, 2**31 - 1, -(2**31)], np.int32)
WORDS, OTHERS = np.concatenate([integers(256, 1), ENDS]), np.concatenate([integers(256, 2), ENDS[::-1]])


# ---- arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_float_operators(name: str) -> None:
    function = getattr(operator, name)
    with np.errstate(all="ignore"):
        assert_same_bits(lanewise(function, "FF:F")(LEFT, RIGHT), function(LEFT, RIGHT))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "and_", "or_", "xor"])
def test_integer_operators_wrap(name: str) -> None:
    function = getattr(operator, name)
    assert_same_bits(lanewise(function, "II:I")(WORDS, OTHERS), function(WORDS, OTHERS))


@pytest.mark.parametrize("count", [0, 1, 8, 31])
def test_shifts(count: int) -> None:
    amount = np.int32(count)

    @njit
    def left(a: Any) -> Any:
        return a << amount

    @njit
    def right(a: Any) -> Any:
        return a >> amount

    @njit
    def signed(a: Any) -> Any:
        return simd.shift_right_signed(a, amount)

    assert_same_bits(lanewise(left, "I:I")(WORDS), WORDS << amount)
    assert_same_bits(lanewise(right, "I:I")(WORDS), (WORDS.view(np.uint32) >> np.uint32(count)).view(np.int32))
    assert_same_bits(lanewise(signed, "I:I")(WORDS), WORDS >> amount)


def test_fma_rounds_once_where_the_cpu_does() -> None:
    rng = np.random.default_rng(0)
    a, b, c = ((rng.standard_normal(4096) * 2.0 ** rng.integers(-70, 60, 4096)).astype(np.float32) for _ in range(3))
    c[::2] = -(a * b)[::2]  # what is left is the product's rounding error
    with np.errstate(all="ignore"):
        assert_same_bits(lanewise(simd.fma, "FFF:F")(a, b, c), reference.fma(a, b, c))
        assert_same_bits(lanewise(simd.fma, "FFF:F")(LEFT, RIGHT, RIGHT[::-1]), reference.fma(LEFT, RIGHT, RIGHT[::-1]))


def test_maximum_and_minimum_take_the_second_operand_where_either_is_nan() -> None:
    unordered = np.isnan(LEFT) | np.isnan(RIGHT)
    for function, compare in ((simd.maximum, np.greater), (simd.minimum, np.less)):
        want = np.where(compare(LEFT, RIGHT) & ~unordered, LEFT, RIGHT)
        assert_same_bits(lanewise(function, "FF:F")(LEFT, RIGHT), want)


def test_other_arithmetic() -> None:
    assert_same_bits(lanewise(simd.absolute, "F:F")(SPECIAL), np.abs(SPECIAL))
    assert_same_bits(lanewise(simd.maximum_int, "II:I")(WORDS, OTHERS), np.maximum(WORDS, OTHERS))
    positive = np.concatenate([np.abs(floats(500, 3)), np.abs(SPECIAL)])
    assert_same_bits(lanewise(simd.square_root, "F:F")(positive), np.sqrt(positive))


def test_select_less_takes_the_last_operand_where_either_is_nan() -> None:
    x, y = floats(LEFT.size, 4), floats(LEFT.size, 5)
    assert_same_bits(lanewise(simd.select_less, "FFFF:F")(LEFT, RIGHT, x, y), np.where(LEFT < RIGHT, x, y))


def test_where_less_is_signed() -> None:
    x, y = floats(WORDS.size, 4), floats(WORDS.size, 5)
    x[:3] = NAN, INF, -INF
    assert_same_bits(lanewise(simd.where_less, "IIFF:F")(WORDS, OTHERS, x, y), np.where(WORDS < OTHERS, x, y))


def test_swap_pairs() -> None:
    x = floats(160, 4)
    assert_same_bits(lanewise(simd.swap_pairs, "F:F")(x), x.reshape(-1, 2)[:, ::-1].ravel())


# ---- conversions -------------------------------------------------------------------------------------------------


def test_to_float_rounds_to_even() -> None:
    large = np.array([2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1, -(2**31), 0, -1], np.int32)
    assert_same_bits(lanewise(simd.to_float, "I:F")(large), large.astype(np.float32))


def test_to_int_rounds_to_even() -> None:
    halves = np.arange(-300, 300, dtype=np.float32) / 2
    near = np.nextafter(halves, INF), np.nextafter(halves, -INF)
    ends = np.array([2**22 - 1, -(2**22) + 1, 2**21 + 0.5, 2**21 + 1.5, 127.49999, -127.50001], np.float32)
    values = np.concatenate([halves, *near, ends])
    assert_same_bits(lanewise(simd.to_int, "F:I")(values), np.rint(values).astype(np.int32))


def test_round_away_rounds_halves_away_from_zero() -> None:
    values = np.array([0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5, -126.5, 0.49999997, -0.49999997, NAN], np.float32)
    wanted = np.array([0, 0, 1, -1, 2, 3, -3, 127, -127, 0, 0, 0], np.int32)
    many = floats(256, 3) * np.float32(60)
    assert lanewise(simd.round_away, "F:I")(values).tolist() == wanted.tolist()
    assert lanewise(simd.round_away, "F:I")(many).tolist() == (np.sign(many) * np.floor(np.abs(many) + 0.5)).tolist()


def test_bits() -> None:
    assert_same_bits(lanewise(simd.bits_as_int, "F:I")(SPECIAL), SPECIAL.view(np.int32))
    assert_same_bits(lanewise(simd.bits_as_float, "I:F")(SPECIAL.view(np.int32)), SPECIAL)


def test_every_half_to_float() -> None:
    halves = np.arange(1 << 16, dtype=np.int32)
    with np.errstate(invalid="ignore"):  # of signalling NaN, on AArch64
        want = halves.astype(np.uint16).view(np.float16).astype(np.float32)
    assert_same_bits(lanewise(simd.half_to_float, "I:F")(halves), want)

    @njit
    def loaded(count: Any, a: Any, out: Any) -> None:
        for i in range(0, count, LANES):
            simd.store(out + 4 * i, simd.load_half(a + 2 * i))

    memory, got = halves.astype(np.uint16), np.zeros(1 << 16, np.float32)
    loaded(1 << 16, memory.ctypes.data, got.ctypes.data)
    assert_same_bits(got, want)


def tricky_for_half() -> Array:
    """Every half, the midpoints between neighbours, their neighbours as floats, and all ends."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].astype(np.float32)
    middles = (finite[:-1] + finite[1:]) / 2
    ends = np.array([65504, 65519.996, 65520, 1e9, np.inf, np.nan, 2.0**-25, 2.0**-24, 2.0**-26, 1e-45], np.float32)
    values = [finite, middles, np.nextafter(middles, INF), np.nextafter(middles, -INF), ends]
    both = np.concatenate(values)
    return np.concatenate([both, -both])


def test_float_to_half_rounds_to_even() -> None:
    @njit
    def stored(count: Any, a: Any, out: Any) -> None:
        for i in range(0, count, LANES):
            simd.store_half(out + 2 * i, simd.load(a + 4 * i))

    values = np.resize(tricky_for_half(), -(-tricky_for_half().size // LANES) * LANES)
    got = np.zeros(values.size, np.float16)
    stored(values.size, values.ctypes.data, got.ctypes.data)
    with np.errstate(over="ignore"):
        assert_same_bits(got, values.astype(np.float16))


# ---- memory ------------------------------------------------------------------------------------------------------


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


def test_byte_table() -> None:
    indices = np.arange(4 * 256, dtype=np.uint8) % 16
    want = (7 * indices.astype(np.int32) + 200).astype(np.uint8)
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


# ---- grids -------------------------------------------------------------------------------------------------------

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


# ---- across lanes ------------------------------------------------------------------------------------------------


def test_across_lanes() -> None:
    @njit
    def folded(a: Any, b: Any, out: Any) -> None:
        sums = simd.zeros(SUMS)
        for i in range(2 * SUMS):
            sums = simd.replace_first(sums, sums[0] + simd.load(b + 4 * LANES * i))
        simd.store_scalar(out, simd.sum_of_16(sums))
        simd.store_scalar(out + 4, simd.max_lanes(simd.load(a)))
        simd.store_scalar_int(out + 8, simd.sum_lanes_int(simd.load_int(a)))
        simd.store_scalar_int(out + 12, simd.max_lanes_int(simd.load_int(a)))

    for seed in range(20):
        values = floats(LANES, seed) * np.float32(10.0) ** np.arange(LANES, dtype=np.float32)
        addends, out = floats(32, seed).reshape(2, 16), np.zeros(4, np.float32)
        folded(values.ctypes.data, addends.ctypes.data, out.ctypes.data)
        assert out[0] == reference.sum_lanes(addends[0] + addends[1]) and out[1] == values.max()
        words = values.view(np.int32)
        assert out.view(np.int32)[2] == words.sum(dtype=np.int32) and out.view(np.int32)[3] == words.max()


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
