"""Cache sizes as three systems tell them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edge_gemma.kernels import caches


def sysfs(folder: Path, *described: tuple[str, str, str]) -> Path:
    for cpu in range(8):
        for number, (level, kind, size) in enumerate(described):
            index = folder / f"cpu{cpu}/cache/index{number}"
            index.mkdir(parents=True)
            for name, text in (("level", level), ("type", kind), ("size", size)):
                (index / name).write_text(text + "\n")
    return folder


def found(monkeypatch: pytest.MonkeyPatch, folder: Path) -> caches.CacheSizes:
    monkeypatch.setattr(caches, "_SYSFS", folder)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    return caches.sizes.__wrapped__()


def test_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sysfs(
        tmp_path, ("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")
    )
    assert found(monkeypatch, folder) == caches.CacheSizes(48 << 10, 1 << 20, 32 << 20)


def test_where_nothing_is_told_usual_sizes_are_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, tmp_path) == caches.CacheSizes()


def test_what_cannot_be_read_as_a_number_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, sysfs(tmp_path, ("1", "Data", "much"))) == caches.CacheSizes()


def test_without_a_third_level_the_second_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sysfs(tmp_path, ("1", "Data", "32K"), ("2", "Unified", "2M"))
    assert found(monkeypatch, folder) == caches.CacheSizes(32 << 10, 2 << 20, 2 << 20)


def test_windows_records() -> None:
    def record(level: int, size: int, kind: int) -> bytes:
        return struct.pack("<IIBBHII", 2, 52, level, 8, 64, size, kind).ljust(52, b"\0")

    memory = record(1, 32768, 2) + record(1, 65536, 1) + record(2, 1 << 20, 0)
    assert list(caches._records(memory)) == [(1, 32768), (2, 1 << 20)]
    assert list(caches._records(memory[:60])) == [(1, 32768)]


def test_this_machine_has_sane_sizes() -> None:
    sizes = caches.sizes()
    assert 8 << 10 <= sizes.l1 <= sizes.l2 <= sizes.last
