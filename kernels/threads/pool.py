"""A pool of threads that runs programs. Knows no operation.

The caller's own thread takes part in a step of a few rows: nobody has to be woken to hear of its end. The others look
for another job for about two milliseconds, and then sleep. A longer step has a thread of its own in the caller's place,
which sleeps interruptibly: a signal or another thread can cancel it at its next barrier.

`execute` tells the life of a job. The caller of `run` owes what is said there of the memory that the table names: it
stays, and nobody else writes to it, until `run` returns or raises. `run` keeps the table and the step meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `native`
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import EdgeGemmaError, ForkError, ThreadError

from ..jit.library import shared
from ..native_threads import start_thread
from ..operations import (
    COUNTER,
    FEW_ROWS,
    POOL_LOST,
    POOL_SIZE,
    POOL_STEP,
    POOL_TICKS,
    POOL_WORDS,
    ROW_WORDS,
    STEP_ARRIVED,
    STEP_CANCEL,
    STEP_LOST,
    STEP_ROWS,
    STEP_STOPPED,
    STEP_THREADS,
    WORKER_ASLEEP,
    WORKER_DONE,
    WORKER_WAKE,
    WORKER_WORDS,
    Kernel,
)
from .active_threads import ActiveThreads

LINE = 64
KERNELS = [Kernel("threads.execute", name) for name in ("post", "lead", "serve")]
"""What a pool runs beside its programs: to be loaded with these, so that all are compiled together."""

# Numba's native convention: status f(result*, exception**, int64, int64, int64)
_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)


class ThreadPool:
    """`size` threads, the caller's among them; fewer take part while they hold each other up (`ActiveThreads`).

    Not reentrant: one program at a time.
    """

    def __init__(self, size: int) -> None:
        """Raises ThreadError where so many threads cannot be had. One can always: the caller's."""
        self.size = size
        self._active: defaultdict[tuple[int, int], ActiveThreads] = defaultdict(lambda: ActiveThreads(size))
        """By rows of a step, many being one kind as its time is in proportion, and length of a program."""
        self._process = os.getpid()
        self._job = 0
        self._words, self._workers = _words(size)
        addresses = shared().load(KERNELS)
        self._post, self._lead, self._serve = (self._bound(addresses[kernel]) for kernel in KERNELS)
        self._done: SimpleQueue[None] = SimpleQueue()
        self._jobs: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(size)]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # held while a program runs
        self._closed = False
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            for i in range(self.size):
                work = partial(self._worker if i else self._leader, i)
                self._threads.append(start_thread(work, f"edge-gemma-{i}"))
        except ThreadError:
            if self.size > 1:
                raise

    def _bound(self, address: int) -> Callable[[int], None]:
        """A function of `execute`, on this pool."""
        function = _PROTOTYPE(address)
        result, exception = (ctypes.byref(ctypes.c_int64()) for _ in range(2))
        return lambda number: function(result, exception, self._words.ctypes.data, number, 0)

    def run(self, table: NDArray[np.int64], step: NDArray[np.int64]) -> bool:
        """Run the rows of `table`, int64 (operations, ROW_WORDS), on `step`. False if it was cancelled.

        Raises ForkError in a forked child, whose threads do not exist, and EdgeGemmaError in a pool that is closed.
        """
        if os.getpid() != self._process:
            raise ForkError("this process was forked after the model was opened; open it again, or use spawn")
        with self._lock:
            if self._closed:  # perhaps because the interpreter ends
                raise EdgeGemmaError("the model is closed")
            return self._run(table, step)

    def _run(self, table: NDArray[np.int64], step: NDArray[np.int64]) -> bool:
        assert table.shape[1] == ROW_WORDS and table.flags.c_contiguous
        table[:, COUNTER] = 0
        rows = int(step[STEP_ROWS])
        few = rows <= FEW_ROWS
        leading = few or not self._threads
        active = self._active[min(rows, FEW_ROWS + 1), len(table)]
        step[[STEP_THREADS, STEP_ARRIVED, STEP_STOPPED, STEP_LOST]] = active.size, 0, 0, 0
        self._words[: POOL_STEP + 1] = active.size, table.ctypes.data, len(table), step.ctypes.data
        self._job += 1
        start = time.monotonic()
        try:
            self._do(leading)
        except BaseException:  # such as KeyboardInterrupt; the memory is in use until the job is done
            while True:  # not a function of its own: another exception could come where that is entered
                try:
                    step[STEP_CANCEL] = 1
                    self._do(leading)
                    break
                except BaseException:  # another Ctrl-C; the first one is raised soon
                    continue
            raise
        if step[STEP_STOPPED]:
            return False
        lost = step[STEP_LOST] + self._words[POOL_LOST]
        active.note(start, time.monotonic(), 1 if few else rows, lost / max(1, self._words[POOL_TICKS]))
        return True

    def _do(self, taking_part: bool) -> None:
        """Do the present job; returns when all threads are done. Can be repeated after an exception at any point."""
        workers = self._workers[: self._words[POOL_SIZE]]
        self._post(self._job)
        for thread in np.flatnonzero(workers[1:, WORKER_WAKE]) + 1:
            self._jobs[thread].put(self._job)
        if taking_part:
            self._lead(self._job)
            return
        self._jobs[0].put(self._job)
        while workers[:, WORKER_DONE].min() < self._job:
            self._done.get()

    def _leader(self, number: int) -> None:
        """Leads in the caller's place."""
        while job := self._jobs[number].get():
            self._lead(job)
            self._done.put(None)

    def _worker(self, number: int) -> None:
        while self._jobs[number].get():
            self._serve(number)

    def close(self) -> None:
        """End the threads, when a program that runs has ended. Idempotent; in a forked child there are none."""
        if os.getpid() != self._process:
            return
        self._closed = True
        with self._lock:
            for jobs in self._jobs:
                jobs.put(0)
        for thread in self._threads:
            if thread.ident != threading.get_ident():  # where it has collected the garbage that the model was in
                thread.join()


def _words(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What a pool of `size` and its compiled code share: all words, and (size, WORKER_WORDS) of the threads, asleep."""
    count = POOL_WORDS + WORKER_WORDS * size
    memory = np.zeros(count + LINE // 8, np.int64)
    words = memory[-memory.ctypes.data % LINE // 8 :][:count]
    words[POOL_SIZE] = size
    workers = words[POOL_WORDS:].reshape(size, WORKER_WORDS)
    workers[:, WORKER_ASLEEP] = 1
    return words, workers
