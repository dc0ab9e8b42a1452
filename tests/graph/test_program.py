"""What the recorder writes into the table beside each operation's arguments."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edge_gemma.engine.runner import Runner
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import words_of
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import logit_groups
from edge_gemma.kernels.operations import Regime
from tests.conftest import TinyGguf


def test_each_product_knows_the_matrix_of_the_next(tiny_gguf: TinyGguf) -> None:
    runner = Runner(tiny_gguf("gemma3-256", "Q6_K"), context=16, chunk=8, threads=1)
    weights, address = runner.weights, lambda tensor: runner.file.data(tensor).ctypes.data
    recording = runner.recording(1)
    products = recording.table[[recorded.operation is ops.MATMUL for recorded in recording.recorded]]
    matrices = [[address(t), t.row_bytes, t.shape[0]] for t in weights.tensors() if len(t.shape) == 2]
    runner.close()
    assert len(products) == 7 * len(weights.layers) + 1
    for this, following in pairwise(products):
        assert this[list(ops.NEXT)].tolist() == following[list(ops.MATMUL.slots[:3])].tolist()
        assert this[list(ops.NEXT)].tolist() in matrices
    assert not products[-1, ops.NEXT].any()


def matrix(name: str, rows: int, columns: int, format: str) -> Tensor:
    return Tensor(name, FORMATS[format], (rows, columns), 0, rows * FORMATS[format].row_bytes(columns))


@pytest.mark.parametrize(
    ("gate", "up", "down", "fused"),
    [
        ("Q4_0", "Q4_0", "Q6_K", True),
        ("Q4_0", "Q8_0", "Q4_0", False),
        ("F16", "F16", "Q4_0", False),
        ("Q4_0", "Q4_0", "BF16", False),
    ],
)
def test_many_rows_are_gated_in_one_pass_where_formats_allow(gate: str, up: str, down: str, fused: bool) -> None:
    for regime in Regime:
        program, grown = gated(regime, gate, up, down)
        names = [recorded.operation.name for recorded in program.recorded]
        at_once = fused and regime is Regime.MANY
        assert [name for name in names if name not in ("embed", "quantize")] == (
            ["gated"] if at_once else ["matmul", "matmul", "gate"]
        )
        assert (grown > 2 * regime.most_rows(64) * 4 * 1024) == (not at_once)


def gated(regime: Regime, gate: str, up: str, down: str) -> tuple[Program, int]:
    """A program with a gate, and by how many bytes that made its buffers grow."""
    program = Program(regime, 64, lambda _tensor: 0, "f16", allocate=False)
    x = program.embed(matrix("token_embd", 64, 256, "Q8_0"), 1.0, out="x")
    size = program.buffer_bytes()
    consumers = (matrix("down", 256, 1024, down),)
    program.gelu_gate(x, matrix("gate", 1024, 256, gate), matrix("up", 1024, 256, up), out="gated", consumers=consumers)
    return program, program.buffer_bytes() - size


def test_logits_are_masked_before_their_maxima_are_found() -> None:
    program = Program(Regime.FEW, 4, lambda _tensor: 0, "f16", allocate=False)
    logits, maxima = program.placeholder("logits", 100, 400), program.placeholder("maxima", logit_groups(100), 8)
    program.mask(logits)
    program.group_maxima(logits, maxima)
    table = program.table(dict.fromkeys(program.kernels(), 0))
    table[words_of(table, logits)], table[words_of(table, maxima)] = 1000, 2000
    assert table[:, ops.BARRIER].tolist() == [0, 1]
    assert table[0, list(ops.MASK.slots)].tolist() == [1000, 400, 100]
    assert table[1, list(ops.GROUP_MAXIMA.slots)].tolist() == [1000, 400, 100, 2000, 8]
