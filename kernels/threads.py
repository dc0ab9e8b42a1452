"""A team of threads that runs programs. Knows no operation.

Each thread makes one call into compiled code per program, without the GIL, and sleeps between programs. The caller
sleeps too, interruptibly: a signal or another thread can cancel a running program at its next barrier.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from edge_gemma.errors import ForkError
from edge_gemma.kernels.library import shared
from edge_gemma.kernels.operations import (
    COUNTER,
    ROW_WORDS,
    STEP_ARRIVED,
    STEP_CANCEL,
    STEP_STOPPED,
    STEP_THREADS,
    Kernel,
)

EXECUTE = Kernel("execute", "execute")

# Numba's native convention: status f(result*, exception**, program, operations, step, thread)
_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
_Job = tuple[int, tuple[int, int, int]] | None
"""Serial number, and what `execute` takes."""


class Team:
    """`size` threads, asleep until `run`. Not reentrant: one program at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._process = os.getpid()
        self._serial = 0
        self._finished = [0] * size  # the last serial number each thread is done with
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(size)]
        self._wake: SimpleQueue[None] = SimpleQueue()
        execute = _PROTOTYPE(shared().load([EXECUTE])[EXECUTE])
        self._threads = [
            threading.Thread(
                target=_work,
                args=(execute, i, self._jobs[i], self._finished, self._wake),
                name=f"edge-gemma-{i}",
                daemon=True,
            )
            for i in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, table: np.ndarray, step: np.ndarray) -> bool:
        """Run the rows of `table`, int64 (operations, ROW_WORDS), on `step`. False if it was cancelled.

        Raises ForkError in a forked child, whose threads do not exist.
        """
        if os.getpid() != self._process:
            raise ForkError("this process was forked after the model was opened; open it again, or use spawn")
        assert table.shape[1] == ROW_WORDS and table.flags.c_contiguous
        table[:, COUNTER] = 0
        step[[STEP_THREADS, STEP_ARRIVED, STEP_STOPPED]] = self.size, 0, 0
        self._serial += 1
        job = self._serial, (table.ctypes.data, len(table), step.ctypes.data)
        try:
            self._give(job)
        except BaseException:
            self._abandon(job, step)
            raise
        return bool(step[STEP_STOPPED] == 0)

    def _give(self, job: _Job) -> None:
        """Hand out `job`, and wait until every thread is done. Can be repeated after an exception at any point."""
        for jobs in self._jobs:
            jobs.put(job)
        while min(self._finished) < self._serial:
            self._wake.get()

    def _abandon(self, job: _Job, step: np.ndarray) -> None:
        """End a program that an exception such as KeyboardInterrupt broke into; its memory is in use until then."""
        while True:
            try:
                step[STEP_CANCEL] = 1
                return self._give(job)
            except BaseException:  # another Ctrl-C; the first one is raised soon
                continue

    def close(self) -> None:
        """End the threads. Idempotent."""
        for jobs in self._jobs:
            jobs.put(None)
        if os.getpid() == self._process:
            for thread in self._threads:
                thread.join()


def _work(
    execute: Callable[..., int], number: int, jobs: SimpleQueue[_Job], finished: list[int], wake: SimpleQueue[None]
) -> None:
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    while (job := jobs.get()) is not None:
        serial, arguments = job
        if serial > finished[number]:  # else it was given again
            execute(ctypes.addressof(result), ctypes.addressof(exception), *arguments, number)
            finished[number] = serial
            wake.put(None)
