"""Attention over pages against the definition, bit for bit: windows, groups, several sequences, tiles.

Pages lie in no order, and slots that were never written hold NaN, so that reading one where it matters shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import gguf
import numpy as np
import pytest
from gguf import quants

from edge_gemma.kernels.isa import current
from edge_gemma.kernels.jit.compile import assembly
from edge_gemma.kernels.layout import LANES, QUERY_ROWS, SPAN, attention_scratch, head_bytes, most_spans, partial_bytes
from edge_gemma.kernels.operations import APPEND, ATTEND, MERGE, Kernel
from edge_gemma.kernels.reference import cache_types
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import CACHE_TYPES, Array, Step, aligned, assert_same_bits, row, run

GLOBAL = 1 << 20
"""A window that nothing is outside of."""
LAYER = 1
"""The layer whose pages are used, of two; the other one's table leads nowhere."""


@dataclass(frozen=True)
class Shape:
    kind: str
    heads: int
    kv_heads: int
    size: int
    context: int = 512
    sequences: int = 3

    def empty(self) -> Pages:
        """Nothing written: all NaN."""
        spans = self.context // SPAN
        count = self.sequences * spans + 1
        memory = aligned((count, 2, self.kv_heads, head_bytes(self.size, self.kind)), np.uint8)
        memory[:] = 0xFF
        memory = memory.view({"f16": np.float16, "f32": np.float32, "q8_0": np.uint8}[self.kind])
        order = np.random.default_rng(self.context).permutation(self.sequences * spans)
        return Pages(memory, order.reshape(self.sequences, spans))

    def random(self, rows: int, heads: int, seed: int) -> Array:
        return np.random.default_rng(seed).standard_normal((rows, heads, self.size)).astype(np.float32)

    def filled(self, sequences: Sequence[int], positions: Sequence[int]) -> Pages:
        """All that came before each sequence's last row."""
        pages = self.empty()
        for sequence in set(sequences):
            before = range(max(p for s, p in zip(sequences, positions, strict=True) if s == sequence) + 1)
            k, v = (self.random(len(before), self.kv_heads, seed) for seed in (sequence, sequence + 10))
            reference.append(k, v, pages.memory, [pages.numbers[sequence].tolist()] * len(before), before)
        return pages

    def spans(self, window: int) -> int:
        """That one row sees at most."""
        return min(most_spans(window), self.context // SPAN)


class Pages:
    """Memory of pages, as `reference.cache_types` has them, the last one never written; and which each sequence has,
    (S, spans)."""

    def __init__(self, memory: Array, numbers: Array) -> None:
        self.memory, self.numbers = memory, numbers
        self._addresses = memory.ctypes.data + memory.strides[0] * numbers.astype(np.int64)
        self.tables = [np.array([0, pages.ctypes.data], np.int64) for pages in self._addresses]

    def give_back(self, sequence: int, spans: range) -> None:
        """Pages of a sequence that must not be seen any more."""
        self.numbers[sequence, spans] = len(self.memory) - 1
        self._addresses[sequence, spans] = self.memory[-1].ctypes.data

    def of(self, sequences: Sequence[int]) -> list[list[int]]:
        """The pages of each row's sequence."""
        return [self.numbers[sequence].tolist() for sequence in sequences]

    @property
    def head_bytes(self) -> int:
        return int(self.memory.strides[2])


def append(shape: Shape, pages: Pages, k: Array, v: Array, step: Step) -> None:
    operation = row(
        APPEND, f"attention.append_{shape.kind}", k=k, v=v, stride=k.strides[0], heads=shape.kv_heads,
        head_dim=shape.size, layer=LAYER, head_bytes=pages.head_bytes,
    )  # fmt: skip
    step.tables = pages.tables
    run([operation], step, threads=2)


def attend(
    shape: Shape, pages: Pages, q: Array, step: Step, window: int, cap: float, threads: int = 1, ahead: int = 0
) -> Array:
    """(T, H, D) by `attend_one` and `merge` if there is one row, else by `attend`."""
    y = np.full((len(q), q[0].size + 5), np.float32(9))
    space = partial_bytes(shape.heads, shape.size, shape.spans(window))
    partial = np.full(space + 4096, 0xFF, np.uint8)
    rows = [
        row(
            ATTEND, f"attention.attend_one_{shape.kind}", f"attention.attend_{shape.kind}",
            q=q, q_stride=q.strides[0], y=y, y_stride=y.strides[0], heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.size, layer=LAYER, head_bytes=pages.head_bytes, window=window, ahead=ahead, softcap=cap,
            partial=partial, spans=shape.spans(window),
        ),
        row(
            MERGE, "attention.merge",
            y=y, heads=shape.heads, head_dim=shape.size, window=window, partial=partial, spans=shape.spans(window),
        ),
    ]  # fmt: skip
    step.scratch_bytes = attention_scratch(shape.size, shape.heads // shape.kv_heads)
    step.tables = pages.tables
    run(rows if step.rows == 1 else rows[:1], step, threads)
    assert (y[:, q[0].size :] == 9).all() and (partial[space:] == 0xFF).all()
    return y[:, : q[0].size].reshape(q.shape)


def check(shape: Shape, sequences: Sequence[int], positions: Sequence[int], window: int, cap: float) -> None:
    """Together and one by one, the rows are the definition; what no row sees is given back."""
    pages = shape.filled(sequences, positions)
    for sequence in set(sequences):
        first = min(p for s, p in zip(sequences, positions, strict=True) if s == sequence)
        pages.give_back(sequence, range(max(0, first - window + 1) // SPAN))
    q = shape.random(len(positions), shape.heads, 99)
    want = reference.attend(q, pages.memory, pages.of(sequences), positions, window, cap)
    assert np.isfinite(want).all()
    step = Step(len(q), positions=positions, sequences=sequences)
    if len(q) > 1:
        assert_same_bits(attend(shape, pages, q, step, window, cap, threads=2), want)
    for i in range(len(q)):
        alone = Step(1, positions=[positions[i]], sequences=[sequences[i]])
        assert_same_bits(attend(shape, pages, q[i : i + 1], alone, window, cap, threads=1 + i % 2), want[i : i + 1])


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 4, 32), (4, 2, 64), (3, 1, 96), (4, 1, 256), (8, 1, 64), (16, 2, 32)]
)
def test_groups_and_head_sizes(kind: str, heads: int, kv_heads: int, size: int) -> None:
    shape = Shape(kind, heads, kv_heads, size)
    check(shape, [2, 2, 0, 1, 1], [299, 300, 17, 0, 1], GLOBAL, 50.0)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize(
    ("window", "context", "first", "rows"),
    [
        (GLOBAL, 512, 0, 21),  # from the first token on
        (GLOBAL, 1536, 1400, 3),  # several spans
        (64, 512, 90, 9),  # smaller than the text
        (100, 512, 98, 3),  # one less than, equal to, and one more than the text
        (1, 512, 255, 2),  # each token sees itself alone
        (200, 1536, 1490, 11),  # the window begins inside a span; those before it are given back
        (200, 512, 453, 8),  # the first span leaves the window from one row to the next
        (250, 512, 254, 4),  # a row sees two spans, the one before it only one
        (257, 1024, 511, 3),  # a window of a span and a key: two spans, whatever the row
        (258, 1024, 510, 4),  # one more key, and there is a row that sees three
        (500, 1280, 1020, 9),  # a tile across two pages
    ],
)
def test_windows_and_pages(kind: str, window: int, context: int, first: int, rows: int, cap: float) -> None:
    shape = Shape(kind, 4, 2, 32, context, sequences=1)
    check(shape, [0] * rows, range(first, first + rows), window, cap)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("window", "ahead", "lengths"),
    [
        (GLOBAL, GLOBAL, [270, 1, 37]),  # every key of the text, across pages, and of no other text
        (9, 8, [40, 2, 17]),  # fewer than a tile of queries
        (257, 256, [530]),  # more than a page to either side
        (100, 30, [257]),
        (1, 5, [33]),  # none before its own
    ],
)
def test_keys_behind(kind: str, window: int, ahead: int, lengths: list[int]) -> None:
    """Texts that are read at once; what lies behind their last keys may be anything."""
    shape = Shape(kind, 2, 1, 32, 1024, sequences=len(lengths))
    sequences = [s for s, length in enumerate(lengths) for _ in range(length)]
    positions = [p for length in lengths for p in range(length)]
    lasts = [lengths[s] - 1 for s in sequences]
    pages, q = shape.filled(sequences, lasts), shape.random(len(positions), 2, 99)
    want = reference.attend(q, pages.memory, pages.of(sequences), positions, window, 50.0, ahead=ahead, lasts=lasts)
    assert np.isfinite(want).all()
    step = Step(len(q), positions=positions, sequences=sequences)
    assert step.lasts == lasts
    assert_same_bits(attend(shape, pages, q, step, window, 50.0, threads=2, ahead=ahead), want)
    if window > 1:
        causal = reference.attend(q, pages.memory, pages.of(sequences), positions, window, 50.0)
        assert not np.array_equal(causal, want)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_tiles_do_not_matter(kind: str) -> None:
    shape = Shape(kind, 2, 1, 64, sequences=1)
    positions = range(250, 250 + QUERY_ROWS)
    pages, q = shape.filled([0] * QUERY_ROWS, positions), shape.random(QUERY_ROWS, 2, 1)
    want = reference.attend(q, pages.memory, pages.of([0] * QUERY_ROWS), positions, 100, 0.0)
    for count in range(1, QUERY_ROWS + 1):
        tiles = [(0, count)] + ([(count, QUERY_ROWS - count)] if count < QUERY_ROWS else [])
        step = Step(QUERY_ROWS, positions=positions, sequences=[0] * QUERY_ROWS, tiles=tiles)
        assert_same_bits(attend(shape, pages, q, step, 100, 0.0, threads=1 + count % 2), want)


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("size", [32, 96])
def test_append(kind: str, size: int) -> None:
    """Rows of several sequences, across pages, rounded to the cache's type; every other slot stays as it was."""
    shape = Shape(kind, 4, 2, size, context=1536)
    got, want = shape.empty(), shape.empty()
    sequences, positions = [0, 0, 2, 1, 1, 1], [255, 256, 1500, 0, 1, 2]
    k, v = (shape.random(6, 2, seed) * 100 for seed in (1, 2))
    k[0, 0, :4] = 1e-7, 65519, 65520, -1e9  # a subnormal, the largest, and two infinities as float16
    step = Step(6, positions=positions, sequences=sequences)
    append(shape, got, k, v, step)
    with np.errstate(over="ignore"):
        reference.append(k, v, want.memory, want.of(sequences), positions)
    assert_same_bits(got.memory, want.memory)


def test_q8_0_rounds_as_gguf_does() -> None:
    """The bytes are those of its Q8_0 blocks; ties, and what lies just below one, too."""
    shape = Shape("q8_0", 4, 1, 64, sequences=1)
    rows = np.concatenate([shape.random(20, 1, seed) * np.float32(10.0 ** (seed - 6)) for seed in range(11)])
    ties = np.array([127, 0.5, -0.5, 1.5, -1.5, 2.5, 0.49999997, -0.49999997] * 4, np.float32)
    rows[3], rows[4, :, :32] = np.concatenate([ties, -2 * ties]), 0.0
    want = quants.quantize(rows[:, 0], gguf.GGMLQuantizationType.Q8_0).reshape(len(rows), 2, 34)
    pages = shape.empty()
    append(shape, pages, rows, rows, Step(len(rows), positions=range(len(rows)), sequences=[0] * len(rows)))
    keys, values = cache_types.q8_0_views(pages.memory[pages.numbers[0, :1]])
    for i, blocks in enumerate(want):
        d, q = blocks[:, :2].copy().view(np.float16)[:, 0], blocks[:, 2:].view(np.int8)
        key, value = keys[0, 0, i // LANES], values[0, 0, i // LANES]
        assert np.array_equal(key["q"][:, :, i % LANES], q) and np.array_equal(key["d"][:, i % LANES], d)
        assert np.array_equal(value["q"][i % LANES], q.ravel()) and np.array_equal(value["d"][:, i % LANES], d)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_q8_0_hides_no_value_that_is_no_number(bad: float) -> None:
    shape = Shape("q8_0", 2, 1, 64, sequences=1)
    pages, step = shape.filled([0], [19]), Step(1, positions=[20], sequences=[0])
    k, v = shape.random(1, 1, 1), shape.random(1, 1, 2)
    v[0, 0, 40] = bad
    append(shape, pages, k, v, step)
    y = attend(shape, pages, shape.random(1, 2, 3), step, GLOBAL, 0.0)
    assert np.isfinite(y[0, :, :32]).all() and np.isnan(y[0, :, 32:]).all()
    append(shape, pages, v, k, step)
    assert np.isnan(attend(shape, pages, shape.random(1, 2, 3), step, GLOBAL, 0.0)).all()


@pytest.mark.parametrize(("kind", "bound"), [("f32", 2e-6), ("q8_0", 5e-2)])
def test_the_definition_is_attention(kind: str, bound: float) -> None:
    """The definition itself, against softmax in float64; of q8_0, over the keys and values before rounding."""
    shape = Shape("f32", 4, 2, 64, sequences=1)
    position, window, cap = 400, 300, 3.0
    pages = shape.filled([0], [position])
    q = shape.random(1, 4, 5)
    low = position - window + 1
    read = [cache_types.read(pages.memory[number : number + 1]) for number in pages.numbers[0]]
    keys, values = (np.stack([part.q for part in parts]) for parts in zip(*read, strict=True))
    k = np.concatenate(keys, axis=1)
    k = k[:, low : position + 1].astype(np.float64).repeat(2, axis=0)
    scores = cap * np.tanh(np.einsum("hd,hkd->hk", q[0].astype(np.float64), k) / cap)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    v = np.concatenate(values, axis=1)[:, low : position + 1].astype(np.float64).repeat(2, axis=0)
    exact = np.einsum("hk,hkd->hd", weights, v) / weights.sum(axis=1, keepdims=True)
    rounded = Shape(kind, 4, 2, 64, sequences=1).filled([0], [position])
    got = reference.attend(q, rounded.memory, rounded.of([0]), [position], window, cap)[0]
    error = np.abs(got - exact).max()
    assert error <= bound and (kind == "f32" or error > 1e-4)


def test_nan_in_a_query_or_a_visible_key_stays_nan() -> None:
    shape = Shape("f16", 2, 1, 32, sequences=1)
    pages = shape.filled([0], [20])
    q = shape.random(1, 2, 0)
    q[0, 1, 3] = np.nan
    step = Step(1, positions=[20], sequences=[0])
    for cap in (0.0, 50.0):
        y = attend(shape, pages, q, step, GLOBAL, cap)
        assert np.isfinite(y[0, 0]).all() and np.isnan(y[0, 1]).all()
    q = shape.random(2, 2, 0)
    cache_types.float_views(pages.memory)[0][pages.numbers[0, 0], 0, 0, 0, 1] = np.nan
    for rows in (1, 2):
        step = Step(rows, positions=[20, 1][:rows], sequences=[0, 0][:rows])
        assert np.isnan(attend(shape, pages, q[:rows], step, GLOBAL, 0.0)).all()


@pytest.mark.skipif(current().machine != "x86" or not current().fma, reason="reads x86 assembly")
@pytest.mark.parametrize("kernel", ["attend_f16", "attend_one_f16", "attend_q8_0", "attend_one_q8_0"])
def test_tiles_stay_in_registers(kernel: str) -> None:
    """Loops of products alone take no vector from the stack, nor put one there."""
    text = assembly(Kernel("ops.attention", kernel))
    _, *parts = re.split(r"^(\.L\w+):", text, flags=re.MULTILINE)
    blocks = zip(parts[::2], parts[1::2], strict=True)  # those that jump back to their own label are loops
    loops = [block.split(f"\t{label}\n")[0] for label, block in blocks if f"\t{label}\n" in block]
    loops = [loop for loop in loops if loop.count("vfmadd231ps") >= 8]
    assert len(loops) >= 4
    products = [block for block in loops if "vdiv" not in block and "vmax" not in block]
    spilled = [
        line for block in products for line in block.splitlines() if re.search(r"\(%rsp\).*%[xyz]mm|mm.*\(%rsp\)", line)
    ]
    assert not spilled
