"""Kernels compiled by worker processes: used where they can be, and never needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge_gemma.kernels.jit import compile as compiler
from edge_gemma.kernels.jit import library, workers
from edge_gemma.kernels.jit.cache_file import read_object
from edge_gemma.kernels.jit.cache_key import cache_key
from edge_gemma.kernels.jit.library import Library
from edge_gemma.kernels.operations import Kernel

ROOT = Path(__file__).parents[3]
KERNELS = [
    Kernel("ops.elementwise", "add"),
    Kernel("ops.elementwise", "softcap"),
    Kernel("ops.elementwise", "norm"),
    Kernel("threads.execute", "post"),
    Kernel("threads.execute", "serve"),
    Kernel("simd.clock", "timestamp"),
]
Start = Callable[[Path, str], "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, whatever the machine."""
    monkeypatch.delenv("EDGE_GEMMA_COMPILE_WORKERS", raising=False)
    monkeypatch.setattr(workers, "_room", lambda: 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels compiled in this process, where that takes no time."""
    compiled: list[str] = []

    def nothing(kernel: Kernel, _symbol: str) -> bytes:
        compiled.append(kernel.name)
        time.sleep(0.05)
        return b""

    def added(self: Library, kernel: Kernel, code: bytes) -> None:
        self._addresses[kernel] = len(code)

    monkeypatch.setattr(compiler, "compile_kernel", nothing)
    monkeypatch.setattr(Library, "_add", added)
    return compiled


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The workers of this test."""
    processes: list[subprocess.Popen[str]] = []
    real = workers.start_worker

    def start(folder: Path, key: str) -> subprocess.Popen[str]:
        processes.append(real(folder, key))
        return processes[-1]

    monkeypatch.setattr(workers, "start_worker", start)
    return processes


def replaced_by(code: str) -> Start:
    """In place of a worker, a process that runs `code`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return lambda _folder, _key: subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)


def test_workers_write_whole_objects(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    with workers.Compilation(KERNELS) as compilation:
        compilation.start_workers(tmp_path, cache_key())
        compilation._threads[0].join()  # it does them all: nobody else takes any
        assert sorted(compilation, key=str) == sorted(((kernel, True) for kernel in KERNELS), key=str)
    assert started[0].returncode is not None
    for kernel in KERNELS:
        assert read_object(tmp_path / library.file_name(kernel)) is not None


def test_a_library_loads_what_workers_wrote(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    told: list[tuple[int, int]] = []
    addresses = Library(tmp_path).load(KERNELS, lambda done, total, _: told.append((done, total)))
    assert set(addresses) == set(KERNELS) and all(addresses.values())
    assert told == [(done, len(KERNELS)) for done in range(len(KERNELS) + 1)]
    assert len(list(tmp_path.iterdir())) == len(KERNELS) and len(started) == 1


@pytest.mark.parametrize(
    "code",
    ["", "print('done')", "raise SystemExit(1)", "import os, signal; input(); os.kill(os.getpid(), signal.SIGTERM)"],
)
def test_a_worker_that_dies(code: str, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, or having written nothing, or said that it did."""
    monkeypatch.setattr(workers, "start_worker", replaced_by(code))
    assert len(Library(tmp_path).load(KERNELS)) == len(KERNELS) == len(set(here)) == len(here)


def test_a_worker_that_hangs(tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for as long as it may need for a kernel, then killed, and its kernel compiled here."""
    monkeypatch.setattr(workers, "start_worker", replaced_by("import time; time.sleep(1000)"))
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    began, others = time.monotonic(), psutil.Process().children()  # of other tests: multiprocessing's tracker, say
    assert len(Library(tmp_path).load(KERNELS)) == len(KERNELS) == len(here)
    assert time.monotonic() - began < 30
    assert set(psutil.Process().children()) <= set(others)


def test_a_process_that_cannot_be_started(tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert len(Library(tmp_path).load(KERNELS)) == len(KERNELS) == len(here)


def test_no_thread_for_a_worker(
    tmp_path: Path, here: list[str], started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert len(Library(tmp_path).load(KERNELS)) == len(KERNELS) == len(here)
    assert started[0].returncode is not None


def test_a_worker_of_another_version_compiles_nothing(tmp_path: Path) -> None:
    worker = workers.start_worker(tmp_path, "another key")
    said, _ = worker.communicate("elementwise add\n", timeout=120)
    assert worker.returncode == 1 and cache_key() in said and not list(tmp_path.iterdir())


def test_a_worker_ends_with_its_input(tmp_path: Path) -> None:
    """So it outlives no parent."""
    worker = workers.start_worker(tmp_path, cache_key())
    assert worker.communicate("", timeout=120) == ("", None) and worker.returncode == 0


def test_where_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers.wanted_workers(25) == 1
    assert workers.wanted_workers(3) == 0
    for executable in ("", None, "/opt/editor/editor", "C:/QGIS/bin/qgis-bin.exe", "/usr/bin/python-app"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", executable)
            assert workers.wanted_workers(25) == 0, executable
    for executable in ("/usr/bin/python3.13t", "C:/x/pythonw.exe", "/v/bin/python", "C:/x/python_d.exe"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", executable)
            assert workers.wanted_workers(25) == 1, executable
    monkeypatch.setenv("EDGE_GEMMA_COMPILE_WORKERS", "0")
    assert workers.wanted_workers(25) == 0
    monkeypatch.setenv("EDGE_GEMMA_COMPILE_WORKERS", "no")
    with pytest.raises(ValueError, match=r"EDGE_GEMMA_COMPILE_WORKERS='no'"):
        workers.wanted_workers(25)


def test_a_frozen_application_starts_none(
    tmp_path: Path, here: list[str], started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert len(Library(tmp_path).load(KERNELS)) == len(here) and not started


def test_without_a_cache_folder_there_are_none(here: list[str], started: list[subprocess.Popen[str]]) -> None:
    assert len(Library(None).load(KERNELS)) == len(here) and not started


def test_an_exception_ends_the_workers(tmp_path: Path, here: list[str], started: list[subprocess.Popen[str]]) -> None:
    def interrupt(done: int, _total: int, _name: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Library(tmp_path).load(KERNELS, interrupt)
    assert [worker.returncode is None for worker in started] == [False] and len(here) == 1


@pytest.mark.skipif(os.name != "posix", reason="no way to send Ctrl-C to one process")
def test_ctrl_c(tmp_path: Path) -> None:
    """While it waits for a worker that was told to do something."""
    code = (
        "from pathlib import Path\n"
        "from edge_gemma.kernels.jit import workers\n"
        "from tests.kernels.jit.test_workers import KERNELS, replaced_by\n"
        "workers._room = lambda: 1\n"
        "workers.start_worker = replaced_by('import time; time.sleep(1000)')\n"
        "with workers.Compilation(KERNELS) as compilation:\n"
        f"    compilation.start_workers(Path({str(tmp_path)!r}), '')\n"
        "    print(compilation._workers[0].pid, flush=True)\n"
        "    list(compilation)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in error and not psutil.pid_exists(worker)
