"""Routing: the choice of experts, the groups of rows, and the weighted sum, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.kernels.layout import group_words
from edge_gemma.kernels.operations import COMBINE, DISPATCH, ROUTE
from edge_gemma.kernels.reference import experts as reference
from tests.kernels.harness import Array, Step, assert_same_bits, row, run

THREADS = [1, 2, 3]
SHAPES = [(8, 2), (128, 8), (5, 5), (1, 1)]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def route(logits: Array, k: int, factor: float, scales: Array | None, threads: int = 1) -> tuple[Array, Array]:
    tokens, columns = logits.shape
    experts, shares = np.full((tokens + 1, k), -7), np.full((tokens + 1, k), np.float32(-7))
    operation = row(
        ROUTE, "router.route", x=logits, x_stride=logits.strides[0], columns=columns, choices=k, factor=factor,
        scales=0 if scales is None else scales, experts=experts, shares=shares,
    )  # fmt: skip
    run([operation], Step(tokens), threads)
    assert (experts[-1] == -7).all() and (shares[-1] == -7).all()
    return experts[:-1], shares[:-1]


def assert_routed(logits: Array, k: int, factor: float = 1.0, scales: Array | None = None) -> Array:
    """As the definition has it; the shares."""
    experts, shares = reference.route(logits, k, factor, scales)
    for threads in THREADS:
        got = route(logits, k, factor, scales, threads)
        assert_same_bits(got[0].astype(np.int32), experts.astype(np.int32))
        assert_same_bits(got[1], shares)
    return shares


@pytest.mark.parametrize(("columns", "k"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_choices_are_the_definition(tokens: int, columns: int, k: int) -> None:
    logits = 30 * random(tokens, columns + 3)[:, :columns]
    assert_routed(logits, k)
    assert_routed(logits, k, 2816**-0.5, random(columns))


def test_the_definition_is_a_softmax_of_which_the_largest_are_divided_by_their_sum() -> None:
    logits, scales, factor = 40 * random(50, 128), random(128, seed=1), 0.25
    powers = np.exp(logits.astype(np.float64) * factor)
    p = powers / powers.sum(axis=1, keepdims=True)
    best = np.argsort(-p, axis=1)[:, :8]
    top = np.take_along_axis(p, best, axis=1)
    experts, shares = reference.route(logits, 8, factor, scales)
    assert (experts == best).all()
    np.testing.assert_allclose(shares, top / top.sum(axis=1, keepdims=True) * scales[best], rtol=2e-6)


def test_equal_logits_go_by_number() -> None:
    logits = np.zeros((2, 20), np.float32)
    logits[1, 7:] = 1.0
    assert_routed(logits, 4)
    assert route(logits, 4, 1.0, None)[0].tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_not_hidden(bad: float) -> None:
    """Choices stay different experts, so that no one has more rows than the step."""
    logits = random(4, 12)
    logits[1, 5], logits[3] = bad, bad
    shares = assert_routed(logits, 12)
    assert np.isnan(shares).all(axis=1).tolist() == [False, True, False, True]
    experts, _ = route(logits, 12, 1.0, None)
    assert (np.sort(experts, axis=1) == np.arange(12)).all()


@pytest.mark.parametrize(("columns", "k"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_groups_are_the_definition(tokens: int, columns: int, k: int) -> None:
    experts = np.argsort(random(tokens, columns), axis=1)[:, :k].copy()
    groups, rows, places = (np.full(n + 1, -7) for n in (group_words(columns), tokens * k, tokens * k))
    operation = row(
        DISPATCH, "router.dispatch", experts=experts, columns=columns, choices=k, groups=groups, rows=rows,
        places=places,
    )  # fmt: skip
    run([operation], Step(tokens), threads=2)
    want, want_rows, want_places = reference.dispatch(experts)
    chosen, words = int(groups[0]), groups[1:].tolist()
    assert list(zip(words[0 : 2 * chosen : 2], words[1 : 2 * chosen : 2], strict=True)) == want
    assert words[2 * chosen + 1] == tokens * k
    assert (rows[:-1] == want_rows).all() and (places[:-1].reshape(tokens, k) == want_places).all()
    assert groups[-1] == rows[-1] == places[-1] == -7


@pytest.mark.parametrize("columns", [32, 96, 640])
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_sums_are_the_definition(k: int, tokens: int, columns: int) -> None:
    x, shares = random(tokens * k, columns + 16)[:, :columns], random(tokens, k)
    places = np.random.default_rng(k).permutation(tokens * k).reshape(tokens, k)
    want = reference.combine(x, shares, places)
    np.testing.assert_allclose(want, (shares[..., None] * x[places]).sum(axis=1), rtol=1e-5, atol=1e-5)
    for threads in THREADS:
        y = np.full((tokens, columns + 16), np.float32(9))
        operation = row(
            COMBINE, "router.combine", x=x, x_stride=x.strides[0], choices=k, shares=shares, places=places, y=y,
            y_stride=y.strides[0], columns=columns,
        )  # fmt: skip
        run([operation], Step(tokens), threads)
        assert (y[:, columns:] == 9).all()
        assert_same_bits(y[:, :columns].copy(), want)
