"""Walk a program's table: the one compiled call per thread and step. Knows no operation."""

from __future__ import annotations

from typing import Any

from edge_gemma.kernels.atomics import (
    call_kernel,
    fetch_add,
    give_way,
    read_shared,
    word,
    write_shared,
)
from edge_gemma.kernels.jit import inlined
from edge_gemma.kernels.operations import (
    BARRIER,
    FEW,
    FEW_ROWS,
    MANY,
    ONE,
    ROW_WORDS,
    STEP_ARRIVED,
    STEP_CANCEL,
    STEP_GENERATION,
    STEP_ROWS,
    STEP_STOPPED,
    STEP_THREADS,
)

SPINS = 4000
"""Looks at the barrier before giving way to other threads: some tens of microseconds."""


@inlined
def meet(step: Any) -> Any:
    """Wait for all threads of the team. The last one reads the cancel flag, so all agree: 1 means leave."""
    generation = read_shared(step, STEP_GENERATION)
    if fetch_add(step, STEP_ARRIVED, 1) + 1 == word(step, STEP_THREADS):
        write_shared(step, STEP_ARRIVED, 0)
        write_shared(step, STEP_STOPPED, read_shared(step, STEP_CANCEL))
        write_shared(step, STEP_GENERATION, generation + 1)
    else:
        spins = 0
        while read_shared(step, STEP_GENERATION) == generation:
            spins += 1
            if spins > SPINS:
                give_way()
    return read_shared(step, STEP_STOPPED)


def execute(program: Any, operations: Any, step: Any, thread: Any) -> Any:
    """Run the rows of the table at `program`. 0 when done, 1 when cancelled at a barrier."""
    rows = word(step, STEP_ROWS)
    which = ONE if rows == 1 else FEW if rows <= FEW_ROWS else MANY
    for i in range(operations):
        row = program + i * (8 * ROW_WORDS)
        if word(row, BARRIER) != 0 and meet(step) != 0:
            return 1
        call_kernel(word(row, which), row, step, thread)
    return 0


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"execute": execute}
