"""Embedding, norms, gates, sums and caps, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.kernels.operations import ADD, EMBED, GATE, GELU, NORM, SILU, SOFTCAP
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import (
    FLOAT_NAMES,
    PRODUCT_NAMES,
    Step,
    assert_same_bits,
    random_rows,
    row,
    rows_of,
    run,
    run_checked,
)

ROWS, THREADS = [1, 2, 5], [1, 2]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", [*PRODUCT_NAMES, *FLOAT_NAMES])
def test_embed(name: str, threads: int) -> None:
    columns = 512
    table, tokens = random_rows(name, 7, columns, 1), [6, 0, 3, 3, 6]
    y = rows_of(len(tokens), columns)
    arguments = {"table": table, "row_bytes": table.strides[0], "columns": columns, "y": y, "y_stride": y.strides[0]}
    step = Step(len(tokens), tokens=tokens)
    run_checked(row(EMBED, f"elementwise.embed_{name}", **arguments, scale=22.627417), step, threads, y)
    assert_same_bits(y.copy(), reference.embed(name, table[tokens], 22.627417))


@pytest.mark.parametrize(("with_base", "factor"), [(False, None), (True, None), (True, 0.8125)])
@pytest.mark.parametrize("columns", [32, 96, 640])
@pytest.mark.parametrize("tokens", ROWS)
def test_norm(tokens: int, columns: int, with_base: bool, factor: float | None) -> None:
    x, y, base = (rows_of(tokens, columns, gap) for gap in (16, 32, 48))
    weight, scalar = rows_of(1, columns)[0].copy(), np.float32([factor or 1.0])
    for threads in THREADS:
        norm = row(
            NORM, "elementwise.norm", x=x, x_stride=x.strides[0], weight=weight, columns=columns, epsilon=1e-6,
            base=base if with_base else 0, base_stride=base.strides[0], factor=scalar if factor else 0,
            y=y, y_stride=y.strides[0],
        )  # fmt: skip
        run_checked(norm, Step(tokens), threads, y)
        assert_same_bits(y.copy(), reference.norm(x, weight, 1e-6, base if with_base else None, factor or 1.0))


def test_norm_is_the_formula() -> None:
    x, weight = rows_of(3, 640).astype(np.float64), rows_of(1, 640).astype(np.float64)
    exact = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * weight
    got = reference.norm(x.astype(np.float32), weight.astype(np.float32), 1e-6)
    assert np.abs(got - exact).max() <= 1e-5


def test_norm_of_zeros_and_of_itself_in_place() -> None:
    x, weight = np.zeros((2, 64), np.float32), np.ones(64, np.float32)
    x[1] = 5.0
    stride = x.strides[0]
    run(
        [row(NORM, "elementwise.norm", x=x, x_stride=stride, weight=weight, columns=64, epsilon=1e-6, base=0,
             base_stride=0, factor=0, y=x, y_stride=stride)],
        Step(2),
    )  # fmt: skip
    assert not x[0].any() and np.allclose(x[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize("activation", [GELU, SILU])
@pytest.mark.parametrize("columns", [32, 480, 1184])
def test_gate(columns: int, activation: int) -> None:
    for tokens in ROWS:
        up, g, y = rows_of(tokens, columns), rows_of(tokens, columns) * 2, rows_of(tokens, columns, gap=8)
        wide = np.full((tokens, columns + 16), np.float32(9))
        wide[:, :columns] = g
        gate = row(
            GATE, "elementwise.gate", gate=wide, gate_stride=wide.strides[0], up=up, up_stride=up.strides[0],
            activation=activation, columns=columns, y=y, y_stride=y.strides[0],
        )  # fmt: skip
        run_checked(gate, Step(tokens), 2, y)
        assert_same_bits(y.copy(), reference.gate(g, up, activation))


@pytest.mark.parametrize("columns", [32, 480, 1184])
def test_add(columns: int) -> None:
    for tokens in ROWS:
        x, y = rows_of(tokens, columns) * 2, rows_of(tokens, columns, gap=8)
        want = reference.add(x, y)
        arguments = {"x": x, "x_stride": x.strides[0], "y": y, "y_stride": y.strides[0], "columns": columns}
        run_checked(row(ADD, "elementwise.add", **arguments), Step(tokens), 2, y)
        assert_same_bits(y.copy(), want)


def test_a_vector_is_added_to_every_row_where_its_rows_are_no_bytes_apart() -> None:
    x, y = rows_of(1, 480, gap=0), rows_of(5, 480, gap=8)
    want = reference.add(x, y)
    arguments = {"x": x, "x_stride": 0, "y": y, "y_stride": y.strides[0], "columns": 480}
    run_checked(row(ADD, "elementwise.add", **arguments), Step(5), 2, y)
    assert_same_bits(y.copy(), want)


@pytest.mark.parametrize("columns", [1, 15, 17, 512, 513, 1039])
def test_softcap(columns: int) -> None:
    """Any number of columns: vocabularies need not fill vectors."""
    for tokens in ROWS:
        x = rows_of(tokens, columns)
        x *= 20
        want = reference.softcap(x.copy(), 30.0)
        cap = row(SOFTCAP, "elementwise.softcap", x=x, x_stride=x.strides[0], columns=columns, cap=30.0)
        run_checked(cap, Step(tokens), 2, x)
        assert_same_bits(x.copy(), want)
        assert np.abs(x).max() <= 30.0


def test_softcap_keeps_nan() -> None:
    x = np.full((1, 40), np.float32(np.nan))
    run([row(SOFTCAP, "elementwise.softcap", x=x, x_stride=160, columns=40, cap=30.0)], Step(1))
    assert np.isnan(x).all()
