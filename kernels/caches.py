"""The CPU's cache sizes, as the system tells them. Knows nothing of what they are used for."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SYSFS = Path("/sys/devices/system/cpu")
_RELATION_CACHE, _DATA = 2, (0, 2)
"""Windows: RelationCache of LOGICAL_PROCESSOR_RELATIONSHIP; CacheUnified and CacheData of PROCESSOR_CACHE_TYPE."""


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of one core's first-level data cache, of its second level, and of the largest cache there is."""

    l1: int = 32 << 10
    l2: int = 512 << 10
    last: int = 8 << 20


@cache
def sizes() -> CacheSizes:
    """The sizes on this machine; small usual ones where the system does not tell."""
    try:
        found = _found()
    except (OSError, ValueError, AttributeError):
        found = {}
    usual = CacheSizes()
    l1, l2 = found.get(1, usual.l1), found.get(2, usual.l2)
    return CacheSizes(l1, l2, max([l2, *found.values()]) if found else usual.last)


def _found() -> dict[int, int]:
    """Level -> bytes of the largest cache of that level which holds data."""
    if sys.platform == "darwin":
        return _macos()
    caches: dict[int, int] = {}
    for level, size in _windows() if sys.platform == "win32" else _linux(_SYSFS):
        caches[level] = max(size, caches.get(level, 0))
    return caches


def _linux(sysfs: Path) -> Iterator[tuple[int, int]]:
    """Of the processor that this process may use and that comes first."""
    cpu = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    for index in (sysfs / f"cpu{cpu}/cache").glob("index*"):
        if (index / "type").read_text("ascii").strip() in ("Data", "Unified"):
            size = (index / "size").read_text("ascii").strip()
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
            yield int((index / "level").read_text("ascii")), int(size.rstrip("KM")) * unit


def _macos() -> dict[int, int]:
    """Of the performance cores where there are two kinds."""
    read = ctypes.CDLL(None, use_errno=True).sysctlbyname
    found = {}
    for level, name in ((1, "l1dcachesize"), (2, "l2cachesize"), (3, "l3cachesize")):
        for prefix in ("hw.perflevel0.", "hw."):
            value, length = ctypes.c_int64(), ctypes.c_size_t(8)
            key = (prefix + name).encode()
            if read(key, ctypes.byref(value), ctypes.byref(length), None, 0) == 0 and value.value > 0:
                found[level] = value.value
                break
    return found


class _Record(ctypes.Structure):
    """The head of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, and a CACHE_RELATIONSHIP behind it."""

    _fields_ = (
        ("relationship", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("level", ctypes.c_uint8),
        ("associativity", ctypes.c_uint8),
        ("line", ctypes.c_uint16),
        ("bytes", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
    )


def _windows() -> Iterator[tuple[int, int]]:
    ask = ctypes.WinDLL("kernel32", use_last_error=True).GetLogicalProcessorInformationEx  # type: ignore[attr-defined]
    length = ctypes.c_uint32()
    ask(_RELATION_CACHE, None, ctypes.byref(length))
    memory = (ctypes.c_uint8 * length.value)()
    if ask(_RELATION_CACHE, memory, ctypes.byref(length)):
        yield from _records(bytes(memory[: length.value]))


def _records(memory: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at + ctypes.sizeof(_Record) <= len(memory):
        record = _Record.from_buffer_copy(memory, at)
        if record.type in _DATA:
            yield record.level, record.bytes
        at += max(record.size, ctypes.sizeof(_Record))
