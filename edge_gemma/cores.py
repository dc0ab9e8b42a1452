"""What the machine has for us: threads to use where the user does not say, and memory. Knows no work.

Threads are physical cores of the fast kind. A container's limits count as the machine's.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from edge_gemma import cgroup

_SYSFS = Path("/sys/devices/system/cpu")
FAST = 0.8
"""A core this fast, measured by the fastest one, counts as a performance core."""


def default_threads() -> int:
    """Performance cores that this process may use; never hyper-threads of one core, never fewer than 1.

    Nor more than its share of processor time: where threads have used that up, all of them stand still for a while.
    """
    allowed = _allowed()
    cores = _linux_cores(allowed, _SYSFS) or min(psutil.cpu_count(logical=False) or 1, len(allowed))
    return _within_quota(cores)


def usable_processors() -> int:
    """Processors that this process may use, hyper-threads too, within its share of their time; at least 1."""
    return _within_quota(len(_allowed()))


def available_memory() -> int:
    """Bytes that can be taken without swapping, and without being killed for exceeding a container's limit."""
    system, group = int(psutil.virtual_memory().available), cgroup.memory_left()
    return system if group is None else min(system, group)


def _within_quota(count: int) -> int:
    quota = cgroup.cpu_quota()
    return max(1, count if quota is None else min(count, int(quota)))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _linux_cores(allowed: set[int], sysfs: Path) -> int:
    """Distinct cores of the fast kind by what Linux says of each processor; 0 where it says nothing."""
    speeds: dict[str, int] = {}
    for number in allowed:
        folder = sysfs / f"cpu{number}"
        siblings = _read(folder / "topology/core_cpus_list") or _read(folder / "topology/thread_siblings_list")
        if siblings is None:
            return 0
        speed = _read(folder / "cpu_capacity") or _read(folder / "cpufreq/cpuinfo_max_freq") or "1"
        speeds[siblings] = int(speed)
    fastest = max(speeds.values(), default=0)
    return sum(speed >= FAST * fastest for speed in speeds.values())


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return None
