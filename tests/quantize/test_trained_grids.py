"""Q4_0 of weights that were trained for it: they lie on a grid, which is found."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_gemma.kernels.reference.encode import q4_0, q4_0_scales
from edge_gemma.quantize import blocks
from tests.quantize.test_block_bytes import SMALLEST, edge_values, reference

Floats = NDArray[np.float32]


def bfloat(values: Floats) -> Floats:
    """Rounded to bfloat16, halves to even."""
    return blocks.decode(blocks.encode(values, "BF16"), "BF16")


def half(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def grids(least: int, most: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Scales of both signs, (n,), and multiples within least..most, (n, 32), whose extreme is in every block."""
    rng = np.random.default_rng(seed)
    scales = half(rng.choice([-1, 1], 4096) * np.exp(rng.uniform(np.log(1e-3), np.log(1.0), 4096)).astype(np.float32))
    numbers = rng.integers(least, most + 1, (4096, 32))
    numbers[np.arange(4096), rng.integers(0, 32, 4096)] = least if -least >= most else most
    return scales, numbers


RANGES = [(-8, 7), (-7, 7), (-6, 7), (-7, 5), (-6, 6), (-5, 5), (-4, 4), (-3, 3), (-1, 1), (-2, 7), (0, 7), (-8, 0)]


@pytest.mark.parametrize(("least", "most"), RANGES)
def test_weights_on_a_grid_are_reproduced(least: int, most: int) -> None:
    """To the bit, where the scale is a float16."""
    scales, numbers = grids(least, most)
    values = scales[:, None] * numbers.astype(np.float32)
    assert np.array_equal(blocks.decode(blocks.encode(values, "Q4_0"), "Q4_0"), values)


@pytest.mark.parametrize(("least", "most"), RANGES)
def test_a_scale_of_more_digits_is_rounded_and_nothing_else(least: int, most: int) -> None:
    scales, numbers = grids(least, most)
    scales = scales * np.float32(1.0001234)
    values = scales[:, None] * numbers.astype(np.float32)
    found = blocks.decode(blocks.encode(values, "Q4_0"), "Q4_0")
    assert (np.abs(found - values) <= np.abs(values) * 2.0**-11 * 1.001 + 8 * 2.0**-25).all()


@pytest.mark.parametrize("rounded", [bfloat, half])
@pytest.mark.parametrize(("least", "most"), [(-8, 7), (-7, 7), (-6, 6), (-5, 5)])
def test_a_checkpoint_of_few_digits_shows_its_grid(least: int, most: int, rounded: object) -> None:
    """Weights saved as bfloat16 or float16: the multiples are found again, and the scale nearly."""
    scales, numbers = grids(least, most)
    exact = scales[:, None] * numbers.astype(np.float32)
    values = bfloat(exact) if rounded is bfloat else half(exact)
    found = blocks.decode(blocks.encode(values, "Q4_0"), "Q4_0")
    assert (np.abs(found - exact) <= np.abs(exact) * (2.0**-8 + 2.0**-11) * 1.01).all()
    assert np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)) < 2e-3


def test_the_reference_misses_grids_without_its_extreme() -> None:
    """What all this is for."""
    scales, numbers = grids(-7, 7)
    values = scales[:, None] * numbers.astype(np.float32)
    found = gguf.quants.dequantize(reference(values, "Q4_0"), gguf.GGMLQuantizationType.Q4_0)
    assert np.sqrt(np.mean((found - values) ** 2) / np.mean(values**2)) > 0.05


@pytest.mark.parametrize("spread", [1e-20, 1e-3, 1.0, 3e3])
def test_blocks_on_no_grid_are_the_references(spread: float) -> None:
    values = (np.random.default_rng(1).standard_normal((2048, 1024)) * spread).astype(np.float32)
    for one in (values, bfloat(values)):
        assert np.array_equal(blocks.encode(one, "Q4_0"), reference(one, "Q4_0"))


def test_a_grid_that_one_value_misses_is_none() -> None:
    scales, numbers = grids(-7, 7)
    values = scales[:, None] * numbers.astype(np.float32)
    values[:, 3] += np.abs(scales) * np.float32(0.25)
    peak = np.abs(values).argmax(axis=1)
    values = values[peak != 3]
    assert np.array_equal(blocks.encode(values, "Q4_0"), reference(values, "Q4_0"))


@settings(max_examples=300, deadline=None)
@given(data=hnp.arrays(np.float32, (3, 64), elements=edge_values))
def test_bytes_are_the_twins(data: Floats) -> None:
    largest = np.abs(data).reshape(-1, 32).max(axis=1)
    data.reshape(-1, 32)[(largest > 0) & (largest < SMALLEST)] = 0
    assert np.array_equal(blocks.encode(data, "Q4_0"), q4_0(data))


@pytest.mark.parametrize(("least", "most"), RANGES)
def test_bytes_of_grids_are_the_twins(least: int, most: int) -> None:
    scales, numbers = grids(least, most, seed=1)
    exact = scales[:, None] * numbers.astype(np.float32)
    noise = np.random.default_rng(3).uniform(-0.012, 0.012, exact.shape).astype(np.float32) * exact
    for values in (exact, bfloat(exact), exact + noise):
        assert np.array_equal(blocks.encode(values, "Q4_0"), q4_0(values))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_twin_is_the_reference_off_grids(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)
    peaks = values[np.arange(64), np.abs(values).argmax(axis=1)]
    assert np.array_equal(q4_0_scales(values), peaks / np.float32(-8))
    assert np.array_equal(q4_0(values), reference(values, "Q4_0"))
