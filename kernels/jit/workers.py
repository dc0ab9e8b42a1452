"""Compile kernels in a few processes at once: Numba and LLVM hold locks that let one process use one core only.

Knows neither Numba nor what a kernel is. A worker is `python -m edge_gemma.kernels.jit.worker`: it reads a kernel's
name, writes the object file into the cache folder and says so. It is a help and never a need: whatever happens to a
worker, the kernel that it had is given back to the caller.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `native`
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty
from types import TracebackType

from edge_gemma.errors import ThreadError

from ..native_threads import start_thread
from ..operations import Kernel

log = logging.getLogger(__name__)

MODULE = "edge_gemma.kernels.jit.worker"
SWITCH = "EDGE_GEMMA_COMPILE_WORKERS"
DONE = "done\n"
EXPENSIVE = re.compile(r"(ops\.attention attend|encode\.(?:super_)?blocks)|(ops\.matmul)|(ops\.matvec)")
"""Kernels that take longest to compile, in this order: to begin with them keeps all busy to the end."""
MOST = 7
KERNELS = 3
"""For each process: a worker needs as long to start as it does for one or two kernels."""
MEMORY = 256 << 20
"""Bytes of a worker, rounded up. All together take a quarter of the memory that is free at most."""
PATIENCE = 5.0
"""Seconds without a result, beyond twice the slowest so far, after which workers that still run are given up."""


class Compilation:
    """What is to be compiled, shared out. A context manager: no worker outlives it.

    Iterating gives each kernel once, with whether a worker has written it; the caller compiles the others.
    """

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._count = len(kernels)
        self._waiting = deque(sorted(kernels, key=_rank))
        self._finished: SimpleQueue[tuple[Kernel, bool]] = SimpleQueue()
        self._slowest = 0.0
        self._workers: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Compilation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()
        self._end_workers()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            _close_pipes(worker)

    def start_workers(self, folder: Path, key: str) -> None:
        """Let others compile too, into `folder`, which must be the one for cache key `key`."""
        for _ in range(wanted_workers(self._count)):
            try:
                worker = start_worker(folder, key)
                self._workers.append(worker)
                thread = start_thread(partial(self._feed, worker), "edge-gemma-compile")
            except (OSError, ThreadError) as error:  # no process, or no thread
                log.debug("no compile worker: %s", error)
                return
            self._threads.append(thread)

    def __iter__(self) -> Iterator[tuple[Kernel, bool]]:
        for _ in range(self._count):
            following = self._next()
            began = time.monotonic()
            yield following
            self._slowest = max(self._slowest, time.monotonic() - began)

    def _next(self) -> tuple[Kernel, bool]:
        """What a worker is done with; else a kernel that nobody has; else what a worker will be done with."""
        if not self._finished.empty():
            return self._finished.get()
        kernel = self._take()
        if kernel is not None:
            return kernel, False
        try:
            return self._finished.get(timeout=PATIENCE + 2 * self._slowest)
        except Empty:
            log.debug("compile workers are given up")
            self._end_workers()
            return self._finished.get()

    def _take(self) -> Kernel | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _feed(self, worker: subprocess.Popen[str]) -> None:
        """Hand kernels to a worker, one at a time, until there is none or it fails."""
        while (kernel := self._take()) is not None:
            done = False
            try:
                done = _compiled(worker, kernel)
            finally:
                self._finished.put((kernel, done))
            if not done:
                return

    def _end_workers(self) -> None:
        """Kill them: files appear complete or not at all, and a worker has nothing else to lose."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()


def wanted_workers(kernels: int) -> int:
    """How many processes are worth it for so many kernels, beside this one.

    Raises ValueError if EDGE_GEMMA_COMPILE_WORKERS is no number.
    """
    if kernels < 2 * KERNELS or not _is_python(sys.executable):
        return 0
    most = os.environ.get(SWITCH, "") or str(MOST)
    if not most.isdecimal():
        raise ValueError(f"{SWITCH}={most!r}: the most processes to compile kernels with, 0 for none")
    return min(int(most), kernels // KERNELS - 1, _room())


def _room() -> int:
    """Workers for which the machine has cores and memory."""
    from edge_gemma.cores import available_memory, default_threads

    return min(default_threads() - 1, available_memory() // 4 // MEMORY)


def _is_python(executable: str | None) -> bool:
    """Whether it is an interpreter. In a frozen application, or one that embeds Python, it starts that application."""
    name = Path(executable or "").name
    return not getattr(sys, "frozen", False) and bool(re.fullmatch(r"python[\d.]*[dtw_]*(\.exe)?", name, re.IGNORECASE))


def start_worker(folder: Path, key: str) -> subprocess.Popen[str]:
    """A process that finds the modules this one finds. It refuses to work if it comes to another cache key."""
    places = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, str(folder), key],
        env={**os.environ, "PYTHONPATH": places, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _compiled(worker: subprocess.Popen[str], kernel: Kernel) -> bool:
    """Have a worker compile a kernel: False if it ends first."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(f"{kernel.module} {kernel.name} {kernel.strategy}\n")
        worker.stdin.flush()
        for line in worker.stdout:
            if line == DONE:
                return True
            log.debug("compile worker: %s", line.rstrip())
    except OSError as error:
        log.debug("compile worker: %s", error)
    return False


def _close_pipes(worker: subprocess.Popen[str]) -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with suppress(OSError):  # a name that a dead worker did not read
                pipe.close()


def _rank(kernel: Kernel) -> int:
    match = EXPENSIVE.match(f"{kernel.module} {kernel.name}")
    return match.lastindex or 0 if match else 9
