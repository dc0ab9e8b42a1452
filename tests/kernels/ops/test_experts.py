"""Products with experts' matrices: every format, however rows fall on experts, against the definition bit for bit."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

import numpy as np
import pytest

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.layout import LANES, LINE, STRETCH, ZEROS, expert_scratch, group_words
from edge_gemma.kernels.operations import EXPERT_GATE, EXPERTS, GELU
from edge_gemma.kernels.ops.experts import SMALL
from edge_gemma.kernels.reference import experts as reference
from edge_gemma.kernels.reference import operations as plain
from edge_gemma.kernels.tuning.strategies import DEFAULTS
from tests.kernels.harness import (
    FLOAT_NAMES,
    Array,
    Step,
    aligned,
    assert_same_bits,
    random_rows,
    row,
    run,
)

THREADS = [1, 2, 3]
EXPERT_COUNT = 6


def words(experts: Array) -> tuple[Array, Array, Array]:
    """Groups as `dispatch` writes them, sources and places; (T, k)."""
    groups, rows, places = reference.dispatch(experts)
    table = np.full(group_words(EXPERT_COUNT), -1)
    flat = [len(groups), *(n for group in groups for n in group), -1, experts.size]
    table[: len(flat)] = flat
    return table, rows, places


@cache
def example(name: str, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """Matrices of all experts, at an odd address where the format allows it; 40 rows of X; products (40, E, rows)."""
    size = 1 if FORMATS[name].is_float else 0
    matrices = random_rows(name, EXPERT_COUNT * rows, columns, rows + columns)
    odd = np.zeros(matrices.size + 4, np.uint8)[4 * size + 1 - size :][: matrices.size].reshape(EXPERT_COUNT, rows, -1)
    odd[:] = matrices.reshape(odd.shape)
    x = np.random.default_rng(columns).standard_normal((40, columns)).astype(np.float32)
    x = x if FORMATS[name].is_float else plain.quantize(x, ZEROS.get(name, 0))
    multiply = plain.matmul_float if FORMATS[name].is_float else plain.matmul
    return odd, x, np.stack([multiply(name, m, x) for m in odd], axis=1)


def multiply(
    name: str, matrices: Array, x: Array, columns: int, experts: Array, threads: int, *, sorted_: bool
) -> Array:
    """Results of the pairs of `experts` (T, k) in the order of groups; X as it is, or (`sorted_`) in that order too."""
    tokens, rows = len(experts), matrices.shape[1]
    groups, sources, _ = words(experts)
    x = x[sources].copy() if sorted_ else x
    y = np.full((experts.size, rows + 3), np.float32(7.0))
    if FORMATS[name].is_float:
        one = many = f"experts_float.{name}"
    else:
        strategy = DEFAULTS.for_matrix(name, matrices.strides[1])
        one, many = f"experts.{name}_few.{strategy}", f"experts.{name}.{strategy}"
    operation = row(
        EXPERTS, one, many, one, weights=matrices, row_bytes=matrices.strides[1], rows=rows, columns=columns, x=x,
        x_stride=x.strides[0], y=y, y_stride=y.strides[0], expert_bytes=matrices.strides[0], groups=groups,
        sources=0 if sorted_ else sources, choices=experts.shape[1],
    )  # fmt: skip
    run([operation], Step(tokens, scratch_bytes=expert_scratch(tokens)), threads)
    assert (y[:, rows:] == 7.0).all()
    return np.ascontiguousarray(y[:, :rows])


def choices(tokens: int, k: int, most: int = EXPERT_COUNT, seed: int = 0) -> Array:
    """(T, k) different experts of the first `most`, so that fewer have more rows."""
    rng = np.random.default_rng([seed, tokens, k])
    return np.stack([rng.permutation(most)[:k] for _ in range(tokens)])


def shapes(name: str) -> list[tuple[int, int]]:
    block = max(32, FORMATS[name].block)
    return [(LANES, block), (3 * LANES - 1, 3 * block), (6 * LANES + 5, STRETCH + block)]


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ3_XXS", *FLOAT_NAMES])
def test_products_are_the_definition(name: str) -> None:
    """Steps of one row, few and many; experts of one row, of SMALL and a row more, and of all rows of the step."""
    for rows, columns in shapes(name):
        matrices, x, products = example(name, rows, columns)
        assert np.isfinite(products).all() and products.any()
        for tokens, k, most in (
            (1, 2, 6),
            (2, 6, 6),
            (SMALL + 1, 2, 2),
            (16, 2, 6),
            (17, 1, 6),
            (40, 3, 3),
            (40, 2, 6),
        ):
            experts = choices(tokens, k, most)
            groups, sources, _ = reference.dispatch(experts)
            by_pair = np.repeat([e for e, _ in groups], np.diff([first for _, first in groups] + [experts.size]))
            want = products[sources, by_pair]
            for sorted_ in (False, True):
                got = multiply(name, matrices, x, columns, experts, 1 + tokens % 3, sorted_=sorted_)
                assert_same_bits(got, want)


def test_the_definition_of_products_is_a_matrix_product_each() -> None:
    matrices, x, products = example("Q4_0", *shapes("Q4_0")[0])
    experts = np.array([3, 0, 3])
    assert_same_bits(reference.products("Q4_0", matrices, x[:3], experts), products[[0, 1, 2], experts])


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "F16"])
def test_threads_share_all_tiles(name: str) -> None:
    """Fewer tiles than threads, and so many that each has a stretch of its own."""
    for rows in (LANES, 2 * LANES + 1, 61 * LANES + 5):
        columns = max(32, FORMATS[name].block)
        matrices, x, products = example(name, rows, columns)
        for tokens, k in ((1, 1), (1, 6), (7, 2), (33, 2)):
            experts = choices(tokens, k)
            _, _, places = reference.dispatch(experts)
            want = np.empty((experts.size, rows), np.float32)
            want[places] = products[np.arange(tokens)[:, None], experts]
            for threads in THREADS:
                assert_same_bits(multiply(name, matrices, x, columns, experts, threads, sorted_=False), want)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by a function of POSIX")
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "BF16"])
def test_only_the_bytes_of_chosen_experts_are_read(name: str) -> None:
    """The others' memory cannot be read at all."""
    rows, columns, page = 256, 2048, mmap.PAGESIZE
    row_bytes = FORMATS[name].row_bytes(columns)
    expert_bytes = rows * row_bytes
    assert expert_bytes % page == 0
    memory = mmap.mmap(-1, EXPERT_COUNT * expert_bytes)
    matrices = np.frombuffer(memory, np.uint8).reshape(EXPERT_COUNT, rows, row_bytes)
    matrices[:] = random_rows(name, EXPERT_COUNT * rows, columns, 1).reshape(matrices.shape)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for e in (0, 2, 3, 5):
        assert protect(matrices[e].ctypes.data, expert_bytes, 0) == 0
    try:
        x = np.random.default_rng(0).standard_normal((20, columns)).astype(np.float32)
        x = x if FORMATS[name].is_float else plain.quantize(x, ZEROS.get(name, 0))
        for tokens in (1, 9, 20):
            experts = np.array([[1, 4]] * tokens)
            got = multiply(name, matrices, x, columns, experts, 2, sorted_=False)
            want = reference.products(name, matrices, np.vstack([x[:1], x[:1]]), np.array([1, 4]))
            assert_same_bits(got[[0, tokens]], want)
    finally:
        for e in (0, 2, 3, 5):
            assert protect(matrices[e].ctypes.data, expert_bytes, 3) == 0


@pytest.mark.parametrize("tokens", [1, 5])
def test_gates_of_all_choices(tokens: int) -> None:
    k, columns = 3, 96
    products = np.random.default_rng(0).standard_normal((tokens * k, 2 * columns + 5)).astype(np.float32)
    g, u = products[:, :columns], products[:, columns : 2 * columns]
    want = plain.gate(g, u)
    for threads in THREADS:
        y = np.full((tokens * k, columns + 16), np.float32(9))
        q = aligned((tokens * k, columns // 32 * LINE), np.uint8)
        gate = row(
            EXPERT_GATE, "elementwise.expert_gate", gate=g, gate_stride=g.strides[0], up=u, up_stride=u.strides[0],
            activation=GELU, columns=columns, y=y, y_stride=y.strides[0], q=q, q_stride=q.strides[0], zero=8, choices=k,
        )  # fmt: skip
        run([gate], Step(tokens), threads)
        assert (y[:, columns:] == 9).all()
        assert_same_bits(y[:, :columns].copy(), want)
        assert_same_bits(q, plain.quantize(want, 8))
