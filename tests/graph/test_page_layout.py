"""Keys and values position by position: what the kernels' twin has written to a page, and back again."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.graph.page_layout import page_of, plain_of
from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import LANES, SPAN
from edge_gemma.kernels.reference import operations as reference

STATES = [AttentionState(1, 32), AttentionState(4, 64)]
COUNTS = sorted({1, 2, LANES - 1, LANES, LANES + 1, 100, SPAN - 1, SPAN})


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("count", COUNTS)
def test_what_is_appended_to_a_page(state: AttentionState, count: int, kind: type[np.floating]) -> None:
    shape, size = (count, state.kv_heads, state.head_dim), np.dtype(kind).itemsize
    k, v = (np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in (1, 2))
    pages = np.full((1, 2, state.kv_heads, SPAN * state.head_dim), np.nan, kind)
    reference.append(k, v, pages, [[0]] * count, range(count))
    plain = plain_of(pages.view(np.uint8).reshape(-1), state, count, size)
    expected = np.stack([k, v], axis=1).astype(kind)
    assert plain.shape == expected.shape and np.array_equal(plain.view(kind), expected)

    page = page_of(plain, state)
    assert page.nbytes == pages.nbytes
    assert np.array_equal(plain_of(page, state, count, size), plain)
    assert not plain_of(page, state, SPAN, size)[count:].any()
