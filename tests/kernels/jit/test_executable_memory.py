"""A process that may not make memory executable: an error in words, where LLVM ends the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.errors import EdgeGemmaError
from edge_gemma.kernels.jit import executable_memory
from edge_gemma.kernels.jit.executable_memory import require_executable_memory

ROOT = Path(__file__).parents[3]
TinyGguf = Callable[..., Path]

FORBID = """
import ctypes, os, platform, struct, sys
def forbid_mdwe():
    "What newer versions of systemd do."
    if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
        sys.exit(77)

def forbid_seccomp():
    "What older ones do, and containers: mprotect with PROT_EXEC gives EPERM."
    number = {"x86_64": 10, "aarch64": 226}.get(platform.machine()) or sys.exit(77)
    filter = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 32), (0x45, 0, 1, 4), (6, 0, 0, 0x50001),
              (6, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in filter))
    program = struct.pack("HxxxxxxQ", len(filter), ctypes.addressof(code))
    if ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) or ctypes.CDLL(None).prctl(22, 2, program, 0, 0):
        sys.exit(77)
"""
WAYS = pytest.mark.parametrize("way", ["mdwe", "seccomp"])
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such processes are made with Linux's prctl")


def process(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORBID + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode == 77:
        pytest.skip("this kernel has no such call")
    return done


@WAYS
def test_opening_a_model_says_so(way: str, tiny_gguf: TinyGguf) -> None:
    done = process(
        f"forbid_{way}()\n"
        "from edge_gemma import EdgeGemmaError, Gemma\n"
        "for _ in range(2):\n"
        "    try:\n"
        f"        Gemma({str(tiny_gguf('gemma2-2b'))!r})\n"
        "    except EdgeGemmaError as error:\n"
        "        print(error)\n"
        "import threading; print(threading.active_count())"
    )
    assert done.returncode == 0, done.stderr
    first, second, threads = done.stdout.splitlines()
    assert first == second and "may not make memory executable" in first and "MemoryDenyWriteExecute" in first
    assert "ermi" in first and threads == "1"  # the system's words, for both errors


@WAYS
@pytest.mark.parametrize("command", ["run {} -p a -n 1", "bench {} -p 8 -n 1"])
def test_the_command_line_says_so_in_a_line(way: str, command: str, tiny_gguf: TinyGguf) -> None:
    words = [sys.executable, "-m", "edge_gemma", *command.format(tiny_gguf("gemma2-2b")).split()]
    done = process(f"forbid_{way}(); os.execv({sys.executable!r}, {words!r})")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "may not make memory executable" in line and not done.stdout


@WAYS
def test_what_needs_no_kernels_works(way: str, tiny_gguf: TinyGguf) -> None:
    words = [sys.executable, "-m", "edge_gemma", "info", str(tiny_gguf("gemma2-2b"))]
    done = process(f"forbid_{way}(); os.execv({sys.executable!r}, {words!r})")
    assert done.returncode == 0 and done.stdout, done.stderr


@WAYS
def test_a_process_that_forbids_it_later_keeps_what_it_has(way: str) -> None:
    """A server that locks itself up when it has started: loaded kernels run, no others come."""
    done = process(
        "from edge_gemma import EdgeGemmaError\n"
        "from edge_gemma.kernels.jit.library import shared\n"
        "from edge_gemma.kernels.operations import Kernel\n"
        "from tests.kernels.jit.test_library import KERNEL, adds\n"
        "shared().load([KERNEL])\n"
        f"forbid_{way}()\n"
        "print(adds(shared().load([KERNEL])[KERNEL]))\n"
        "try:\n"
        "    shared().load([KERNEL, Kernel('ops.elementwise', 'softcap')])\n"
        "except EdgeGemmaError:\n"
        "    print('refused')"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "refused"]


def test_where_it_is_allowed_nothing_is_said_and_nothing_stays() -> None:
    maps = Path("/proc/self/maps")
    require_executable_memory()
    before = len(maps.read_text().splitlines())
    for _ in range(50):
        require_executable_memory()
    assert len(maps.read_text().splitlines()) < before + 25


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "freebsd14"])
def test_the_error_has_what_to_do_on_each_system(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable_memory.sys, "platform", platform)
    monkeypatch.setattr(executable_memory, "_try_posix", lambda: "Permission denied")
    monkeypatch.setattr(executable_memory, "_kernel32", lambda: Windows(page=4096, allows=0))
    with pytest.raises(EdgeGemmaError, match=r"memory executable \(.+\), .* may be ") as caught:
        require_executable_memory()
    assert executable_memory.REASONS.get(platform, "a setting of the system") in str(caught.value)


class Windows:
    """The three calls of kernel32."""

    def __init__(self, page: int, allows: int) -> None:
        self.page, self.allows, self.freed = page, allows, 0

    def VirtualAlloc(self, *_: Any) -> int:  # noqa: N802
        return self.page

    def VirtualProtect(self, page: int, _size: int, protection: int, _before: Any) -> int:  # noqa: N802
        assert page == self.page and protection == executable_memory.PAGE_EXECUTE_READ
        return self.allows

    def VirtualFree(self, page: int, size: int, how: int) -> None:  # noqa: N802
        assert (page, size, how) == (self.page, 0, executable_memory.MEM_RELEASE)
        self.freed += 1


def test_windows_is_asked_and_the_page_given_back() -> None:
    for allows in (0, 1):
        windows = Windows(4096, allows)
        assert (executable_memory._try_windows(windows) is None) == bool(allows) and windows.freed == 1


def test_no_memory_is_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(executable_memory.mmap, "mmap", full)
    with pytest.raises(MemoryError, match="machine code: Cannot allocate"):
        require_executable_memory()
    with pytest.raises(MemoryError, match="machine code"):
        executable_memory._try_windows(Windows(0, 1))
