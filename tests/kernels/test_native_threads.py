"""Threads that are none, or that do not come: an error in words, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edge_gemma import Gemma
from edge_gemma.errors import EdgeGemmaError, ThreadError
from edge_gemma.kernels import native_threads
from edge_gemma.kernels.jit import library, workers
from edge_gemma.kernels.jit.workers import Compilation
from edge_gemma.kernels.native_threads import start_thread
from edge_gemma.kernels.operations import Kernel
from edge_gemma.kernels.threads.pool import ThreadPool
from tests.conftest import TinyGguf
from tests.kernels.threads.test_pool import FEW, MANY, Adding

real_start = threading.Thread.start


def as_a_greenlet(self: threading.Thread) -> None:
    """What gevent makes of a thread: it begins in the thread that starts it, and runs until it waits."""
    self.run()


def never(self: threading.Thread) -> None:
    """It will run when the starter waits, in Python's own way."""


def present() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("edge-gemma")]


def test_a_thread_runs_its_target() -> None:
    ran = threading.Event()
    thread = start_thread(ran.set, "a name")
    assert ran.wait(timeout=60) and thread.name == "a name" and thread.daemon
    thread.join()


@pytest.mark.parametrize("start", [as_a_greenlet, never])
def test_a_thread_that_is_none(start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(native_threads, "PATIENCE", 0.1)
    ran = threading.Event()
    with pytest.raises(ThreadError, match="do: open the model before they are replaced"):
        start_thread(ran.set, "edge-gemma-0")
    assert not ran.is_set()


def test_a_model_needs_a_thread_beside_its_pool(tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one thread in the pool is no way out."""
    path, before = tiny_gguf("gemma3-270m"), present()
    monkeypatch.setattr(threading.Thread, "start", as_a_greenlet)
    with pytest.raises(ThreadError, match="do: open the model before they are replaced"):
        Gemma(path, threads=1)
    assert present() == before


def test_a_thread_that_appears_too_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: late.append(self))  # noqa: PLW0108  (as a method)
    monkeypatch.setattr(native_threads, "PATIENCE", 0.1)
    ran = threading.Event()
    with pytest.raises(ThreadError, match="has not appeared"):
        start_thread(ran.set, "edge-gemma-0")
    real_start(late[0])
    late[0].join()
    assert not ran.is_set()


@pytest.mark.parametrize("start", [as_a_greenlet, never])
def test_a_pool_of_one_needs_no_thread(start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(native_threads, "PATIENCE", 0.1)
    pool = ThreadPool(1)
    for rows in (FEW, MANY):
        program = Adding(rows)
        assert pool.run(program.table, program.step)
        assert (program.y == 3).all()
    pool.close()


@pytest.mark.parametrize("started", range(3))
def test_a_thread_that_cannot_be_started_leaves_none(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a container's limit of processes."""
    before = present()
    count = 0

    def limited(self: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count > started:
            raise RuntimeError("can't start new thread")
        real_start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ThreadError, match=r"the system starts no more threads.*use fewer"):
        ThreadPool(3)
    assert count == started + 1 and present() == before


def test_an_interrupted_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before, count = present(), 0

    def interrupted(self: threading.Thread) -> None:
        nonlocal count
        count += 1
        real_start(self)
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ThreadPool(3)
    end = time.monotonic() + 30
    while present() != before and time.monotonic() < end:
        time.sleep(0.01)
    assert present() == before


def test_a_closed_pool_refuses_programs() -> None:
    """Its threads would be waited for, and never come."""
    pool, program = ThreadPool(2), Adding(FEW)
    pool.close()
    with pytest.raises(EdgeGemmaError, match="the model is closed"):
        pool.run(program.table, program.step)


def test_closing_waits_for_a_program_that_runs() -> None:
    """As when the process ends while a thread of the host generates."""
    for delay in (0.0, 0.0005, 0.002, 0.005) * 3:
        pool, program = ThreadPool(3), Adding(FEW, operations=200)
        errors: list[str] = []

        def use(pool: ThreadPool = pool, program: Adding = program, errors: list[str] = errors) -> None:
            try:
                while True:
                    pool.run(program.table, program.step)
            except EdgeGemmaError as error:
                errors.append(str(error))

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        time.sleep(delay)
        pool.close()
        thread.join(timeout=60)
        assert errors == ["the model is closed"]
        assert not any(worker.is_alive() for worker in pool._threads)


def test_kernels_are_compiled_without_workers_where_threads_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hand kernels to a worker."""
    monkeypatch.setattr(threading.Thread, "start", as_a_greenlet)
    monkeypatch.setattr(workers, "wanted_workers", lambda _kernels: 1)
    kernels = [Kernel("ops.elementwise", "add"), Kernel("simd.clock", "timestamp")]
    with Compilation(kernels) as compilation:
        compilation.start_workers(tmp_path, library.cache_key())
        assert sorted(compilation, key=str) == sorted(((kernel, False) for kernel in kernels), key=str)
    assert all(worker.returncode is not None for worker in compilation._workers)
