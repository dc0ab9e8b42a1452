"""Operations that give int8 blocks give those that `quantize` makes of their floats, with and without the floats."""

from __future__ import annotations

import numpy as np
import pytest

from edge_gemma.kernels.layout import LINE, attention_scratch, partial_bytes, row_scratch
from edge_gemma.kernels.operations import ATTEND, GATE, GELU, MERGE, NORM
from edge_gemma.kernels.reference import operations as reference
from tests.kernels.harness import Array, Step, aligned, assert_same_bits, row, run
from tests.kernels.ops.test_attention import LAYER, Shape

ZERO = 8


def random(rows: int, columns: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def lines(rows: int, columns: int) -> Array:
    return aligned((rows, columns // 32 * LINE), np.uint8)


def int8(q: Array) -> dict[str, Array | int]:
    return {"q": q, "q_stride": q.strides[0], "zero": ZERO}


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (3, 640), (5, 1184)])
def test_norm(rows: int, columns: int, floats: bool) -> None:
    x, weight, y = random(rows, columns, 1), random(1, columns, 2)[0], np.zeros((rows, columns), np.float32)
    q = lines(rows, columns)
    operation = row(
        NORM, "elementwise.norm", x=x, x_stride=x.strides[0], weight=weight, columns=columns, epsilon=1e-6, base=0,
        base_stride=0, factor=0, y=y if floats else 0, y_stride=y.strides[0], **int8(q),
    )  # fmt: skip
    step = Step(rows)
    step.scratch_bytes = row_scratch(columns)
    run([operation], step, threads=2)
    want = reference.norm(x, weight, 1e-6, None)
    assert_same_bits(q, reference.quantize(want, ZERO))
    assert_same_bits(y, want if floats else np.zeros_like(y))


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (3, 640), (5, 1184)])
def test_gate(rows: int, columns: int, floats: bool) -> None:
    gate, up, y = random(rows, columns, 1), random(rows, columns, 2), np.zeros((rows, columns), np.float32)
    q = lines(rows, columns)
    operation = row(
        GATE, "elementwise.gate", gate=gate, gate_stride=gate.strides[0], up=up, up_stride=up.strides[0],
        activation=GELU, columns=columns, y=y if floats else 0, y_stride=y.strides[0], **int8(q),
    )  # fmt: skip
    step = Step(rows)
    step.scratch_bytes = row_scratch(32)
    run([operation], step, threads=2)
    want = reference.gate(gate, up)
    assert_same_bits(q, reference.quantize(want, ZERO))
    assert_same_bits(y, want if floats else np.zeros_like(y))


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_attention(rows: int, floats: bool) -> None:
    shape = Shape("f16", 4, 2, 64)
    positions, sequences = list(range(300, 300 + rows)), [0] * rows
    pages, spans = shape.filled(sequences, positions), shape.spans(100)
    queries = shape.random(rows, shape.heads, 99)
    width = shape.heads * shape.size
    y, q = np.zeros((rows, width), np.float32), lines(rows, width)
    partial = np.zeros(partial_bytes(shape.heads, shape.size, spans), np.uint8)
    out = y if floats else 0
    operations = [
        row(
            ATTEND, f"attention.attend_one_{shape.kind}", f"attention.attend_{shape.kind}",
            q=queries, q_stride=queries.strides[0], y=out, y_stride=y.strides[0], heads=shape.heads,
            kv_heads=shape.kv_heads, head_dim=shape.size, layer=LAYER, head_bytes=pages.head_bytes, window=100,
            ahead=0, softcap=50.0, partial=partial, spans=spans, q_out=q, q_out_stride=q.strides[0], zero=ZERO,
        ),
        row(
            MERGE, "attention.merge", y=out, heads=shape.heads,
            head_dim=shape.size, window=100, partial=partial, spans=spans, q=q, zero=ZERO,
        ),
    ]  # fmt: skip
    step = Step(rows, positions=positions, sequences=sequences, tables=pages.tables)
    step.scratch_bytes = attention_scratch(shape.size, shape.heads // shape.kv_heads)
    run(operations if rows == 1 else operations[:1], step, threads=2)
    want = reference.attend(queries, pages.memory, pages.of(sequences), positions, 100, 50.0).reshape(rows, width)
    assert_same_bits(q, reference.quantize(want, ZERO))
    assert_same_bits(y, want if floats else np.zeros_like(y))
