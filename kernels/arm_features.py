"""What an AArch64 CPU has beyond the base instructions, asked of the operating system. Knows no kernel and no LLVM.

LLVM goes by the text of /proc/cpuinfo on Linux, which is another machine's under emulation, and elsewhere by the CPU's
name, of which it knows those that were sold before it. The systems have calls that say what a program may use.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

AT_HWCAP, AT_HWCAP2 = 16, 26

LINUX = {"lse": (AT_HWCAP, 1 << 8), "dotprod": (AT_HWCAP, 1 << 20), "i8mm": (AT_HWCAP2, 1 << 13)}
"""Word of the auxiliary vector and bit, by LLVM's name of the feature: asm/hwcap.h, HWCAP_ATOMICS, _ASIMDDP, _I8MM."""
MACOS = {"lse": "FEAT_LSE", "dotprod": "FEAT_DotProd", "i8mm": "FEAT_I8MM"}
"""Names under hw.optional.arm, since macOS 12: developer.apple.com, "Determining instruction set characteristics"."""
WINDOWS = {"lse": 34, "dotprod": 43, "i8mm": 66}
"""PF_ARM_V81_ATOMIC_, PF_ARM_V82_DP_ and PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE of winnt.h."""


def arm_features(platform: str = sys.platform) -> frozenset[str]:
    """LLVM's names of what this process may use; none where the system has no answer, and then `generic` is chosen."""
    try:
        return frozenset(_ASK.get(platform, _nothing)())
    except (AttributeError, OSError):  # a C library without the call
        return frozenset()


def _linux() -> set[str]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return {name for name, (word, bit) in LINUX.items() if getauxval(word) & bit}


def _macos() -> set[str]:
    sysctl = ctypes.CDLL(None).sysctlbyname
    return {name for name, key in MACOS.items() if _says_yes(sysctl, f"hw.optional.arm.{key}")}


def _says_yes(sysctl: Any, key: str) -> bool:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int64))
    failed = sysctl(key.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return not failed and value.value != 0


def _windows() -> set[str]:
    present = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent  # type: ignore[attr-defined, unused-ignore]
    return {name for name, number in WINDOWS.items() if present(number)}


def _nothing() -> set[str]:
    return set()


_ASK: dict[str, Callable[[], set[str]]] = {
    "linux": _linux,
    "android": _linux,
    "darwin": _macos,
    "win32": _windows,
}
