"""Each matrix of a program is touched once, before its first product; nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from numpy.typing import NDArray

from edge_gemma.engine.recording import Recording
from edge_gemma.engine.runner import Runner
from edge_gemma.graph.first_touch import FirstTouch
from edge_gemma.kernels import operations as ops
from tests.conftest import TinyGguf

KERNEL = 4711
ROWS = pytest.mark.parametrize("rows", [1, 2, 20])


@pytest.fixture(params=[("gemma3-256", "Q6_K"), ("gemma2-256", "Q4_K"), ("gemma3-4b", "F32")], ids="-".join)
def runner(request: pytest.FixtureRequest, tiny_gguf: TinyGguf) -> Iterator[Runner]:
    opened = Runner(tiny_gguf(*request.param), context=32, chunk=32, threads=1)
    yield opened
    opened.close()


def touches(table: NDArray[Any]) -> dict[int, int]:
    """Address -> bytes of what a table touches, each once."""
    found = table[table[:, ops.KERNEL] == KERNEL][:, list(ops.TOUCH.slots)].tolist()
    assert len({at for at, _ in found}) == len(found)
    return dict(found)


def matrices(runner: Runner, recording: Recording) -> dict[int, int]:
    """Address -> bytes of those that products take."""
    taking = [what for what in recording.recorded if what.operation in (ops.MATMUL, ops.GATED)]
    return {runner.file.data(t).ctypes.data: t.nbytes for what in taking for t in what.weights}


@ROWS
def test_matrices_are_touched_before_their_products(runner: Runner, rows: int) -> None:
    recording = runner.recording(rows)
    table = FirstTouch(KERNEL).added_to(recording.table, recording.recorded)
    is_touch = table[:, ops.KERNEL] == KERNEL
    assert (table[~is_touch] == recording.table).all() and not table[is_touch, ops.BARRIER].any()
    assert touches(table) == matrices(runner, recording)
    recorded = iter(recording.recorded)
    for i, row in enumerate(table):
        if row[ops.KERNEL] != KERNEL and (what := next(recorded)).operation in (ops.MATMUL, ops.GATED):
            assert {runner.file.data(t).ctypes.data for t in what.weights} <= touches(table[:i]).keys()


@ROWS
def test_tables_of_which_rows_are_taken_are_not(runner: Runner, rows: int) -> None:
    """As the embedding, where no product takes it."""
    body = runner.recording(rows)
    touched = touches(FirstTouch(KERNEL).added_to(body.body, body.recorded_body))
    assert len(touched) == 7 * len(runner.weights.layers)
    assert runner.file.data(runner.weights.token_embd).ctypes.data not in touched


def test_what_was_read_is_not_touched_again(runner: Runner) -> None:
    """In a step of another number of rows, too."""
    touch, one, many = FirstTouch(KERNEL), runner.recording(1), runner.recording(20)
    body = many.body
    touch.note(body, many.recorded_body)
    assert touch.added_to(body, many.recorded_body) is body
    output = runner.weights.output
    assert touches(touch.added_to(one.table, one.recorded)) == {runner.file.data(output).ctypes.data: output.nbytes}
    touch.note(one.table, one.recorded)
    assert touches(touch.added_to(many.table, many.recorded)) == {}
