"""Masks and maxima of groups of logits, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.kernels.layout import LOGIT_GROUP, logit_groups
from edge_gemma.kernels.operations import GROUP_MAXIMA, MASK, STEP_MASKS
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import Array, Row, Step, assert_same_bits, row, run

COLUMNS = [1, 31, 32, 33, 63, 64, 65, 127, 4095, 4096, 4097, 5000, 12_345]
INF = np.float32(np.inf)
ODD = np.array([-INF, INF, np.nan, -np.nan, 3e38, -3e38, 1e-45], np.float32)
"""Values that a few logits are replaced by."""


def logits_of(rows: int, columns: int, odd: int = 0, gap: int = 3) -> tuple[Array, Array]:
    """Random rows, `odd` values of each replaced, and the memory they lie in: 9 in between and behind."""
    rng = np.random.default_rng(rows + columns + odd)
    memory = np.full((rows, columns + gap), np.float32(9))
    x = memory[:, :columns]
    x[:] = rng.standard_normal(x.shape) * 10
    for values in x:
        values[rng.integers(0, columns, odd)] = rng.choice(ODD, odd)
    return x, memory


def masks_of(rows: int, columns: int, seed: int = 0) -> list[Array | None]:
    """None, then all, one, half, few and none of the tokens allowed, again and again."""
    rng, size = np.random.default_rng(seed), -(-columns // 32)
    one = np.zeros(size, np.uint32)
    one[(columns - 1) // 32] = 1 << (columns - 1) % 32
    half, few = (rng.integers(0, 2**32, (n, size), dtype=np.uint32) for n in (1, 5))
    kinds = [None, np.full(size, 2**32 - 1, np.uint32), one, half[0], np.bitwise_and.reduce(few), one * np.uint32(0)]
    return [kinds[r % len(kinds)] for r in range(rows)]


def maxima_row(x: Array, y: Array) -> Row:
    return row(
        GROUP_MAXIMA, "sampling.group_maxima", x=x, x_stride=x.strides[0], columns=x.shape[1], y=y,
        y_stride=y.strides[0],
    )  # fmt: skip


def run_mask(x: Array, masks: list[Array | None], threads: int) -> None:
    addresses = np.array([0 if mask is None else mask.ctypes.data for mask in masks], np.int64)
    step = Step(len(x), words={STEP_MASKS: addresses})
    run([row(MASK, "sampling.mask", x=x, x_stride=x.strides[0], columns=x.shape[1])], step, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("columns", COLUMNS)
def test_group_maxima(columns: int, threads: int) -> None:
    for rows, odd in ((1, 0), (1, 1), (5, 3), (17, min(columns, 40))):
        x, memory = logits_of(rows, columns, odd)
        before = memory.copy()
        kept = np.full((rows, logit_groups(columns) + 5), np.float32(9))
        y = kept[:, : logit_groups(columns)]
        run([maxima_row(x, y)], Step(rows), threads)
        assert_same_bits(y.copy(), reference.group_maxima(x))
        assert (kept[:, y.shape[1] :] == 9).all()
        assert_same_bits(memory, before)


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_one_nan_in_any_place_is_seen(bad: float) -> None:
    columns = 2 * LOGIT_GROUP + 21
    x = np.tile(np.random.default_rng(1).standard_normal(columns).astype(np.float32), (columns, 1))
    x[np.arange(columns), np.arange(columns)] = bad
    y = np.zeros((columns, 3), np.float32)
    run([maxima_row(x, y)], Step(columns), 2)
    assert (np.isnan(y) == (np.arange(columns)[:, None] // LOGIT_GROUP == np.arange(3))).all()


def test_group_maxima_of_the_definition() -> None:
    x = np.arange(2 * 150, dtype=np.float32).reshape(2, 150)
    assert reference.group_maxima(x).tolist() == [[63, 127, 149], [213, 277, 299]]
    assert reference.group_maxima(-x).tolist() == [[0, -64, -128], [-150, -214, -278]]


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("columns", COLUMNS)
def test_mask(columns: int, threads: int) -> None:
    for rows, odd in ((1, 0), (3, 1), (18, min(columns, 40))):
        x, memory = logits_of(rows, columns, odd)
        masks = masks_of(rows, columns, seed=threads)
        want = reference.mask(x, masks)
        run_mask(x, masks, threads)
        assert_same_bits(x.copy(), want)
        assert (memory[:, columns:] == 9).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_mask_forbids_the_tokens_without_a_bit(columns: int, data: st.DataObject) -> None:
    allowed = sorted(data.draw(st.sets(st.integers(0, columns - 1))))
    x, _ = logits_of(1, columns)
    before, bits = x.copy(), np.zeros(-(-columns // 32), np.uint32)
    for token in allowed:
        bits[token // 32] |= np.uint32(1 << token % 32)
    run_mask(x, [bits], 2)
    assert np.flatnonzero(x[0] > -INF).tolist() == allowed
    assert (x[0, allowed] == before[0, allowed]).all()


def test_a_mask_hides_no_broken_logit() -> None:
    x = np.array([[np.nan, INF, -INF, 1.0] * 20], np.float32)
    run_mask(x, [np.zeros(3, np.uint32)], 1)
    assert np.isnan(x[0, 0::4]).all() and np.isnan(x[0, 1::4]).all() and (x[0, 2:4] == -INF).all()


def test_without_masks_nothing_is_touched() -> None:
    x, memory = logits_of(4, 5000, odd=5)
    before = memory.copy()
    run([row(MASK, "sampling.mask", x=x, x_stride=x.strides[0], columns=5000)], Step(4), 2)
    run_mask(x, [None] * 4, 2)
    assert_same_bits(memory, before)
