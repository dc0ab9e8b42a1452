"""Arithmetic and conversions of the SIMD vocabulary against plain arithmetic, at the ends of their range."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from numba import njit

from edge_gemma.kernels.layout import LANES, SUMS
from edge_gemma.kernels.reference import operations as reference
from edge_gemma.kernels.simd import vocabulary as simd
from tests.kernels.compiled import lanewise
from tests.kernels.harness import Array, assert_same_bits
from tests.kernels.simd.values import INF, LEFT, NAN, OTHERS, RIGHT, SPECIAL, WORDS, floats

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
