"""Sums of squares of columns, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.kernels.layout import group_words
from edge_gemma.kernels.operations import EXPERT_SQUARES, SQUARES
from edge_gemma.kernels.reference import experts as routing
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


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (5, 96), (37, 640)])
def test_squares_of_experts(rows: int, columns: int, grouped: bool, threads: int) -> None:
    """Of those that were chosen the rows they were given, of the others none."""
    rng, E = np.random.default_rng(rows), 9
    experts = np.stack([rng.permutation(E - 1)[:2] for _ in range(rows)])
    groups, sources, _ = routing.dispatch(experts)
    flat = [len(groups), *(n for group in groups for n in group), -1, experts.size]
    words = np.array(flat + [-1] * (group_words(E) - len(flat)))
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    x = x[sources].copy() if grouped else x
    sums, counts = np.full((E + 1, columns), np.float32(9)), np.full(E + 1, 9)
    operation = row(
        EXPERT_SQUARES, "statistics.expert_squares", x=x, x_stride=x.strides[0], columns=columns, experts=E,
        groups=words, sources=0 if grouped else sources, sums=sums, counts=counts,
    )  # fmt: skip
    run([operation], Step(rows), threads)
    given = x if grouped else x[sources]
    by_pair = np.sort(experts.reshape(-1))
    for e in range(E):
        assert_same_bits(sums[e], defined(given[by_pair == e]) if (by_pair == e).any() else np.zeros_like(sums[e]))
    assert counts.tolist() == [*np.bincount(by_pair, minlength=E).tolist(), 9] and (sums[E] == 9).all()
