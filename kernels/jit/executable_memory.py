"""Whether this process may make memory executable. LLVM does not look, and what it then calls ends the process.

Tries what LLVM does with each object: map memory to be written to, then make it executable and not writable. Knows
nothing of kernels.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

from edge_gemma.errors import EdgeGemmaError

PROT_READ, PROT_EXEC = 1, 4
MEM_COMMIT_RESERVE, MEM_RELEASE, PAGE_READWRITE, PAGE_EXECUTE_READ = 0x3000, 0x8000, 0x04, 0x20

REASONS = {
    "linux": "MemoryDenyWriteExecute= in a systemd unit (set it to no), SELinux without the permission execmem, or a "
    "seccomp filter of a container or the application's own",
    "darwin": "a hardened runtime without the entitlement com.apple.security.cs.allow-unsigned-executable-memory",
    "win32": "Arbitrary Code Guard (ProhibitDynamicCode), which the application or an administrator can turn off",
}


def require_executable_memory() -> None:
    """Raises EdgeGemmaError, which says what to do, if the system refuses; MemoryError if there is no memory at all."""
    refusal = _try_windows(_kernel32()) if sys.platform == "win32" else _try_posix()
    if refusal:
        reason = REASONS.get(sys.platform, "a setting of the system")
        raise EdgeGemmaError(
            f"this process may not make memory executable ({refusal}), and the kernels are machine code that is made "
            f"for this CPU; models cannot run here. What forbids it may be {reason}"
        )


def _try_posix() -> str | None:
    """What the system answers; None if it lets us."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with _mapping() as page:
        first = ctypes.c_char.from_buffer(page)
        refused = protect(ctypes.addressof(first), mmap.PAGESIZE, PROT_READ | PROT_EXEC)
        del first  # the mapping cannot be closed while something refers to it
    return os.strerror(ctypes.get_errno()) if refused else None


def _mapping() -> mmap.mmap:
    """Private, as LLVM's is: rules for shared memory are others."""
    try:
        return mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for machine code: {error.strerror}") from error


def _kernel32() -> Any:
    if sys.platform != "win32":
        raise NotImplementedError("kernel32 is Windows's")
    library = ctypes.WinDLL("kernel32")
    library.VirtualAlloc.restype = ctypes.c_void_p
    library.VirtualAlloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
    library.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
    library.VirtualFree.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
    return library


def _try_windows(kernel32: Any) -> str | None:
    """The same, of Windows."""
    page = kernel32.VirtualAlloc(None, mmap.PAGESIZE, MEM_COMMIT_RESERVE, PAGE_READWRITE)
    if not page:
        raise MemoryError("no memory for machine code")
    before = ctypes.c_uint32()
    allowed = kernel32.VirtualProtect(page, mmap.PAGESIZE, PAGE_EXECUTE_READ, ctypes.byref(before))
    kernel32.VirtualFree(page, 0, MEM_RELEASE)
    return None if allowed else "VirtualProtect refuses"
