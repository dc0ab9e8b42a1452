"""exp, tanh, GELU and SiLU: the bounds their module claims, their edges, and the definition's very bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_gemma.kernels.reference import operations as reference
from edge_gemma.kernels.simd import transcendental as functions
from tests.kernels.compiled import lanewise
from tests.kernels.harness import Array, assert_same_bits

DENSE = 1 << 19


def gelu_exactly(x: Array) -> Array:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * inner))


def silu_exactly(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def inputs(low: float, high: float) -> Array:
    """An even grid, and floats of every exponent down to the subnormals."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, DENSE, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([np.linspace(low, high, DENSE, dtype=np.float32), bits[(bits >= low) & (bits <= high)]])


def ulps(got: Array, exact: Array) -> Array:
    """Errors in units of the result's last place, of results that are normal numbers."""
    error = np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))
    return error[np.abs(exact) >= np.finfo(np.float32).tiny]


@pytest.mark.parametrize(
    ("function", "exactly", "low", "high", "bound"),
    [
        (functions.exp, np.exp, -87.336, 88.376, 1.1),
        (functions.tanh, np.tanh, -12.0, 12.0, 2.6),
        (functions.gelu, gelu_exactly, -1.0, 50.0, 2.7),
        (functions.silu, silu_exactly, -87.0, 90.0, 2.7),
    ],
)
def test_bounds(function: Any, exactly: Callable[[Array], Array], low: float, high: float, bound: float) -> None:
    x = inputs(low, high)
    assert ulps(lanewise(function, "F:F")(x), exactly(x.astype(np.float64))).max() <= bound


def test_gelu_of_negative_inputs_is_absolutely_near() -> None:
    """Its relative error grows with the exponent, as that of any e^u does."""
    x = inputs(-100.0, 0.0)
    assert np.abs(lanewise(functions.gelu, "F:F")(x) - gelu_exactly(x.astype(np.float64))).max() <= 6e-8


EDGES = {
    functions.exp: {
        0.0: 1.0, np.inf: 2.4061436e38, 100.0: 2.4061436e38, -np.inf: 0.0, -87.7: 0.0, 1e-45: 1.0,
    },
    functions.tanh: {np.inf: 1.0, -np.inf: -1.0, 0.0: 0.0, 3e38: 1.0, -3e38: -1.0, 1e-45: 1e-45, -1e-45: -1e-45},
    functions.gelu: {np.inf: np.inf, 3e38: 3e38, 0.0: 0.0, 1e4: 1e4},
    functions.silu: {np.inf: np.inf, 3e38: 3e38, 0.0: 0.0, 1e4: 1e4, 1e20: 1e20, 1e-45: 0.0},
}  # fmt: skip


@pytest.mark.parametrize("function", EDGES)
def test_edges(function: Any) -> None:
    x, want = np.array([*EDGES[function].items()], np.float32).T
    got = lanewise(function, "F:F")(np.ascontiguousarray(x))
    assert np.array_equal(got, want)
    assert np.isnan(lanewise(function, "F:F")(np.array([np.nan, -np.nan], np.float32))).all()


def test_monotonous_where_softmax_and_caps_rely_on_it() -> None:
    x = np.sort(inputs(-90.0, 1.0))
    assert (np.diff(lanewise(functions.exp, "F:F")(x)) >= -(2.0**-23)).all()
    assert lanewise(functions.exp, "F:F")(x[x <= 0]).max() == 1.0
    assert np.abs(lanewise(functions.tanh, "F:F")(inputs(-100.0, 100.0))).max() == 1.0


@pytest.mark.parametrize("name", ["exp", "tanh", "gelu", "silu"])
def test_the_definition_has_the_same_bits(name: str) -> None:
    x = np.concatenate([inputs(-90.0, 90.0)[::7], np.array([np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32)])
    with np.errstate(all="ignore"):
        want = getattr(reference, name)(x)
    assert_same_bits(lanewise(getattr(functions, name), "F:F")(x), want)
