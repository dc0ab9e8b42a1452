"""A runner that knows when it was where in a program. Knows no operation's meaning, and judges no time.

The table of a program runs with a row put before, between and after its own that notes the processor's counter: around
the whole, or around each operation. Every timestamp is a barrier, some 0.1 us, so an operation's time ends when the
last thread is done with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.runner import Runner
from edge_gemma.graph.recorder import Recorded
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.operations import BARRIER, FIRST_ARGUMENT, KERNEL, ROW_WORDS, Kernel

TIMESTAMP = Kernel("simd.clock", "timestamp")


@dataclass(frozen=True)
class Run:
    """One run of a program, or of a part of it.

    ticks: int64 (timestamps,). begun, ended: nanoseconds of `time.perf_counter_ns` as the caller of the threads sees
    them; arranging: nanoseconds spent before on putting the timestamps in.
    """

    ticks: NDArray[np.int64]
    begun: int
    ended: int
    arranging: int

    @property
    def total(self) -> int:
        """Ticks from the first timestamp to the last."""
        return int(self.ticks[-1] - self.ticks[0])


class TimestampedRunner(Runner):
    """A runner that keeps a `Run` for each program it has run. `every`: around each operation, not only at the ends."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.every = False
        self.runs: list[Run] = []
        self._kernel = shared().load([TIMESTAMP])[TIMESTAMP]

    def nanoseconds_per_tick(self) -> float:
        """From the runs so far, at least two: the longer between the first and the last, the more exact."""
        first, last = self.runs[0], self.runs[-1]
        return (last.ended - first.ended) / int(last.ticks[-1] - first.ticks[-1])

    def _execute_part(self, table: NDArray[np.int64], recorded: Sequence[Recorded]) -> None:
        """The table as it stands, in the first step too."""
        self._execute(table)

    def _execute(self, table: NDArray[np.int64]) -> None:
        start = time.perf_counter_ns()
        timed, ticks = self._with_timestamps(table)
        begun = time.perf_counter_ns()
        super()._execute(timed)
        self.runs.append(Run(ticks, begun, time.perf_counter_ns(), begun - start))

    def _with_timestamps(self, table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A copy of `table` with timestamps, and where they will write to."""
        ticks = np.zeros(len(table) + 1 if self.every else 2, np.int64)
        rows = np.zeros((len(table) + len(ticks), ROW_WORDS), np.int64)
        added = np.zeros(len(rows), bool)
        added[:: 2 if self.every else len(rows) - 1] = True
        rows[~added] = table
        rows[added, KERNEL] = self._kernel
        rows[added, FIRST_ARGUMENT] = ticks.ctypes.data + ticks.itemsize * np.arange(len(ticks))
        if self.every:
            rows[:, BARRIER] = 0  # a timestamp has one just before
        rows[added, BARRIER] = 1
        return rows, ticks
