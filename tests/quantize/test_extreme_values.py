"""Encoders of all formats with values and importances of any size that float32 has, from 1e-45 on.

What is expected is plain: the result is finite; no value is off by more than half the width of its block, from the
least value or 0 to the greatest or 0, even where it does not matter by more than the width; and what matters is
encoded about as well as by rounding to the nearest level. `tolerance` says what tiny values may become.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.encode.rows import ENCODED
from edge_gemma.quantize import blocks
from tests.quantize.test_encoders import decode, normal, plain, tolerance

Floats = NDArray[np.float32]

COLUMNS = 256
SIZES = np.logspace(-45, -6, 4 * 39 + 1)
"""Four to a decade: squares of 32 values of about 2e-20 have a sum whose inverse overflows only when multiplied."""

IMPORTANCES = {
    "least": np.full(COLUMNS, 1e-45),
    "tiny": np.full(COLUMNS, 3e-30),
    "squares underflow": np.full(COLUMNS, 2.3e-20),
    "squares overflow": np.full(COLUMNS, 5e19),
    "largest": np.full(COLUMNS, 3.4e38),
    "zeros": np.zeros(COLUMNS),
    "one": np.eye(1, COLUMNS, 77)[0] * 1e-30,
    "every other": np.arange(COLUMNS) % 2 * 1e38,
    "of 80 orders": 10.0 ** np.random.default_rng(1).uniform(-45, 38, COLUMNS),
    "of 20 orders": 10.0 ** np.random.default_rng(2).uniform(-20, 0, COLUMNS),
    "other orders in each block": 10.0
    ** (np.repeat(np.arange(8.0) * 10 - 40, 32) + np.random.default_rng(3).uniform(0, 8, COLUMNS)),
}


def by_block(rows: Floats, name: str) -> Floats:
    return rows.reshape(len(rows), -1, FORMATS[name].block)


def widths(values: Floats, name: str) -> Floats:
    """Of the range of each block's values and 0: (rows, blocks)."""
    parts = by_block(values, name)
    return np.maximum(parts.max(axis=2), 0) - np.minimum(parts.min(axis=2), 0)


def check_near(values: Floats, name: str, importance: Floats | None = None, part: float = 0.5) -> None:
    """Finite, and each within `part` of its block's width."""
    got = decode(blocks.encode(values, name, importance), name)
    assert np.isfinite(got).all()
    errors = by_block(np.abs(got - values), name).max(axis=2)
    worst = np.argmax(errors - part * widths(values, name))
    row = values[worst // errors.shape[1]]
    assert (errors <= part * widths(values, name) + tolerance(name)).all(), (
        f"{row.min()} to {row.max()}: {errors.flat[worst]}"
    )


def outliers(size: float) -> Floats:
    """Rows of one value each, but for an outlier, which in the first ones is none."""
    rows = np.full((12, COLUMNS), size, np.float32)
    rows[1::2] *= -1
    rows[2:4, 100], rows[4:6, 0], rows[6:8, 5], rows[8:10, 255], rows[10:, 31] = 1e-5, 1.0, -1.0, 6e4, -6e4
    return rows


def mixed(seed: int, least: float, most: float) -> Floats:
    """Values of both signs and all orders of magnitude in between, in each row; a third of them zeros."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** rng.uniform(np.log10(least), np.log10(most), (64, COLUMNS)) * rng.choice([-1, 0, 1], (64, COLUMNS))
    return values.astype(np.float32)


@pytest.mark.parametrize("name", ENCODED)
def test_an_outlier_of_tiny_values_is_kept(name: str) -> None:
    check_near(np.concatenate([outliers(size) for size in SIZES]), name)


@pytest.mark.parametrize("name", ENCODED)
def test_small_normal_values_of_any_size(name: str) -> None:
    check_near(np.concatenate([normal(2, COLUMNS, seed=21) * np.float32(size) for size in SIZES]), name)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize(("least", "most"), [(1e-45, 6e4), (1e-30, 1.0), (1e-22, 1e-18), (1e-45, 1e-37)])
def test_mixtures_of_orders_of_magnitude(name: str, least: float, most: float) -> None:
    check_near(mixed(22, least, most), name)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("kind", IMPORTANCES)
def test_importances_of_any_size(name: str, kind: str) -> None:
    importance = IMPORTANCES[kind].astype(np.float32)
    equal = bool((importance == importance[0]).all())
    for values in (normal(16, COLUMNS, seed=23), mixed(24, 1e-45, 6e4), mixed(25, 1e-3, 1.0)):
        check_near(values, name, importance, part=0.5 if equal else 1.0)
        assert (excess(values, name, importance) <= 0.05).all()


def excess(values: Floats, name: str, importance: Floats) -> Floats:
    """Weighted error of each block above that of rounding to nearest, in widths; its largest weight is 1."""
    weights = by_block(importance[None].astype(np.float64), name)
    weights /= np.maximum(weights.max(axis=2, keepdims=True), 1e-300)

    def of(decoded: Floats) -> Floats:
        return np.sqrt((weights * by_block(decoded.astype(np.float64) - values, name) ** 2).sum(axis=2))

    return (of(decode(blocks.encode(values, name, importance), name)) - of(plain(values, name))) / (
        widths(values, name) + tolerance(name)
    )


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("exponent", [-110, -70, -40, 40, 70, 110])
def test_only_ratios_of_importance_count_within_a_block(name: str, exponent: int) -> None:
    values = normal(4, 2 * COLUMNS, seed=26)
    importance = np.exp(normal(1, 2 * COLUMNS, seed=27))[0]
    scaled = importance.copy()
    scaled[COLUMNS:] = np.ldexp(importance[COLUMNS:], exponent)
    assert np.array_equal(blocks.encode(values, name, scaled), blocks.encode(values, name, importance))


@pytest.mark.parametrize("name", ENCODED)
def test_a_block_without_importance_is_encoded_as_if_all_were_equal(name: str) -> None:
    values, ones = normal(4, COLUMNS, seed=28), np.ones(COLUMNS, np.float32)
    assert np.array_equal(blocks.encode(values, name, 0 * ones), blocks.encode(values, name, ones))
