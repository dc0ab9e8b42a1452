"""Each matrix of a program is touched once, before its first product; nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_gemma.engine.runner import Runner
from edge_gemma.graph.first_touch import with_touches
from edge_gemma.kernels import operations as ops
from tests.conftest import TinyGguf

KERNEL = 4711


@pytest.fixture(params=[("gemma3-256", "Q6_K"), ("gemma2-256", "Q4_K"), ("gemma3-4b", "F32")], ids="-".join)
def runner(request: pytest.FixtureRequest, tiny_gguf: TinyGguf) -> Iterator[Runner]:
    opened = Runner(tiny_gguf(*request.param), context=16, chunk=8, threads=1)
    yield opened
    opened.close()


def test_matrices_are_touched_before_their_products(runner: Runner) -> None:
    table = with_touches(runner._table, runner.recorded, KERNEL)
    touches = table[:, ops.ONE] == KERNEL
    assert (table[~touches] == runner._table).all() and (table[touches, ops.ONE : ops.MANY + 1] == KERNEL).all()
    assert not table[touches, ops.BARRIER].any()
    recorded, touched = iter(runner.recorded), {}
    for row in table:
        if row[ops.ONE] == KERNEL:
            at, size = row[list(ops.TOUCH.slots)].tolist()
            assert at not in touched
            touched[at] = size
        elif (what := next(recorded)).operation in (ops.MATMUL, ops.GATED):
            assert [touched[runner.file.data(t).ctypes.data] for t in what.weights] == [t.nbytes for t in what.weights]
    tensors = {t.name: t for what in runner.recorded if what.operation is ops.MATMUL for t in what.weights}
    assert len(touched) == len(tensors) > 7


def test_tables_of_which_rows_are_taken_are_not(runner: Runner) -> None:
    """As the embedding, where no product takes it."""
    body = runner._table[: runner._body]
    table = with_touches(body, runner.recorded[: runner._body], KERNEL)
    touched = table[table[:, ops.ONE] == KERNEL][:, ops.TOUCH.slots.at]
    assert len(touched) == 7 * len(runner.weights.layers)
    assert runner.file.data(runner.weights.token_embd).ctypes.data not in touched
