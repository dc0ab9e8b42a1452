"""A model of the protocol between a pool's threads, to be run through all interleavings.

The compiled half is `kernels/threads/execute.py` itself: its functions are made generators that yield where they call
`word`, `read_shared`, `write_shared`, `fetch_add` or `call_kernel`, in their order. Two things are left out: how long a
thread looks before it yields its CPU (`backoff`), and how often before it sleeps (LOOKS is 0). A look in vain changes
nothing, so a thread that has yet to look stands for one that has looked any number of times.

The Python half, `Model`, follows `kernels/threads/pool.py` line by line; the lines stand beside it, and are compared.
A `point` is a place between two lines where Python may raise KeyboardInterrupt in the caller; compiled code has none.

What must hold, beside that all come to an end: see `_call_kernel`, `_step_word` and `_end`.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from edge_gemma.kernels import operations as ops
from tests.kernels.threads.interleavings import Explorer, Memory, Program, Request, ViolationError

Steps = Generator[Request, Any, Any]
Words = dict[Any, Any]
ROOT = Path(__file__).parents[3]
SOURCE = (ROOT / "kernels" / "threads" / "execute.py").read_text(encoding="utf-8")
VALUES, EFFECTS = {"word", "read_shared", "fetch_add"}, {"write_shared", "call_kernel"}
NO_ACCESS = {"worker", "backoff", "kernels"}
TABLES, STEPS, APART = 10**6, 10**7, 10**4
"""Addresses of the tables and steps of jobs; the pool's words begin at 0."""
INTERRUPT = KeyboardInterrupt()
INTERRUPTIBLE = ("point",), ("get", "done")
STEP_WORDS = ops.STEP_ARRIVED, ops.STEP_GENERATION, ops.STEP_CANCEL, ops.STEP_STOPPED


class Job(NamedTuple):
    """Threads that take part, whether thread 0 is the caller's, and operations, each after a barrier."""

    threads: int
    leading: bool = True
    operations: int = 2


class _Accesses(ast.NodeTransformer):
    """Makes calls that access memory yield, and keeps what they give in a local."""

    def __init__(self, generators: set[str]) -> None:
        self._generators = generators
        self._count = 0

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called in self._generators:
            return self._kept(ast.YieldFrom(node))
        if called in VALUES | EFFECTS:
            request = ast.Yield(ast.Tuple([ast.Constant(called), *node.args], ast.Load()))
            return self._kept(request) if called in VALUES else request
        return node

    def _kept(self, value: ast.expr) -> ast.expr:
        self._count += 1
        return ast.NamedExpr(ast.Name(f"_{self._count}", ast.Store()), value)


def compiled_half(source: str = SOURCE) -> SimpleNamespace:
    """The functions of `execute`, as generators."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    functions = [function for function in functions if function.name not in NO_ACCESS - {"worker"}]
    accesses = _Accesses({function.name for function in functions} - NO_ACCESS)
    for function in functions:
        function.decorator_list = []
        accesses.visit(function)
    module = ast.Module([ast.parse("from __future__ import annotations").body[0], *functions], [])
    names: dict[str, Any] = dict(vars(ops)) | {"PLAIN": 0, "SPINS": 1, "LOOKS": 0}
    names |= {"ticks": lambda: 0, "backoff": lambda *looks: looks, "swap_float_mode": lambda mode: mode}
    exec(compile(ast.fix_missing_locations(module), "execute", "exec"), names)
    return SimpleNamespace(**names)


class Model:
    """A pool of `size` that does `jobs` and is closed, by the caller or at any time by another thread.

    `cancels` times somebody sets a step's cancel flag, and `interrupts` exceptions break into the caller, at any time.
    """

    def __init__(
        self,
        size: int,
        jobs: list[Job],
        cancels: int = 0,
        interrupts: int = 0,
        closed_by_another: bool = False,
        source: str = SOURCE,
    ) -> None:
        self.size, self.jobs = size, jobs
        self._cancels, self._closed_by_another = cancels, closed_by_another
        code = compiled_half(source)
        self._post, self._lead, self._serve = code.post, code.lead, code.serve
        words: dict[Any, Any] = {8 * i: 0 for i in range(ops.POOL_WORDS + ops.WORKER_WORDS * size)}
        words |= {self._worker(thread) + 8 * ops.WORKER_ASLEEP: 1 for thread in range(size)}
        words |= {("step", word): 0 for word in STEP_WORDS}
        words |= {("jobs", thread): () for thread in range(size)} | {"done": (), "lock": 0, "closed": 0}
        words |= {"running": 0, "progress": (0,) * size, "interrupts": interrupts}
        self._keys, self._start = tuple(words), tuple(words.values())

    def __str__(self) -> str:
        jobs = "+".join(f"{job.operations}x{job.threads}{'' if job.leading else 'many'}" for job in self.jobs)
        others = f"{self._cancels} cancels, {self._start[-1]} interrupts" + ", a closer" * self._closed_by_another
        return f"{self.size} threads: {jobs}, {others}"

    def explore(self) -> int:
        """All interleavings; the number of states. Raises ViolationError."""
        return Explorer(self._programs(), self._perform, self._local).explore(self._start)

    def _programs(self) -> dict[str, Program]:
        programs: dict[str, Program] = {"caller": self.caller, "leader": lambda: self.leader(0)}
        programs |= {f"worker {i}": lambda i=i: self.worker(i) for i in range(1, self.size)}  # type: ignore[misc]
        programs |= {f"cancel {i}": self.canceller for i in range(self._cancels)}
        return programs | ({"closer": self.close} if self._closed_by_another else {})

    # What the threads do

    def caller(self) -> Steps:
        """A program after the other, whatever becomes of it, and the end of the pool."""
        for job in range(1, len(self.jobs) + 1):
            with contextlib.suppress(KeyboardInterrupt):
                yield from self.run(job)
        yield from self.close()

    def canceller(self) -> Steps:
        """Somebody else, at any time."""
        yield ("cancel",)

    def run(self, job: int) -> Steps:
        """As `ThreadPool.run`."""
        yield ("acquire",)
        closed = yield ("is_closed",)
        try:
            if not closed:
                yield from self.run_locked(job)
        except KeyboardInterrupt:
            yield ("release",)
            raise
        yield ("release",)

    def run_locked(self, job: int) -> Steps:
        """As `ThreadPool._run`. From `begin` to `end` its words stay, and table and step may be used."""
        yield "begin", job
        try:
            yield ("point",)
            yield from self.do(job)
        except KeyboardInterrupt:
            yield from self.abandon(job, STEPS + APART * job)
            yield "end", job
            raise
        yield "end", job

    def do(self, job: int) -> Steps:
        workers = self.jobs[job - 1].threads  # workers = self._workers[: self._words[POOL_SIZE]]
        yield ("point",)
        yield from self._post(0, job, 0)  # self._post(self._job)
        yield ("point",)
        for thread in range(1, workers):  # for thread in np.flatnonzero(workers[1:, WORKER_WAKE]) + 1:
            wake = yield "read_shared", self._worker(thread), ops.WORKER_WAKE
            if wake:
                yield "put", ("jobs", thread), job  # self._jobs[thread].put(self._job)
            yield ("point",)
        if self.jobs[job - 1].leading:  # if taking_part:
            yield from self._lead(0, job, 0)  # self._lead(self._job)
            yield ("point",)
            return  # return
        yield "put", ("jobs", 0), job  # self._jobs[0].put(self._job)
        while (yield from self.some_are_not_done(workers, job)):  # while workers[:, WORKER_DONE].min() < self._job:
            yield ("point",)
            yield "get", "done"  # self._done.get()
            yield ("point",)

    def some_are_not_done(self, workers: int, job: int) -> Steps:
        """The minimum, word by word."""
        for thread in range(workers):
            done = yield "read_shared", self._worker(thread), ops.WORKER_DONE
            if done < job:
                return True
        return False

    def abandon(self, job: int, step: int) -> Steps:
        """The handler in `ThreadPool._run`."""
        while True:  # while True:
            try:  # try:
                yield ("point",)
                yield "write_shared", step, ops.STEP_CANCEL, 1  # step[STEP_CANCEL] = 1
                yield from self.do(job)  # self._do(leading)
                break  # break
            except KeyboardInterrupt:  # except BaseException:
                continue  # continue

    def leader(self, number: int) -> Steps:
        while job := (yield "get", ("jobs", number)):  # while job := self._jobs[number].get():
            yield from self._lead(0, job, 0)  # self._lead(job)
            yield "put", "done", 1  # self._done.put(None)

    def worker(self, number: int) -> Steps:
        while (yield "get", ("jobs", number)):  # while self._jobs[number].get():
            yield from self._serve(0, number, 0)  # self._serve(number)

    def close(self) -> Steps:
        """As `ThreadPool.close`, up to where it waits for the threads to end."""
        yield ("close",)
        yield ("acquire",)
        for thread in range(self.size):
            yield "put", ("jobs", thread), 0
        yield ("release",)

    # What their requests do

    def _local(self, request: Request) -> bool:
        """Beside points: reads of what stays while a job runs, notes of times, and what only the caller uses.

        Who reads a table or the pool's words uses the step next, or ends a job; and that is checked.
        """
        own = {self._worker(thread) + 8 * ops.WORKER_WAKE for thread in range(self.size)}
        own |= {8 * ops.POOL_LOST, 8 * ops.POOL_TICKS}
        is_own = request[0] in ("write_shared", "read_shared") and request[1] + 8 * request[2] in own
        return is_own or request[0] in ("word", "point")

    def _perform(self, memory: Memory, request: Request) -> list[tuple[Any, Memory]]:
        outcomes, words = [], dict(zip(self._keys, memory, strict=True))
        if request in INTERRUPTIBLE and words["interrupts"]:
            outcomes.append((INTERRUPT, tuple((words | {"interrupts": words["interrupts"] - 1}).values())))
        if not (request[0] == "get" and not words[request[1]]) and not (request[0] == "acquire" and words["lock"]):
            value = getattr(self, f"_{request[0]}")(words, *request[1:])
            outcomes.append((value, tuple(words.values())))
        return outcomes

    @staticmethod
    def _worker(thread: int) -> int:
        return 8 * (ops.POOL_WORDS + ops.WORKER_WORDS * thread)

    def _key(self, words: Words, base: int, index: int) -> Any:
        """Of a word of the pool or of a step. A step is used while its job runs: after that it may be freed."""
        if base < TABLES:
            return base + 8 * index
        if (base - STEPS) // APART != words["running"]:
            raise ViolationError("a step is used that is not the present job's")
        return "step", index

    def _word(self, words: Words, base: int, index: int) -> int:
        number, job = words["running"], self.jobs[words["running"] - 1]
        if base >= STEPS:
            self._key(words, base, index)
            return {ops.STEP_ROWS: 1, ops.STEP_THREADS: job.threads}[index]
        if base >= TABLES:
            return int(index == ops.BARRIER)
        told = job.threads, TABLES + APART * number, job.operations, STEPS + APART * number
        return told[index]  # POOL_SIZE, POOL_PROGRAM, POOL_OPERATIONS, POOL_STEP

    def _read_shared(self, words: Words, base: int, index: int) -> int:
        return int(words[self._key(words, base, index)])

    def _write_shared(self, words: Words, base: int, index: int, value: int) -> None:
        words[self._key(words, base, index)] = value

    def _fetch_add(self, words: Words, base: int, index: int, amount: int) -> int:
        key = self._key(words, base, index)
        words[key] += amount
        return int(words[key] - amount)

    def _call_kernel(self, words: Words, _kernel: int, row: int, step: int, thread: int) -> None:
        """Each operation is done once by each thread that takes part, and when all have done those before it."""
        self._key(words, step, 0)
        operation, done = (row % APART) // (8 * ops.ROW_WORDS), list(words["progress"])
        if thread >= self.jobs[words["running"] - 1].threads:
            raise ViolationError("a thread works that does not take part")
        if done[thread] != operation:
            raise ViolationError("an operation is not done once")
        if min(done[: self.jobs[words["running"] - 1].threads]) < operation:
            raise ViolationError("an operation is begun before all have done those before it")
        done[thread] += 1
        words["progress"] = tuple(done)

    def _begin(self, words: Words, job: int) -> None:
        words |= dict.fromkeys((("step", word) for word in STEP_WORDS), 0)
        words["running"], words["progress"] = job, (0,) * self.size

    def _end(self, words: Words, job: int) -> None:
        """All have left at the same barrier, or, if nobody cancelled, after the last operation."""
        threads, operations = self.jobs[job - 1][::2]
        done = set(words["progress"][:threads])
        if len(done) > 1 or (not words["step", ops.STEP_CANCEL] and done != {operations}):
            raise ViolationError(f"a job has ended with {words['progress']} operations done")
        words["running"] = 0

    def _cancel(self, words: Words) -> None:
        if words["running"]:
            words["step", ops.STEP_CANCEL] = 1

    def _point(self, _words: Words) -> None:
        pass

    def _acquire(self, words: Words) -> None:
        words["lock"] = 1

    def _release(self, words: Words) -> None:
        words["lock"] = 0

    def _close(self, words: Words) -> None:
        words["closed"] = 1

    def _is_closed(self, words: Words) -> int:
        return int(words["closed"])

    def _put(self, words: Words, queue: Any, value: int) -> None:
        words[queue] += (value,)

    def _get(self, words: Words, queue: Any) -> int:
        first, *rest = words[queue]
        words[queue] = tuple(rest)
        return int(first)
