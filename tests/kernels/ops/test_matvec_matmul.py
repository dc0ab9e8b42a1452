"""Products with quantized and float weights: every format, against the definition and against themselves."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.layout import LANES, LINE, STRETCH, ZEROS, matmul_scratch
from edge_gemma.kernels.operations import GATED, GELU, MATMUL, QUANTIZE, SILU
from edge_gemma.kernels.reference import formats as reference_formats
from edge_gemma.kernels.reference import operations as reference
from edge_gemma.kernels.tuning.strategies import DEFAULTS, STRATEGIES
from tests.kernels.harness import (
    FLOAT_NAMES,
    PRODUCT_NAMES,
    Array,
    Row,
    Step,
    aligned,
    assert_same_bits,
    random_rows,
    row,
    run,
    set_scales,
)

TOKENS = [*range(1, 10), 33]


def quantize(x: Array, zero: int, threads: int = 1) -> Array:
    """The kernel's lines (T, B * LINE), the unused bytes 0."""
    tokens, columns = x.shape
    lines = aligned((tokens, columns // 32 * LINE), np.uint8)
    operation = row(
        QUANTIZE, "activations.quantize",
        x=x, x_stride=x.strides[0], columns=columns, zero=zero, q=lines, q_stride=lines.shape[1],
    )  # fmt: skip
    run([operation], Step(tokens), threads)
    return lines


def product(name: str, weights: Array, x: Array, columns: int, y: Array, strategy: str = "") -> Row:
    """x: lines for a quantized format, else float32 rows. y: (T, rows), whose stride it keeps."""
    strategy = strategy or ("" if FORMATS[name].is_float else DEFAULTS.for_matrix(name, weights.strides[0]))
    if FORMATS[name].is_float:
        one = few = many = f"matmul_float.{name}"
    else:
        one, few, many = f"matvec.{name}.{strategy}", f"matvec.{name}_few.{strategy}", f"matmul.{name}"
    return row(
        MATMUL, one, many, few, weights=weights, row_bytes=weights.strides[0], rows=len(weights), columns=columns,
        x=x, x_stride=x.strides[0], y=y, y_stride=y.strides[0],
    )  # fmt: skip


def multiply(name: str, weights: Array, x: Array, columns: int, threads: int = 1, strategy: str = "") -> Array:
    """Rows of Y lie further apart than they are long, and what is between them must stay as it is."""
    tokens, rows = len(x), len(weights)
    wide = np.full((tokens, rows + 3), np.float32(7.0))
    scratch = matmul_scratch(tokens)
    run([product(name, weights, x, columns, wide[:, :rows], strategy)], Step(tokens, scratch_bytes=scratch), threads)
    assert (wide[:, rows:] == 7.0).all()
    return np.ascontiguousarray(wide[:, :rows])


def random_inputs(tokens: int, columns: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((tokens, columns)).astype(np.float32)


@pytest.mark.parametrize("zero", [0, 8, 128])
def test_quantized_activations_are_the_definition(zero: int) -> None:
    x = random_inputs(5, 512, 1)
    x[1] *= 1e-30
    x[2, :32] = 0.0
    x[3] = np.float32(127.0) * np.sign(x[3])
    x[4, ::2] = np.arange(256) - 127.5  # with a largest of 127.5, many ties
    assert_same_bits(quantize(x, zero, threads=2), reference.quantize(x, zero))


def test_activations_too_small_to_invert_count_as_zero() -> None:
    x = np.full((1, 64), np.float32(1e-39))
    lines = quantize(x, 8)
    assert not lines[:, :32].any() and not lines[:, 36:48].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", range(32))
def test_a_value_that_is_not_finite_makes_its_block_not_finite(bad: float, at: int) -> None:
    x = np.ones((1, 32), np.float32)
    x[0, at] = bad
    assert not np.isfinite(quantize(x, 0)[0, 32:36].copy().view(np.float32)[0])


@cache
def example(name: str, rows: int, columns: int) -> tuple[Array, Array]:
    """Weights, at an odd address where the format allows it, and 33 rows of lines."""
    weights = random_rows(name, rows, columns, rows + columns)
    odd = np.zeros(weights.size + 1, np.uint8)[1:].reshape(weights.shape)
    odd[:] = weights
    return odd, quantize(random_inputs(33, columns, columns), ZEROS.get(name, 0), threads=2)


def shapes(name: str) -> list[tuple[int, int]]:
    """Rows and columns: one block, several, and more than a stretch; rows that fill no tile, some, and panels."""
    block = FORMATS[name].block
    return [(LANES, block), (LANES + 1, 2 * block), (3 * LANES - 1, 3 * block), (4 * LANES + 5, STRETCH + block)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_every_strategy_gives_the_same_bits(name: str, strategy: str, tokens: int) -> None:
    rows, columns = shapes(name)[-1]
    weights, lines = example(name, rows, columns)
    usual = multiply(name, weights, lines[:tokens], columns)
    assert_same_bits(multiply(name, weights, lines[:tokens], columns, threads=2, strategy=strategy), usual)


@pytest.mark.parametrize("strategy", ["none", "l2x3"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_threads_share_all_tiles_whatever_is_asked_for_ahead(strategy: str, tokens: int) -> None:
    """Tiles of 32 columns are so short that the lead is more than a thread's own stretch, or more than a claim."""
    for rows in (LANES, 7 * LANES, 131 * LANES + 5, 1000 * LANES):
        weights, lines = example("Q8_0", rows, 32)
        want = reference.matmul("Q8_0", weights, lines[:tokens])
        for threads in (1, 2, 3):
            assert_same_bits(multiply("Q8_0", weights, lines[:tokens], 32, threads, strategy), want)


@pytest.mark.parametrize("name", PRODUCT_NAMES)
def test_products_are_the_definition(name: str) -> None:
    for rows, columns in shapes(name):
        weights, lines = example(name, rows, columns)
        want = reference.matmul(name, weights, lines)
        assert np.isfinite(want).all() and want.any()
        for tokens in TOKENS:
            assert_same_bits(multiply(name, weights, lines[:tokens], columns), want[:tokens])


@pytest.mark.parametrize("name", PRODUCT_NAMES)
@pytest.mark.parametrize(("floats", "activation"), [(True, GELU), (False, SILU)])
def test_a_gated_pass_is_two_products_and_a_gate(name: str, floats: bool, activation: int) -> None:
    tokens, rows, columns, zero = 33, 7 * 32, STRETCH + FORMATS[name].block, 8
    (weights, lines), up = example(name, rows, columns), random_rows(name, rows, columns, 1)
    lines = lines[:tokens]
    products = reference.matmul(name, weights, lines), reference.matmul(name, up, lines)
    want = reference.gate(*(np.clip(y, -1e15, 1e15) for y in products), activation)
    y, q = np.zeros((tokens, rows + 3), np.float32)[:, :rows], aligned((tokens, rows // 32 * LINE), np.uint8)
    gated = row(
        GATED, f"matmul.{name}", weights=weights, row_bytes=weights.strides[0], rows=rows, columns=columns, x=lines,
        x_stride=lines.strides[0], y=y if floats else 0, y_stride=y.strides[0], up=up, activation=activation, q=q,
        q_stride=q.strides[0], zero=zero,
    )  # fmt: skip
    run([gated], Step(tokens, scratch_bytes=matmul_scratch(tokens)), threads=2)
    assert want.any() and np.isfinite(want).all()
    assert_same_bits(q, reference.quantize(want, zero))
    assert_same_bits(np.ascontiguousarray(y), want if floats else np.zeros_like(want))


@pytest.mark.parametrize("name", [*PRODUCT_NAMES, *FLOAT_NAMES])
def test_any_number_of_blocks(name: str) -> None:
    """From none to twice the most that a loop takes at once."""
    rows = 2 * LANES + 1
    for count in range(9):
        columns = count * max(FORMATS[name].block, 32)
        weights, x = random_rows(name, rows, columns, count), random_inputs(5, columns, count)
        if FORMATS[name].is_float:
            want = reference.matmul_float(name, weights, x) if count else np.zeros((5, rows), np.float32)
        else:
            x = quantize(x, ZEROS.get(name, 0))
            want = reference.matmul(name, weights, x) if count else np.zeros((5, rows), np.float32)
        for tokens in (1, 5):
            assert_same_bits(multiply(name, weights, x[:tokens], columns), want[:tokens])


@pytest.mark.parametrize("name", PRODUCT_NAMES)
def test_one_row_gives_the_same_bits_alone_and_in_company_for_any_number_of_threads(name: str) -> None:
    columns = 2 * STRETCH
    weights, lines = example(name, 5 * LANES + 3, columns)
    together = multiply(name, weights, lines, columns)
    assert_same_bits(multiply(name, weights, lines, columns, threads=2), together)
    for t in (0, 3, 32):
        for threads in (1, 2):
            assert_same_bits(multiply(name, weights, lines[t : t + 1], columns, threads), together[t : t + 1])


@pytest.mark.parametrize("name", PRODUCT_NAMES)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_extreme_bytes_do_not_overflow(name: str, byte: int) -> None:
    columns = 512
    blocks = np.full((LANES + 1, columns // FORMATS[name].block, FORMATS[name].nbytes), byte, np.uint8)
    set_scales(name, blocks, lambda shape: np.full(shape, np.float16(0.5)))
    weights = blocks.reshape(LANES + 1, -1)
    for x in (1.0, -1.0):
        lines = quantize(np.full((9, columns), np.float32(x)), ZEROS.get(name, 0))
        want = reference.matmul(name, weights, lines)
        assert_same_bits(multiply(name, weights, lines, columns), want)
        assert_same_bits(multiply(name, weights, lines[:1], columns), want[:1])


@pytest.mark.parametrize("name", FLOAT_NAMES)
def test_float_products_are_the_definition(name: str) -> None:
    for rows, columns in ((1, 32), (3, 64), (4, 96), (19, 32), (37, 512)):
        weights, x = random_rows(name, rows, columns, rows), random_inputs(33, columns, columns)
        want = reference.matmul_float(name, weights, x)
        for tokens in TOKENS:
            assert_same_bits(multiply(name, weights, x[:tokens], columns), want[:tokens])
        for t in (0, 1, 32):
            assert_same_bits(multiply(name, weights, x[t : t + 1], columns, threads=2), want[t : t + 1])


@pytest.mark.parametrize("name", FLOAT_NAMES)
def test_float_products_are_near_the_truth(name: str) -> None:
    columns = 4096
    weights, x = random_rows(name, 8, columns, 0), random_inputs(2, columns, 1)
    exact = x.astype(np.float64) @ reference_formats.dequantize(name, weights).astype(np.float64).T
    # A chain of n / LANES sums errs by at most that many half-ulps of the sum of magnitudes, and the fold by 5 more.
    bound = (columns / LANES + 5) * 2**-24 * (np.abs(x) @ np.abs(reference_formats.dequantize(name, weights)).T)
    assert (np.abs(multiply(name, weights, x, columns) - exact) <= bound).all()


def test_products_are_near_the_dequantized_truth() -> None:
    """What int8 activations cost: the definition itself, against float64 products of what the bytes mean."""
    for name in PRODUCT_NAMES:
        columns = 1024
        weights, x = random_rows(name, LANES, columns, 2), random_inputs(4, columns, 3)
        values = reference_formats.dequantize(name, weights).astype(np.float64)
        exact = x.astype(np.float64) @ values.T
        got = reference.matmul(name, weights, reference.quantize(x, ZEROS.get(name, 0)))
        # Each input errs by half a step of its block, at most max|x| / 254.
        step = np.abs(x.reshape(4, -1, 32)).max(axis=-1).repeat(32, axis=-1) / 254 * 1.001
        assert (np.abs(got - exact) <= step @ np.abs(values).T).all(), name
