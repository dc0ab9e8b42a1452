"""Embedding, norms, rotation, gates, sums and caps, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.graph.states import Rope
from edge_gemma.graph.step import Angles
from edge_gemma.kernels.layout import whole_head
from edge_gemma.kernels.operations import (
    ADD,
    EMBED,
    GATE,
    GELU,
    HEAD_NORM,
    NORM,
    RESIZE_HEADS,
    ROTATE,
    SILU,
    SOFTCAP,
    STEP_ANGLES,
)
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import FLOAT_NAMES, PRODUCT_NAMES, Array, Row, Step, assert_same_bits, random_rows, row, run

ROWS, THREADS = [1, 2, 5], [1, 2]


def rows_of(tokens: int, columns: int, gap: int = 16) -> Array:
    """Random rows `gap` values further apart than they are long, 9 in between."""
    memory = np.full((tokens, columns + gap), np.float32(9))
    view = memory[:, :columns]
    view[:] = np.random.default_rng(tokens + columns).standard_normal(view.shape) * 3
    return view


def run_checked(operation: Row, step: Step, threads: int, *outputs: Array) -> None:
    """Run, and see that nothing between the rows was touched."""
    run([operation], step, threads)
    for y in outputs:
        if y.base is not None and y.base.ndim == 2:
            assert (y.base[:, y.shape[1] :] == 9).all()


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


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 64), (35, 256)])
def test_head_norm(heads: int, size: int, with_weight: bool, with_base: bool) -> None:
    weight = rows_of(1, size)[0].copy()
    for tokens in ROWS:
        x, y, base = (rows_of(tokens, heads * size, gap) for gap in (16, 32, 48))
        operation = row(
            HEAD_NORM, "elementwise.head_norm", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            weight=weight if with_weight else 0, epsilon=1e-6, base=base if with_base else 0,
            base_stride=base.strides[0], scale=0.7071, y=y, y_stride=y.strides[0],
        )  # fmt: skip
        run_checked(operation, Step(tokens), 2, y)
        a, b = (rows.reshape(tokens, heads, size) for rows in (x, base))
        want = reference.head_norm(a, 1e-6, weight if with_weight else None, b if with_base else None, 0.7071)
        assert_same_bits(y.copy(), want.reshape(tokens, -1))


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


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 64), (4, 256)])
def test_rotate(heads: int, size: int, with_norm: bool) -> None:
    for tokens in ROWS:
        x, angles = rows_of(tokens, heads * size), rows_of(tokens, size, gap=0)
        weight = rows_of(1, size)[0].copy()
        heads_of_x = x.copy().reshape(tokens, heads, size)
        want = reference.rotate(heads_of_x, angles, 0.0625, weight if with_norm else None, 1e-6)
        rotation = row(
            ROTATE, "elementwise.rotate", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            norm=weight if with_norm else 0, epsilon=1e-6, scale=0.0625, angles=STEP_ANGLES,
        )  # fmt: skip
        run_checked(rotation, Step(tokens, angles=angles), 2, x)
        assert_same_bits(x.copy(), want.reshape(tokens, -1))


def test_rotation_keeps_lengths_and_turns_by_the_angle() -> None:
    size = 64
    x = rows_of(1, size, gap=0).reshape(1, 1, size)
    phi = np.linspace(0, 3, size // 2, dtype=np.float32)
    turned = reference.rotate(x, np.concatenate([np.cos(phi), np.sin(phi)])[None], 1.0)
    pairs = [a[0, 0, : size // 2] + 1j * a[0, 0, size // 2 :] for a in (x, turned)]
    assert np.allclose(pairs[0] * np.exp(1j * phi), pairs[1], atol=1e-5)


@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 64), (5, 96), (4, 256)])
def test_rotate_neighbours(heads: int, size: int) -> None:
    for tokens in ROWS:
        x, angles = rows_of(tokens, heads * size), rows_of(tokens, 2 * size, gap=0)
        want = reference.rotate_neighbours(x.copy().reshape(tokens, heads, size), angles, 0.0625)
        rotation = row(
            ROTATE, "elementwise.rotate_neighbours", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            norm=0, epsilon=1e-6, scale=0.0625, angles=STEP_ANGLES,
        )  # fmt: skip
        run_checked(rotation, Step(tokens, angles=angles), 2, x)
        assert_same_bits(x.copy(), want.reshape(tokens, -1))


@pytest.mark.parametrize("size", [8, 64, 80])
def test_neighbours_and_halves_are_the_same_rotation_of_other_orders(size: int) -> None:
    """To the bit; what a head has behind its own dimensions stays 0."""
    positions, whole = np.array([0, 3, 4097]), whole_head(size)
    tables = [Angles(Rope(size, 1e4, neighbours=neighbours), 3) for neighbours in (False, True)]
    for table in tables:
        table.fill(positions)
    halves = rows_of(3, 2 * size, gap=0).reshape(3, 2, size)
    neighbours = np.zeros((3, 2, whole), np.float32)
    neighbours[..., :size] = halves.reshape(3, 2, 2, size // 2).swapaxes(2, 3).reshape(halves.shape)
    turned = reference.rotate_neighbours(neighbours, tables[1].table, 0.5)
    want = reference.rotate(halves, tables[0].table, 0.5)
    back = turned[..., :size].reshape(3, 2, size // 2, 2).swapaxes(2, 3).reshape(want.shape)
    assert_same_bits(np.ascontiguousarray(back), want)
    assert not turned[..., size:].any()


@pytest.mark.parametrize(
    ("size", "to"), [(80, 96), (96, 80), (120, 128), (128, 120), (8, 32), (24, 32), (10, 32), (64, 64)]
)
def test_resize_heads(size: int, to: int) -> None:
    heads = 3
    for tokens in ROWS:
        x, y = rows_of(tokens, heads * size), rows_of(tokens, heads * to, gap=24)
        resize = row(
            RESIZE_HEADS, "elementwise.resize_heads", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            y=y, y_stride=y.strides[0], y_head_dim=to,
        )  # fmt: skip
        run_checked(resize, Step(tokens), 2, y)
        want = reference.resize_heads(x.copy().reshape(tokens, heads, size), to)
        assert_same_bits(y.copy(), want.reshape(tokens, -1))


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
