"""Norms, rotation and sizes of heads, against the definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.graph.states import Rope
from edge_gemma.graph.step import Angles
from edge_gemma.kernels.layout import whole_head
from edge_gemma.kernels.operations import HEAD_NORM, RESIZE_HEADS, ROTATE, STEP_ANGLES
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import Step, assert_same_bits, row, rows_of, run_checked

ROWS, THREADS = [1, 2, 5], [1, 2]


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 64), (35, 256)])
def test_head_norm(heads: int, size: int, with_weight: bool, with_base: bool) -> None:
    weight = rows_of(1, size)[0].copy()
    for tokens in ROWS:
        x, y, base = (rows_of(tokens, heads * size, gap) for gap in (16, 32, 48))
        operation = row(
            HEAD_NORM, "heads.head_norm", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            weight=weight if with_weight else 0, epsilon=1e-6, base=base if with_base else 0,
            base_stride=base.strides[0], scale=0.7071, y=y, y_stride=y.strides[0],
        )  # fmt: skip
        run_checked(operation, Step(tokens), 2, y)
        a, b = (rows.reshape(tokens, heads, size) for rows in (x, base))
        want = reference.head_norm(a, 1e-6, weight if with_weight else None, b if with_base else None, 0.7071)
        assert_same_bits(y.copy(), want.reshape(tokens, -1))


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 64), (4, 256)])
def test_rotate(heads: int, size: int, with_norm: bool) -> None:
    for tokens in ROWS:
        x, angles = rows_of(tokens, heads * size), rows_of(tokens, size, gap=0)
        weight = rows_of(1, size)[0].copy()
        heads_of_x = x.copy().reshape(tokens, heads, size)
        want = reference.rotate(heads_of_x, angles, 0.0625, weight if with_norm else None, 1e-6)
        rotation = row(
            ROTATE, "heads.rotate", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
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
            ROTATE, "heads.rotate_neighbours", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
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
            RESIZE_HEADS, "heads.resize_heads", x=x, x_stride=x.strides[0], heads=heads, head_dim=size,
            y=y, y_stride=y.strides[0], y_head_dim=to,
        )  # fmt: skip
        run_checked(resize, Step(tokens), 2, y)
        want = reference.resize_heads(x.copy().reshape(tokens, heads, size), to)
        assert_same_bits(y.copy(), want.reshape(tokens, -1))
