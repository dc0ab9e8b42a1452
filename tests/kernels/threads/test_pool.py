"""A pool runs each program once, whoever sleeps or looks for work, and is whole again after an interruption."""

from __future__ import annotations

import signal
import sys
import threading
import time
from queue import SimpleQueue
from types import FrameType

import numpy as np
import pytest

from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.operations import ADD, Kernel
from edge_gemma.kernels.threads.pool import ThreadPool
from tests.kernels.harness import aligned

COLUMNS = 64
FEW, MANY = 1, 40


class Adding:
    """A program of `operations` rows that each add 1 to `rows` rows of y."""

    def __init__(self, rows: int, operations: int = 3) -> None:
        self.y, self._x = (np.zeros((rows, COLUMNS), np.float32) for _ in range(2))
        self._x += 1
        add = Kernel("ops.elementwise", "add")
        self.table = aligned((operations, ops.ROW_WORDS), np.int64)
        self.table[:, ops.KERNEL] = shared().load([add])[add]
        self.table[:, ops.BARRIER] = 1
        arguments = self._x.ctypes.data, 4 * COLUMNS, self.y.ctypes.data, 4 * COLUMNS, COLUMNS
        self.table[:, list(ADD.slots)] = arguments
        self.step = aligned((ops.STEP_WORDS,), np.int64)
        self.step[ops.STEP_ROWS] = rows


@pytest.fixture(params=[1, 2, 5])
def pool(request: pytest.FixtureRequest):
    pool = ThreadPool(request.param)
    yield pool
    pool.close()


def test_every_program_is_run_once_whether_threads_sleep_or_look_for_work(pool: ThreadPool):
    programs = Adding(FEW), Adding(MANY)
    for i in range(300):
        assert pool.run(programs[i % 7 == 0].table, programs[i % 7 == 0].step)
        if i % 50 < 5:
            time.sleep(0.001 * (i % 50))  # around the time after which threads go to sleep
    assert (programs[0].y == 3 * 257).all()
    assert (programs[1].y == 3 * 43).all()


def test_who_does_not_take_part_stays_out(pool: ThreadPool):
    """Whether threads look for work or sleep when they are left out, and when they are called again."""
    random = np.random.default_rng(0)
    programs = Adding(FEW), Adding(MANY)
    for i in range(600):
        for active in pool._active.values():
            active.size = int(random.integers(1, pool.size + 1))
        assert pool.run(programs[i % 7 == 0].table, programs[i % 7 == 0].step)
        if i % 100 < 5:
            time.sleep(0.001 * (i % 100))
    assert (programs[0].y == 3 * 514).all()
    assert (programs[1].y == 3 * 86).all()


def test_waiting_for_others_is_noted(pool: ThreadPool):
    program = Adding(FEW, operations=1000)
    assert pool.run(program.table, program.step)
    last, ticks = pool._words[[ops.POOL_LOST, ops.POOL_TICKS]]
    assert ticks > 0
    assert 0 <= program.step[ops.STEP_LOST] + last <= ticks * pool.size


def test_a_pool_without_work_takes_no_processor_time(pool: ThreadPool):
    program = Adding(FEW)
    pool.run(program.table, program.step)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_a_cancelled_program_says_so_and_the_next_one_runs(pool: ThreadPool, rows: int):
    program = Adding(rows)
    program.step[ops.STEP_CANCEL] = 1
    assert not pool.run(program.table, program.step)
    assert (program.y == 0).all()
    program.step[ops.STEP_CANCEL] = 0
    assert pool.run(program.table, program.step)
    assert (program.y == 3).all()


class InterruptionError(Exception):
    pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs a timer that interrupts")
@pytest.mark.parametrize("rows", [FEW, MANY])
def test_an_exception_at_any_point_leaves_a_pool_that_works(pool: ThreadPool, rows: int):
    def interrupt(_signal: int, _frame: object) -> None:
        raise InterruptionError

    interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(400):
            program = Adding(rows, operations=20)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i))
                for _ in range(50):
                    pool.run(program.table, program.step)
                    program.step[ops.STEP_CANCEL] = 0
            except InterruptionError:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for active in pool._active.values():
                active.size = 1 + i % pool.size
            whole = Adding(rows)
            assert pool.run(whole.table, whole.step)
            assert (whole.y == 3).all()
            assert (program.y <= 50 * 20).all()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100


class InterruptingQueue:
    """An exception comes when the first job has been put, and another where the next function is entered."""

    def __init__(self, jobs: SimpleQueue[int]) -> None:
        self.get = jobs.get
        self._jobs = jobs
        self.raised: list[str] = []

    def put(self, job: int) -> None:
        self._jobs.put(job)
        if not self.raised:
            self.raised.append("put")
            sys.setprofile(self._interrupt)
            raise InterruptionError

    def _interrupt(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.raised.append(frame.f_code.co_name)
            raise InterruptionError  # and is called no more


def test_a_job_does_not_go_on_when_a_second_exception_follows_the_first(pool: ThreadPool):
    program = Adding(MANY, operations=200_000)
    queue = pool._jobs[0] = InterruptingQueue(pool._jobs[0])
    with pytest.raises(InterruptionError):
        pool.run(program.table, program.step)
    assert len(queue.raised) == 2
    assert (pool._workers[:, ops.WORKER_DONE] == pool._job).all()


def test_a_signal_is_heard_during_a_long_step():
    """The thread that leads is not the caller's: a handler runs, and may cancel."""
    pool, program = ThreadPool(2), Adding(MANY, operations=200_000)
    timer = threading.Timer(0.02, program.step.__setitem__, (ops.STEP_CANCEL, 1))
    timer.start()
    assert not pool.run(program.table, program.step)
    pool.close()
    timer.join()


def test_closing_ends_the_threads_and_may_be_repeated(pool: ThreadPool):
    pool.close()
    pool.close()
    assert not any(thread.is_alive() for thread in pool._threads)
