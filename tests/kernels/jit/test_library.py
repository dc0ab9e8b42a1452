"""The kernel cache when things go wrong: right results and a line in the log, never an exception."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.errors import ForkError
from edge_gemma.kernels import isa
from edge_gemma.kernels.jit import compile as compiler
from edge_gemma.kernels.jit import library
from edge_gemma.kernels.jit.cache_key import cache_key
from edge_gemma.kernels.jit.library import Library
from edge_gemma.kernels.operations import ADD, ROW_WORDS, STEP_ROWS, STEP_WORDS, Kernel
from tests.kernels.harness import aligned

KERNEL = Kernel("ops.elementwise", "add")
ROOT = Path(__file__).parents[3]
CALL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3)


def adds(address: int) -> bool:
    """Whether the code at `address` adds rows."""
    x, y = np.arange(64, dtype=np.float32), np.ones(64, np.float32)
    row, step = aligned((ROW_WORDS,), np.int64), aligned((STEP_WORDS,), np.int64)
    row[list(ADD.slots)] = x.ctypes.data, 0, y.ctypes.data, 0, 64
    step[STEP_ROWS] = 1
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    status = CALL(address)(ctypes.addressof(result), ctypes.addressof(exception), row.ctypes.data, step.ctypes.data, 0)
    return status == 0 and np.array_equal(y, np.arange(64) + 1)


def works(folder: Path | None) -> bool:
    """Whether a new library on this cache folder has the kernel. Its code lives no longer than it does."""
    fresh = Library(folder)
    return adds(fresh.load([KERNEL])[KERNEL])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache folder with the kernel in it."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    assert works(cache)
    return cache


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "edge_gemma")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels compiled from now on."""
    compiled: list[str] = []
    real = compiler.compile_kernel

    def recorded(kernel: Kernel, symbol: str) -> bytes:
        compiled.append(kernel.name)
        return bytes(real(kernel, symbol))

    monkeypatch.setattr(compiler, "compile_kernel", recorded)
    return compiled


def cached_file(folder: Path) -> Path:
    return folder / library.file_name(KERNEL)


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_cached_kernel_is_not_compiled_again(folder: Path, compiles: list[str]) -> None:
    assert works(folder)
    assert not compiles
    assert sorted(p.name for p in folder.iterdir()) == [library.file_name(KERNEL)]


def test_progress_tells_each_kernel_that_is_compiled(folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    other = Kernel("ops.elementwise", "softcap")
    fresh = Library(folder)
    fresh.load([KERNEL, other], lambda *seen: told.append(seen))
    assert told == [(0, 1, "ops.elementwise.softcap"), (1, 1, "")]
    fresh.load([KERNEL, other], lambda *seen: told.append(seen))
    assert len(told) == 2


def truncated(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def flipped(share: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        at = min(int(len(data) * share), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return flip


def with_header(header: bytes) -> Callable[[bytes], bytes]:
    return lambda data: header + data[data.index(b"\n") :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda data: data[:1],
    "half a header": lambda data: data[:40],
    "header alone": lambda data: data[: data.index(b"\n") + 1],
    "half": truncated(0.5),
    "all but a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "bit of the digest": lambda data: data.replace(b'"sha256": "', b'"sha256": "f', 1),
    "bit of the code": flipped(0.3),
    "last bit": flipped(1.0),
    "zeros": lambda data: bytes(len(data)),
    "no JSON": with_header(b"\xff\xfe not JSON"),
    "a list": with_header(b"[1, 2]"),
    "a number": with_header(b"7"),
    "no digest": with_header(b"{}"),
    "another kind of digest": with_header(b'{"sha256": 7}'),
    "endless nesting": with_header(b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_compiled_again(
    damage: str, folder: Path, compiles: list[str], warnings: Callable[[], list[str]]
) -> None:
    path = cached_file(folder)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert works(folder)
    assert compiles == ["add"] and [str(path) in line for line in warnings()] == [True]
    assert works(folder)  # and replaced
    assert compiles == ["add"]


def test_a_folder_in_place_of_the_file(folder: Path, warnings: Callable[[], list[str]]) -> None:
    cached_file(folder).unlink()
    cached_file(folder).mkdir()
    assert works(folder)
    assert len(warnings()) == 2  # it can be neither read nor replaced


def test_a_full_disk_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    def full(_path: Path, _code: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(library, "write_object", full)
    fresh = Library(tmp_path)
    addresses = fresh.load([KERNEL, Kernel("ops.elementwise", "softcap")])
    assert adds(addresses[KERNEL]) and len(warnings()) == 1 and os.strerror(errno.ENOSPC) in warnings()[0]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        library.write_object(tmp_path / "x", b"code")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_vanished(folder: Path, warnings: Callable[[], list[str]]) -> None:
    shutil.rmtree(folder)
    assert works(folder)
    assert len(warnings()) == 1


def test_no_folder_at_all(compiles: list[str]) -> None:
    assert works(None)
    assert compiles == ["add"]


# ---- processes ---------------------------------------------------------------------------------------------------


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that loads the kernel, runs it, and says what it saw."""
    code = (
        "import json, sys\n"
        "from edge_gemma.kernels.jit.library import shared\n"
        "from edge_gemma.kernels.operations import Kernel\n"
        "kernel, compiled = Kernel('ops.elementwise', 'add'), []\n"
        "address = shared().load([kernel], lambda *seen: compiled.append(seen))[kernel]\n"
        "loaded = 'numba' in sys.modules\n"
        "from tests.kernels.jit.test_library import adds\n"
        "print(json.dumps([adds(address), bool(compiled), loaded]))\n"
    )
    variables = {**os.environ, "EDGE_GEMMA_CACHE_DIR": str(cache), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=variables, text=True, **pipes)


def told(process: subprocess.Popen[str]) -> list[bool]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return list(json.loads(out))


def test_two_processes_starting_cold_and_a_warm_one(tmp_path: Path) -> None:
    """Each has the right result; the third finds all in the cache, and never imports Numba."""
    tmp_path.chmod(0o700)
    both = [start(tmp_path), start(tmp_path)]
    assert all(told(process)[0] for process in both)
    assert told(start(tmp_path)) == [True, False, False]
    assert len(list((tmp_path / "kernels" / cache_key()).iterdir())) == 1


# ---- instruction sets, symbols -----------------------------------------------------------------------------------


@pytest.fixture
def no_isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("EDGE_GEMMA_ISA", raising=False)
    yield


def test_an_unknown_instruction_set_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_ISA", "sse9")
    with pytest.raises(ValueError, match=r"sse9.*generic"):
        isa.current.__wrapped__()
    monkeypatch.setenv("EDGE_GEMMA_ISA", "neon" if isa.available()[0].machine == "x86" else "avx2")
    with pytest.raises(ValueError, match="this CPU can run"):
        isa.current.__wrapped__()


def test_the_ladder(no_isa: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isa.current.__wrapped__() is isa.available()[0] and isa.available()[-1].name == "generic"
    for row in isa.available():
        monkeypatch.setenv("EDGE_GEMMA_ISA", row.name)
        assert isa.current.__wrapped__() is row


def test_a_kernel_that_calls_out_is_refused() -> None:
    """An object with a symbol that nothing resolves would end the process when it is loaded."""
    for symbol in ("llvm.sqrt.v16f32", "sched_yield"):
        compiler._check_external(symbol, "k")
    for symbol in ("printf", "NRT_Allocate", "numba_unpickle"):
        with pytest.raises(RuntimeError, match=symbol):
            compiler._check_external(symbol, "k")


@pytest.mark.parametrize("kernel", [Kernel("ops.activations", "quantize"), Kernel("ops.attention", "append_f16")])
def test_machine_code_calls_nothing(kernel: Kernel) -> None:
    """Neither does what the compiler's back end adds by itself, such as memset or a conversion of halves."""
    text = compiler.assembly(kernel)
    called = re.findall(r"^[ \t]+(?:callq?|bl|movabsq)[ \t]+\$?([a-zA-Z_]\S*)", text, re.MULTILINE)
    assert not called


def test_progress_may_load_kernels_itself(tmp_path: Path) -> None:
    """As it does where it opens another model; none is compiled or added twice."""
    kernels = [Kernel("ops.elementwise", "add"), Kernel("ops.elementwise", "softcap")]
    library, inner = Library(tmp_path), []

    def progress(_done: int, _total: int, _name: str) -> None:
        inner.append(library.load(kernels))

    outer: list[object] = []
    thread = threading.Thread(target=lambda: outer.append(library.load(kernels, progress)), daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive() and inner and all(addresses == outer[0] for addresses in inner)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_kernels_are_loaded_is_told(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.note_fork()
    library.load([])  # nobody was in it
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with library._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    library.note_fork()
    done.set()
    thread.join()
    with pytest.raises(ForkError, match="forked while kernels were loaded"):
        library.load([])
