"""Walk a program's table, and the life of a pool around it: what its threads do in compiled code.

A job is a program, its length and a step, numbered; every thread notes the number of the last job it is done with.
Knows no operation, and nothing of how a thread sleeps: that is `pool`.

The life of job j, where W are the words of thread t. Thread 0 is the caller's own, or one that leads in its place:

    caller               the pool's words = threads, program, its length, step
    post                 for each t > 0:  W.job = j;  W.wake = W.asleep
    caller               wakes those whose W.wake is set
    lead, t = 0          if W.done >= j: return
    serve, t > 0         W.asleep = 0;  wait for W.job != W.done
    both                 for each row of the program:
                             if it has a barrier, wait for all there; leave if it is cancelled
                             kernel(row, step, t)
                         W.done = j
    lead                 wait for W.done >= j of all threads
    serve                no job for 2 ms:  W.asleep = 1;  if W.job == W.done: return, and sleep

Nobody sleeps through a job: `post` writes `job` and then reads `asleep`, `serve` writes `asleep` and then reads `job`.
All these are sequentially consistent, so at least one sees what the other wrote. If both do, a wake-up is left over,
for which `serve` finds no job. tests/kernels/threads/test_protocol.py runs all this in every order.

What the caller owes:

* The pool's words are aligned to 8 bytes (a cache line, so as not to be slow), zero at first but for `asleep`, which is
  1, and stay until each thread has returned from its last `serve` or `lead`.
* Numbers of jobs rise from 1. A job is posted when all that took part in the one before are done with it.
* The table has its counters at 0. The step has STEP_THREADS as in the pool's words, STEP_ARRIVED and STEP_STOPPED 0.
* From `post` until each W.done >= j, the table, the step, and all memory that the rows name stay readable, and writable
  where an operation writes; nobody else writes there, save STEP_CANCEL, at any time. Afterwards no thread touches them.
  So an exception must not get past a job: it is cancelled, posted again (who fell asleep since has to be woken), and
  waited for.
"""

from __future__ import annotations

from typing import Any

from ..operations import (
    BARRIER,
    KERNEL,
    POOL_LOST,
    POOL_OPERATIONS,
    POOL_PROGRAM,
    POOL_SIZE,
    POOL_STEP,
    POOL_TICKS,
    POOL_WORDS,
    ROW_WORDS,
    STEP_ARRIVED,
    STEP_CANCEL,
    STEP_GENERATION,
    STEP_LOST,
    STEP_STOPPED,
    STEP_THREADS,
    WORKER_ASLEEP,
    WORKER_DONE,
    WORKER_JOB,
    WORKER_WAKE,
    WORKER_WORDS,
)
from ..simd.atomics import call_kernel, fetch_add, read_shared, word, write_shared, yield_cpu
from ..simd.clock import ticks
from ..simd.decorators import inlined
from ..simd.float_mode import PLAIN, swap_float_mode

SPINS = 4000
"""Looks before a thread yields its CPU between two: some tens of microseconds."""

LOOKS = SPINS + 5000
"""Looks for another job before sleeping: about 2 ms, as those that yield the CPU take 0.4 us. Sampling a token and
handing it to the caller takes 0.8 ms, and being woken 0.1 to 0.3 ms."""


@inlined
def backoff(looks: Any, since: Any) -> Any:
    """Between two looks at what another thread will write: how many there were, and when they began to take long."""
    if looks == SPINS:
        since = ticks()
    if looks >= SPINS:
        yield_cpu()
    return looks + 1, since


@inlined
def barrier(step: Any) -> Any:
    """Wait for all threads of the job. The last one reads the cancel flag, so all agree: 1 means leave.

    The generation is read before arriving: after that the last may have raised it. It is raised when the rest is
    written: who sees it may arrive at the next barrier at once. STEP_STOPPED stays until all have arrived there.
    """
    generation = read_shared(step, STEP_GENERATION)
    if fetch_add(step, STEP_ARRIVED, 1) + 1 == word(step, STEP_THREADS):
        write_shared(step, STEP_ARRIVED, 0)
        write_shared(step, STEP_STOPPED, read_shared(step, STEP_CANCEL))
        write_shared(step, STEP_GENERATION, generation + 1)
    else:
        looks, since = 0, 0
        while read_shared(step, STEP_GENERATION) == generation:
            looks, since = backoff(looks, since)
        if since != 0:
            fetch_add(step, STEP_LOST, ticks() - since)
    return read_shared(step, STEP_STOPPED)


@inlined
def execute(program: Any, operations: Any, step: Any, thread: Any) -> None:
    """Run the rows of the table at `program`, to the end or to the barrier at which all leave.

    `operations` rows of ROW_WORDS words, whose kernels' addresses are valid; `thread` is below STEP_THREADS.
    """
    for i in range(operations):
        row = program + i * (8 * ROW_WORDS)
        if word(row, BARRIER) != 0 and barrier(step) != 0:
            return
        call_kernel(word(row, KERNEL), row, step, thread)


@inlined
def worker(pool: Any, thread: Any) -> Any:
    """The words of one thread."""
    return pool + 8 * (POOL_WORDS + WORKER_WORDS * thread)


@inlined
def work(pool: Any, thread: Any, job: Any) -> None:
    """Do the thread's part of the present job, in a float mode that does not depend on whose thread it is.

    The table and the step may be freed as soon as the last thread has said that it is done.
    """
    mode = swap_float_mode(PLAIN)
    execute(word(pool, POOL_PROGRAM), word(pool, POOL_OPERATIONS), word(pool, POOL_STEP), thread)
    swap_float_mode(mode)
    write_shared(worker(pool, thread), WORKER_DONE, job)


@inlined
def await_job(mine: Any, done: Any) -> Any:
    """The number of a job that is not `done`, or `done` if none comes for a while."""
    for look in range(LOOKS):
        if read_shared(mine, WORKER_JOB) != done:
            break
        if look > SPINS:
            yield_cpu()
    return read_shared(mine, WORKER_JOB)


def post(pool: Any, job: Any, _: Any) -> None:
    """Give job number `job` to all who take part, and note who sleeps and has to be woken. Can be repeated."""
    for thread in range(1, word(pool, POOL_SIZE)):
        one = worker(pool, thread)
        write_shared(one, WORKER_JOB, job)
        write_shared(one, WORKER_WAKE, read_shared(one, WORKER_ASLEEP))


def lead(pool: Any, job: Any, _: Any) -> None:
    """Thread 0's part of job number `job`, and the wait for all others. Can be repeated: then all are done.

    Who waits for the job may see that all are done before this returns, and begin the next one: the step is not touched
    any more, and the number of threads is read before.
    """
    if read_shared(worker(pool, 0), WORKER_DONE) >= job:
        return
    size, start = word(pool, POOL_SIZE), ticks()
    work(pool, 0, job)
    looks, since = 0, 0
    for thread in range(1, size):
        while read_shared(worker(pool, thread), WORKER_DONE) < job:
            looks, since = backoff(looks, since)
    end = ticks()
    write_shared(pool, POOL_LOST, end - since if since != 0 else 0)
    write_shared(pool, POOL_TICKS, end - start)


def serve(pool: Any, thread: Any, _: Any) -> None:
    """Do jobs as they come, until none came for a while: then the thread counts as asleep."""
    mine = worker(pool, thread)
    write_shared(mine, WORKER_ASLEEP, 0)
    done = read_shared(mine, WORKER_DONE)
    while True:
        job = await_job(mine, done)
        if job == done:
            write_shared(mine, WORKER_ASLEEP, 1)
            job = read_shared(mine, WORKER_JOB)  # given before it could be seen that this thread sleeps
            if job == done:
                return
            write_shared(mine, WORKER_ASLEEP, 0)
        work(pool, thread, job)
        done = job


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"post": post, "lead": lead, "serve": serve}
