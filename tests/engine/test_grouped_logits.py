"""Rows with the maxima of their groups: what is found by them is what a search of the whole row finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma import NumericalError
from edge_gemma.engine.grouped_logits import GroupedLogits, kth_largest
from edge_gemma.kernels.layout import LOGIT_GROUP
from edge_gemma.kernels.reference.operations import group_maxima

Array = np.ndarray[Any, Any]


@st.composite
def rows(draw: st.DrawFn) -> Array:
    """Some hundred groups, the last one full or not; ties or none; some at -inf; some that stand out, the last too."""
    size, rng = draw(st.integers(1, 20_000)), np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(0, 3, size)
    logits[rng.random(size) < draw(st.sampled_from([0.0, 0.5, 0.999]))] = -np.inf
    logits[[*rng.integers(0, size, draw(st.integers(0, 9))), -1]] = rng.normal(12, 2)
    step = draw(st.sampled_from([0.0, 0.5, 4.0]))
    return (np.round(logits / step) * step if step else logits).astype(np.float32)


def grouped(logits: Array) -> GroupedLogits:
    """With maxima as the kernel finds them."""
    return GroupedLogits(logits, group_maxima(logits[None])[0])


@given(rows())
def test_maxima_are_found_here_as_by_the_kernel(logits: Array) -> None:
    assert np.array_equal(GroupedLogits(logits).maxima, grouped(logits).maxima)


@pytest.mark.parametrize("at", range(2 * LOGIT_GROUP + 7))
def test_nan_in_any_place_is_seen(at: int) -> None:
    logits = np.zeros(2 * LOGIT_GROUP + 7, np.float32)
    logits[at] = np.nan
    with pytest.raises(NumericalError, match="largest logit is nan"):
        GroupedLogits(logits).largest()


@given(rows())
def test_largest(logits: Array) -> None:
    row = grouped(logits)
    assert row.largest() == logits.max()
    assert row.first_largest() == logits.argmax()


@settings(deadline=None)
@given(rows(), st.floats(0, 1), st.integers(0, 20))
def test_at_least(logits: Array, share: float, steps: int) -> None:
    """Bounds near the top, where few groups are looked at, and anywhere."""
    near_top, anywhere = np.sort(logits)[-min(steps + 1, logits.size)], np.quantile(logits, share, method="lower")
    for bound in (float(near_top), float(anywhere)):
        ids, values = grouped(logits).at_least(bound)
        assert ids.tolist() == np.flatnonzero((logits >= bound) & (logits > -np.inf)).tolist()
        assert np.array_equal(values, logits[ids])


@given(rows(), st.integers(1, 300))
def test_as_many_as_asked_for_reach_the_bound(logits: Array, k: int) -> None:
    """And no more than are in the groups that the k largest maxima are of, but for ties."""
    row = grouped(logits)
    bound = row.bound_of(k)
    assert np.count_nonzero(logits >= bound) >= min(k, logits.size)
    assert bound == -math.inf or np.count_nonzero(row.maxima > bound) < k


@given(rows(), st.integers(1, 400))
def test_kth_largest(values: Array, k: int) -> None:
    k = min(k, values.size)
    assert kth_largest(values, k) == np.sort(values)[-k]


@settings(deadline=None)
@given(rows(), st.data())
def test_a_changed_row_has_the_maxima_of_the_changed_logits(logits: Array, data: st.DataObject) -> None:
    """Tokens that were the largest of their groups or were not, raised, lowered or left as they were."""
    row, before = grouped(logits), logits.copy()
    maxima = row.maxima.copy()
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, logits.size - 1), max_size=40))), np.int64)
    factors, shift = data.draw(st.sampled_from([0.5, 1.0, 2.0])), data.draw(st.sampled_from([-9.0, 0.0, 9.0]))
    changed = before.copy()
    changed[ids] = before[ids] * np.float32(factors) + np.float32(shift)
    with row.changed(ids, changed[ids]) as inside:
        assert inside.logits.tobytes() == changed.tobytes()
        assert np.array_equal(inside.maxima, group_maxima(changed[None])[0])
    assert logits.tobytes() == before.tobytes() and np.array_equal(row.maxima, maxima)


@pytest.mark.parametrize("changes", [[1e9], [], [-math.inf]])
def test_a_changed_row_is_restored_after_an_error(changes: list[float]) -> None:
    logits = np.array([np.nan, -0.0, 1, 2], np.float32)
    logits.view(np.uint32)[0] |= 0x1234
    before, ids = logits.tobytes(), np.arange(len(changes))
    with pytest.raises(KeyboardInterrupt), grouped(logits).changed(ids, np.array(changes, np.float32)):
        raise KeyboardInterrupt
    assert logits.tobytes() == before


def test_what_must_not_be_written_to_is_not() -> None:
    logits = np.array([1, 2, 3], np.float32)
    logits.flags.writeable = False
    with grouped(logits).changed(np.array([1]), np.array([9], np.float32)) as inside:
        assert inside.logits.tolist() == [1, 9, 3] and inside.first_largest() == 1
        assert logits.tolist() == [1, 2, 3]
