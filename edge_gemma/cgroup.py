"""What Linux control groups (containers, systemd units) allow of CPU time and memory. Knows neither cores nor models.

Limits hold for a group and all below it, so the lowest on the way up counts. Both versions are looked at, since a
system may have both: https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/memory.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_SELF = Path("/proc/self")
_V2_LIMITS = ("memory.max", "memory.high")  # above the second a group is slowed down until it hardly moves
_V2_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
_V1_RECLAIMABLE = ("total_inactive_file", "total_active_file")


def cpu_quota(process: Path = _SELF) -> float | None:
    """Processors' worth of time that the process may use, such as 1.5; None where nothing limits it."""
    quotas = [_quota(*_words(folder / "cpu.max")) for folder in _folders(process, "")]
    for folder in _folders(process, "cpu"):
        quotas.append(_quota(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_left(process: Path = _SELF) -> int | None:
    """Bytes that the process may still take before its groups are full; None where nothing limits them.

    Cached pages of files are given up when memory is needed, so they count as free, as they do for the system.
    """
    left = [_left(folder, _V2_LIMITS, "memory.current", _V2_RECLAIMABLE) for folder in _folders(process, "")]
    for folder in _folders(process, "memory"):
        left.append(_left(folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", _V1_RECLAIMABLE))
    return min((size for size in left if size is not None), default=None)


def _quota(quota: str = "", period: str = "") -> float | None:
    """Microseconds of time in each period; "max" and -1 are no limit."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _left(folder: Path, limits: tuple[str, ...], usage: str, reclaimable: tuple[str, ...]) -> int | None:
    limit = min((int(word) for name in limits for word in _words(folder / name) if word.isdecimal()), default=None)
    used = _words(folder / usage)
    if limit is None or not used or not used[0].isdecimal():
        return None
    words = _words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=False))
    return max(0, limit - int(used[0]) + sum(int(stat.get(name, 0)) for name in reclaimable))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:  # the controller is off here, or this is the root, which has no limits
        return []


# ---- where the groups are ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    """A hierarchy of groups in the file system: which group is shown at which folder."""

    root: PurePosixPath
    folder: Path


def _folders(process: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's group and those above it, as far as they can be seen. controller: "" for version 2."""
    group = _group(process, controller)
    if group is None:
        return
    mounts = list(_mounts(process, controller))
    above = [mount for mount in mounts if group.is_relative_to(mount.root) and ".." not in group.parts]
    for mount in above:
        inner = mount.folder / group.relative_to(mount.root)
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount.folder))
    if not above:  # the name is of another namespace: what a container sees is its own group
        yield from (mount.folder for mount in mounts[:1])


def _group(process: Path, controller: str) -> PurePosixPath | None:
    """The name of the process's group, by lines such as "4:cpu,cpuacct:/docker/1f0c" and "0::/docker/1f0c"."""
    for line in _lines(process / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controller in controllers.split(",") and (controller or number == "0"):
            return PurePosixPath(name)
    return None


def _mounts(process: Path, controller: str) -> Iterator[_Mount]:
    """By lines such as "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"."""
    for line in _lines(process / "mountinfo"):
        front, _, back = line.partition(" - ")
        kind, options = back.split(" ")[0], back.split(" ")[-1].split(",")
        if kind == "cgroup2" if not controller else kind == "cgroup" and controller in options:
            root, folder = map(_unescaped, front.split(" ")[3:5])
            yield _Mount(PurePosixPath(root), Path(folder))


def _lines(path: Path) -> list[str]:
    try:
        return os.fsdecode(path.read_bytes()).splitlines()
    except OSError:  # no Linux, or no /proc
        return []


def _unescaped(name: str) -> str:
    """A name in mountinfo: spaces, tabs, line ends and backslashes are written as \\040 and so on."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
