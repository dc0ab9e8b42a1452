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
_Job = tuple[int, int, int] | None


class Team:
    """`size` threads, asleep until `run`. Not reentrant: one program at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._process = os.getpid()
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(size)]
        self._done: SimpleQueue[int] = SimpleQueue()
        execute = _PROTOTYPE(shared().load([EXECUTE])[EXECUTE])
        self._threads = [
            threading.Thread(
                target=_work, args=(execute, i, self._jobs[i], self._done), name=f"edge-gemma-{i}", daemon=True
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
        for jobs in self._jobs:
            jobs.put((table.ctypes.data, len(table), step.ctypes.data))
        self._wait(step)
        return bool(step[STEP_STOPPED] == 0)

    def _wait(self, step: np.ndarray) -> None:
        """Until every thread is done. An exception here, such as KeyboardInterrupt, first ends the program."""
        waiting = self.size
        try:
            while waiting:
                self._done.get()
                waiting -= 1
        except BaseException:
            step[STEP_CANCEL] = 1
            for _ in range(waiting):
                self._done.get()
            raise

    def close(self) -> None:
        """End the threads. Idempotent."""
        for jobs in self._jobs:
            jobs.put(None)
        if os.getpid() == self._process:
            for thread in self._threads:
                thread.join()


def _work(execute: Callable[..., int], number: int, jobs: SimpleQueue[_Job], done: SimpleQueue[int]) -> None:
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    while (job := jobs.get()) is not None:
        execute(ctypes.addressof(result), ctypes.addressof(exception), *job, number)
        done.put(number)
