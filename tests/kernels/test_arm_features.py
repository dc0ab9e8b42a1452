"""What an AArch64 CPU has is asked of the system, and each system's answer is understood."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from edge_gemma.kernels.arm_features import arm_features


def library(monkeypatch: pytest.MonkeyPatch, **calls: Any) -> None:
    for loader in ("CDLL", "WinDLL"):
        monkeypatch.setattr(ctypes, loader, lambda _name: SimpleNamespace(**calls), raising=False)


def test_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {16: 1 << 20, 26: 1 << 13}

    def getauxval(word: int) -> int:
        return words[word]

    library(monkeypatch, getauxval=getauxval)
    assert arm_features("linux") == {"dotprod", "i8mm"}
    words[16] = 1 << 8
    assert arm_features("linux") == {"lse", "i8mm"}


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {b"hw.optional.arm.FEAT_LSE": 1, b"hw.optional.arm.FEAT_DotProd": 1, b"hw.optional.arm.FEAT_I8MM": 0}

    def sysctlbyname(key: bytes, value: Any, *_rest: Any) -> int:
        if key not in known:
            return -1
        value._obj.value = known[key]
        return 0

    library(monkeypatch, sysctlbyname=sysctlbyname)
    assert arm_features("darwin") == {"lse", "dotprod"}
    known.clear()
    assert arm_features("darwin") == set()


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, IsProcessorFeaturePresent=lambda number: number in (34, 43))
    assert arm_features("win32") == {"lse", "dotprod"}


def test_a_system_without_the_call_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)
    assert [arm_features(name) for name in ("linux", "darwin", "win32", "freebsd14")] == [frozenset()] * 4
