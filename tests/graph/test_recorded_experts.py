"""A mixture of experts as a program records it, run by a pool: equal bits in company, against the definition."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.buffers import aligned_bytes
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import words_of
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.layout import ZEROS, expert_scratch
from edge_gemma.kernels.operations import Regime
from edge_gemma.kernels.reference import experts as reference
from edge_gemma.kernels.reference import operations as plain
from tests.kernels.harness import Array, aligned, assert_same_bits, pool, random_rows

E, K, D, CHUNK = 8, 2, 256, 100
STEPS = (1, 3, 16, 17, 100)


@dataclass
class Mixture:
    """Random weights: formats of gate and up, one tensor or two, and of down. F: an expert's width."""

    gate_up: tuple[str, ...]
    down: str
    F: int = 96
    data: dict[str, Array] = field(default_factory=dict)

    def tensor(self, name: str, format: str, *shape: int) -> Tensor:
        if name not in self.data:
            rows = random_rows(format, int(np.prod(shape[:-1])), shape[-1], len(self.data))
            if FORMATS[format].is_float:
                rows = (rows.view({"F32": np.float32, "F16": np.float16}[format]) * np.float16(0.1)).view(np.uint8)
            self.data[name] = rows
        return Tensor(name, FORMATS[format], shape, 0, self.data[name].nbytes)

    def matrices(self, name: str) -> Array:
        """(E, rows, row bytes)."""
        return self.data[name].reshape(E, -1, self.data[name].shape[-1])

    def tensors(self) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """The router's matrix, the experts' scales, gate and up, and down."""
        router, scales = self.tensor("router", "F32", E, D), self.tensor("scales", "F32", E)
        rows = (2 if len(self.gate_up) == 1 else 1) * self.F
        gate_up = tuple(self.tensor(f"gate_up{i}", f, E, rows, D) for i, f in enumerate(self.gate_up))
        return router, scales, gate_up, self.tensor("down", self.down, E, D, self.F)


def form(x: Array, format: str) -> Array:
    return x if FORMATS[format].is_float else plain.quantize(x, ZEROS.get(format, 0))


def expected(m: Mixture, x: Array) -> Array:
    logits = plain.matmul_float("F32", m.data["router"], x)
    experts, shares = reference.route(logits, K, D**-0.5, m.data["scales"].view(np.float32).reshape(-1))
    pairs, each = experts.reshape(-1), x.repeat(K, axis=0)
    products = [reference.products(f, m.matrices(f"gate_up{i}"), form(each, f), pairs) for i, f in enumerate(m.gate_up)]
    g, u = np.split(np.concatenate(products, axis=1), 2, axis=1)
    down = reference.products(m.down, m.matrices("down"), form(plain.gate(g, u), m.down), pairs)
    return reference.combine(down, shares, np.arange(pairs.size).reshape(-1, K))


@dataclass
class Run:
    """A program of a regime with its table, and arrays that its placeholders stand for."""

    program: Program
    table: Array
    x: Array
    y: Array

    def step(self, x: Array, threads: int) -> Array:
        self.x[: len(x)] = x
        words, scratch = aligned((ops.STEP_WORDS,), np.int64), aligned_bytes(threads * expert_scratch(CHUNK))
        words[[ops.STEP_ROWS, ops.STEP_SCRATCH_BYTES]] = len(x), expert_scratch(CHUNK)
        words[ops.STEP_SCRATCH] = scratch.ctypes.data
        assert pool(threads).run(self.table, words)
        return self.y[: len(x)].copy()


def recorded(m: Mixture, regime: Regime) -> Run:
    router, scales, gate_up, down = m.tensors()
    program = Program(regime, CHUNK, lambda tensor: m.data[tensor.name].ctypes.data, "f16")
    placeholder = program.placeholder("x", D, 4 * D)
    logits = program.matmul(placeholder, router, out="logits")
    routed = program.route(logits, K, D**-0.5, scales)
    result = program.experts(placeholder, routed, gate_up, down, out="y")
    table = aligned((len(program), ops.ROW_WORDS), np.int64)
    table[:] = program.table(shared().load(list(program.kernels())))
    x = aligned((CHUNK, D), np.float32)
    table[words_of(table, placeholder)] = x.ctypes.data
    y = program._memory[result.name].view(np.float32)
    return Run(program, table, x, y.reshape(-1, result.stride // 4)[:, :D])


@cache
def inputs() -> Array:
    """The first rows are alike, so that some experts have many rows and others one or none."""
    x = np.random.default_rng(0).standard_normal((CHUNK, D)).astype(np.float32)
    x[:60] = x[0] + x[:60] * np.float32(0.2)
    return x


@pytest.mark.parametrize(
    ("gate_up", "down", "F"),
    [
        (("Q4_0",), "Q5_1", 96),
        (("Q4_0", "Q4_0"), "Q4_0", 32),
        (("Q4_K", "Q6_K"), "Q8_0", 96),
        (("F16",), "F32", 96),
        (("F32", "F16"), "Q4_0", 32),
        (("Q6_K",), "F16", 32),
    ],
)
def test_a_row_has_the_same_bits_in_any_step_by_any_threads(gate_up: tuple[str, ...], down: str, F: int) -> None:
    m, x = Mixture(gate_up, down, F), inputs()
    runs = {regime: recorded(Mixture(gate_up, down, F, m.data), regime) for regime in Regime}
    want = expected(m, x)
    assert np.isfinite(want).all() and want.any(axis=1).all()
    for rows in STEPS:
        for first in (0, CHUNK - rows):
            for threads in (1, 2, 3):
                got = runs[Regime.of(rows)].step(x[first : first + rows], threads)
                assert_same_bits(got, want[first : first + rows])


def test_experts_have_one_row_some_and_none() -> None:
    """What the test above meets."""
    m, x = Mixture(("Q4_0",), "Q4_0"), inputs()
    m.tensors()
    logits = plain.matmul_float("F32", m.data["router"], x)
    experts, _ = reference.route(logits, K, D**-0.5)
    few, many = (np.bincount(experts[:rows].reshape(-1), minlength=E) for rows in (3, 17))
    assert few.min() == 0 and 3 in few and 1 in many and many.max() == 17


@pytest.mark.parametrize(
    ("gate_up", "down", "fused"),
    [
        (("Q4_0",), "Q8_0", True),
        (("Q4_0", "Q4_0"), "Q8_0", True),
        (("Q4_0", "Q8_0"), "Q8_0", False),
        (("Q4_0",), "F16", False),
        (("F16",), "Q8_0", False),
    ],
)
def test_many_rows_are_gated_in_one_pass_where_formats_allow(gate_up: tuple[str, ...], down: str, fused: bool) -> None:
    for regime in Regime:
        program = recorded(Mixture(gate_up, down), regime).program
        names = [r.operation.name for r in program.recorded if r.operation is not ops.QUANTIZE]
        product = ["experts"] * len(gate_up) + ["expert_gate"]
        between = ["experts_gated"] if fused and regime is Regime.MANY else product
        assert names == ["matmul", "route", "dispatch", *between, "experts", "combine"]


def test_products_of_experts_know_the_matrices_of_the_next() -> None:
    m = Mixture(("Q4_0",), "Q8_0")
    run = recorded(m, Regime.ONE)
    operations = [r.operation for r in run.program.recorded]
    router, first = run.table[operations.index(ops.MATMUL)], run.table[operations.index(ops.EXPERTS)]
    assert not router[list(ops.NEXT)].any()
    down = m.matrices("down")
    assert first[list(ops.NEXT)].tolist() == [down.ctypes.data, down.shape[2], D]
    assert first[ops.NEXT_EXPERT_BYTES] == down.strides[0]


def test_every_operation_waits_for_what_it_reads() -> None:
    run = recorded(Mixture(("F16",), "F32"), Regime.FEW)
    names = [r.operation.name for r in run.program.recorded]
    assert names == ["matmul", "route", "dispatch", "experts", "expert_gate", "experts", "combine"]
    assert run.table[:, ops.BARRIER].tolist() == [0, 1, 1, 1, 1, 1, 1]
