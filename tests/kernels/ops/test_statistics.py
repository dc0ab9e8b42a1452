"""Sums of squares of columns, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.kernels.operations import SQUARES
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import Array, Step, assert_same_bits, row, run


def defined(x: Array) -> Array:
    total = np.zeros(x.shape[1], np.float32)
    for values in x:
        total = reference.fma(values, values, total)
    return total


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [32, 64, 96, 640])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_squares(rows: int, columns: int, threads: int) -> None:
    rng = np.random.default_rng(rows + columns)
    memory = np.full((rows, columns + 16), np.float32(9))
    x = memory[:, :columns]
    x[:] = rng.standard_normal(x.shape) * 100
    sums = np.full(columns + 16, np.float32(9))
    operation = row(SQUARES, "statistics.squares", x=x, x_stride=x.strides[0], columns=columns, sums=sums)
    run([operation], Step(rows), threads)
    assert_same_bits(sums[:columns], defined(x))
    assert (sums[columns:] == 9).all()
    np.testing.assert_allclose(sums[:columns], (x.astype(np.float64) ** 2).sum(axis=0), rtol=1e-5)
