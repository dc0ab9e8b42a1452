"""Attention over the cache against the definition, bit for bit: windows, rings, groups, several sequences, tiles.

Slots that were never written hold NaN, so that reading one where it matters shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from edge_gemma.kernels.isa import current
from edge_gemma.kernels.jit.compile import assembly
from edge_gemma.kernels.layout import LANES, QUERY_ROWS, attention_scratch, partial_bytes
from edge_gemma.kernels.operations import APPEND, ATTEND, MERGE, Kernel
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import CACHE_TYPES, Array, Step, aligned, assert_same_bits, row, run

GLOBAL = 1 << 20
"""A window that nothing is outside of."""


@dataclass(frozen=True)
class Shape:
    kind: str
    heads: int
    kv_heads: int
    size: int
    capacity: int = 512
    sequences: int = 3

    def empty(self) -> tuple[Array, Array]:
        """Keys (S, K, C / LANES, D, LANES) and values (S, K, C, D), all NaN."""
        dtype = np.float16 if self.kind == "f16" else np.float32
        prefix = (self.sequences, self.kv_heads)
        keys = aligned((*prefix, self.capacity // LANES, self.size, LANES), dtype)
        values = aligned((*prefix, self.capacity, self.size), dtype)
        keys[:], values[:] = np.nan, np.nan
        return keys, values

    def random(self, rows: int, heads: int, seed: int) -> Array:
        return np.random.default_rng(seed).standard_normal((rows, heads, self.size)).astype(np.float32)

    def filled(self, sequences: Sequence[int], positions: Sequence[int]) -> tuple[Array, Array]:
        """A cache with all that came before each sequence's last row, as far as it fits."""
        keys, values = self.empty()
        for sequence in set(sequences):
            last = max(p for s, p in zip(sequences, positions, strict=True) if s == sequence)
            before = list(range(max(0, last + 1 - self.capacity), last + 1))
            k, v = (self.random(len(before), self.kv_heads, seed) for seed in (sequence, sequence + 10))
            reference.append(k, v, keys, values, [sequence] * len(before), before)
        return keys, values


def append(shape: Shape, caches: tuple[Array, Array], k: Array, v: Array, step: Step) -> None:
    keys, values = caches
    operation = row(
        APPEND, f"attention.append_{shape.kind}", k=k, v=v, stride=k.strides[0], heads=shape.kv_heads,
        head_dim=shape.size, k_cache=keys, v_cache=values, sequence_bytes=keys.strides[0], head_bytes=keys.strides[1],
        capacity=shape.capacity,
    )  # fmt: skip
    run([operation], step, threads=2)


def attend(
    shape: Shape, caches: tuple[Array, Array], q: Array, step: Step, window: int, cap: float, threads: int = 1
) -> Array:
    """(T, H, D) by `attend_one` and `merge` if there is one row, else by `attend`."""
    keys, values = caches
    y = np.full((len(q), q[0].size + 5), np.float32(9))
    space = partial_bytes(shape.heads, shape.size, shape.capacity)
    partial = np.full(space + 4096, 0xFF, np.uint8)
    rows = [
        row(
            ATTEND, f"attention.attend_one_{shape.kind}", f"attention.attend_{shape.kind}",
            q=q, q_stride=q.strides[0], y=y, y_stride=y.strides[0], heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.size, k_cache=keys, v_cache=values, sequence_bytes=keys.strides[0],
            head_bytes=keys.strides[1], capacity=shape.capacity, window=window, softcap=cap, partial=partial,
        ),
        row(
            MERGE, "attention.merge", "nothing",
            y=y, heads=shape.heads, head_dim=shape.size, window=window, capacity=shape.capacity, partial=partial,
        ),
    ]  # fmt: skip
    step.scratch_bytes = attention_scratch(shape.size, shape.heads // shape.kv_heads)
    run(rows, step, threads)
    assert (y[:, q[0].size :] == 9).all() and (partial[space:] == 0xFF).all()
    return y[:, : q[0].size].reshape(q.shape)


def check(shape: Shape, sequences: Sequence[int], positions: Sequence[int], window: int, cap: float) -> None:
    """Together and one by one, the rows are the definition."""
    caches = shape.filled(sequences, positions)
    q = shape.random(len(positions), shape.heads, 99)
    want = reference.attend(q, *caches, list(sequences), list(positions), window, cap)
    assert np.isfinite(want).all()
    step = Step(len(q), positions=positions, sequences=sequences)
    if len(q) > 1:
        assert_same_bits(attend(shape, caches, q, step, window, cap, threads=2), want)
    for i in range(len(q)):
        alone = Step(1, positions=[positions[i]], sequences=[sequences[i]])
        assert_same_bits(attend(shape, caches, q[i : i + 1], alone, window, cap, threads=1 + i % 2), want[i : i + 1])


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 4, 32), (4, 2, 64), (3, 1, 96), (4, 1, 256), (8, 1, 64), (16, 2, 32)]
)
def test_groups_and_head_sizes(kind: str, heads: int, kv_heads: int, size: int) -> None:
    shape = Shape(kind, heads, kv_heads, size)
    check(shape, [2, 2, 0, 1, 1], [299, 300, 17, 0, 1], GLOBAL, 50.0)


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize(
    ("window", "capacity", "first", "rows"),
    [
        (GLOBAL, 512, 0, 21),  # from the first token on
        (GLOBAL, 1536, 1400, 3),  # several spans
        (64, 512, 90, 9),  # smaller than the text
        (100, 512, 98, 3),  # one less than, equal to, and one more than the text
        (1, 512, 255, 2),  # each token sees itself alone
        (200, 512, 1490, 11),  # a ring, the window beginning inside a span
        (200, 512, 453, 8),  # the first span leaves the window from one row to the next
        (250, 256, 254, 4),  # a ring of one span, written over while its span is read
        (500, 512, 1020, 9),  # the ring wraps inside a tile
    ],
)
def test_windows_and_rings(window: int, capacity: int, first: int, rows: int, cap: float) -> None:
    shape = Shape("f16", 4, 2, 32, capacity, sequences=1)
    check(shape, [0] * rows, range(first, first + rows), window, cap)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_tiles_do_not_matter(kind: str) -> None:
    shape = Shape(kind, 2, 1, 64, sequences=1)
    positions = range(250, 250 + QUERY_ROWS)
    caches, q = shape.filled([0] * QUERY_ROWS, positions), shape.random(QUERY_ROWS, 2, 1)
    want = reference.attend(q, *caches, [0] * QUERY_ROWS, list(positions), 100, 0.0)
    for count in range(1, QUERY_ROWS + 1):
        tiles = [(0, count)] + ([(count, QUERY_ROWS - count)] if count < QUERY_ROWS else [])
        step = Step(QUERY_ROWS, positions=positions, sequences=[0] * QUERY_ROWS, tiles=tiles)
        assert_same_bits(attend(shape, caches, q, step, 100, 0.0, threads=1 + count % 2), want)


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("size", [32, 96])
def test_append(kind: str, size: int) -> None:
    """Rows of several sequences, round the ring, rounded to the cache's type; every other slot stays as it was."""
    shape = Shape(kind, 4, 2, size, capacity=256)
    got, want = shape.empty(), shape.empty()
    sequences, positions = [0, 0, 2, 1, 1, 1], [255, 256, 1500, 0, 1, 2]
    k, v = (shape.random(6, 2, seed) * 100 for seed in (1, 2))
    k[0, 0, :4] = 1e-7, 65519, 65520, -1e9  # a subnormal, the largest, and two infinities as float16
    step = Step(6, positions=positions, sequences=sequences)
    append(shape, got, k, v, step)
    with np.errstate(over="ignore"):
        reference.append(k, v, *want, sequences, positions)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


def test_the_definition_is_attention() -> None:
    """The definition itself, against softmax in float64."""
    shape = Shape("f32", 4, 2, 64, sequences=1)
    position, window, cap = 400, 300, 3.0
    keys, values = shape.filled([0], [position])
    q = shape.random(1, 4, 5)
    low = position - window + 1
    k = keys[0].swapaxes(2, 3).reshape(2, 512, 64)[:, low : position + 1].astype(np.float64).repeat(2, axis=0)
    scores = cap * np.tanh(np.einsum("hd,hkd->hk", q[0].astype(np.float64), k) / cap)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    v = values[0, :, low : position + 1].astype(np.float64).repeat(2, axis=0)
    exact = np.einsum("hk,hkd->hd", weights, v) / weights.sum(axis=1, keepdims=True)
    got = reference.attend(q, keys, values, [0], [position], window, cap)[0]
    assert np.abs(got - exact).max() <= 2e-6


def test_nan_in_a_query_or_a_visible_key_stays_nan() -> None:
    shape = Shape("f16", 2, 1, 32, sequences=1)
    keys, values = shape.filled([0], [20])
    q = shape.random(1, 2, 0)
    q[0, 1, 3] = np.nan
    step = Step(1, positions=[20], sequences=[0])
    for cap in (0.0, 50.0):
        y = attend(shape, (keys, values), q, step, GLOBAL, cap)
        assert np.isfinite(y[0, 0]).all() and np.isnan(y[0, 1]).all()
    q = shape.random(2, 2, 0)
    keys[0, 0, 0, 0, 1] = np.nan
    for rows in (1, 2):
        step = Step(rows, positions=[20, 1][:rows], sequences=[0, 0][:rows])
        assert np.isnan(attend(shape, (keys, values), q[:rows], step, GLOBAL, 0.0)).all()


@pytest.mark.skipif(current().machine != "x86" or not current().fma, reason="reads x86 assembly")
@pytest.mark.parametrize("kernel", ["attend_f16", "attend_one_f16"])
def test_tiles_stay_in_registers(kernel: str) -> None:
    """Loops of products alone take no vector from the stack, nor put one there."""
    text = assembly(Kernel("ops.attention", kernel))
    loops = [block for block in re.split(r"^\.L\w+:", text, flags=re.MULTILINE) if block.count("vfmadd231ps") >= 8]
    assert len(loops) >= 4
    products = [block for block in loops if "vdiv" not in block and "vmax" not in block]
    spilled = [
        line for block in products for line in block.splitlines() if re.search(r"\(%rsp\).*%[xyz]mm|mm.*\(%rsp\)", line)
    ]
    assert not spilled
