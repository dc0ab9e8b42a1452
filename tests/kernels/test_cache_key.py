"""The key of the kernel cache: it changes with all that machine code depends on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

import pytest

from edge_gemma.kernels import cache_key as digests

ROOT = Path(__file__).parents[2]


def key_of(monkeypatch: pytest.MonkeyPatch, sources: Path) -> str:
    monkeypatch.setattr(digests, "__file__", str(sources / "cache_key.py"))
    return digests.cache_key.__wrapped__()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the kernels' sources, laid out as in a checkout."""
    package = tmp_path / "edge_gemma"
    package.mkdir()
    shutil.copy(ROOT / "edge_gemma/formats.py", package)
    return Path(shutil.copytree(ROOT / "kernels", tmp_path / "kernels"))


def test_a_changed_source_gives_another_key(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(monkeypatch, sources)
    assert before == key_of(monkeypatch, sources)
    keys = {before}
    for path in (sources / "simd.py", sources / "functions.py", sources.parent / "edge_gemma/formats.py"):
        path.write_text(path.read_text() + "\n# changed\n")
        keys.add(key_of(monkeypatch, sources))
    assert len(keys) == 4


@pytest.mark.parametrize("module", ["llvmlite", "numpy"])
def test_another_compiler_gives_another_key(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests.cache_key.__wrapped__()
    monkeypatch.setattr(f"{module}.__version__", "0.0")
    assert digests.cache_key.__wrapped__() != before


@pytest.mark.parametrize("kept", [True, False])
def test_another_numba_gives_another_key(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its version is in the file where it is today, or only in the package's metadata."""
    package = importlib.util.spec_from_loader("numba", None, is_package=True)
    assert package and package.submodule_search_locations is not None
    package.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: package)
    keys = []
    for version in ("1.0", "1.1"):
        if kept:
            (tmp_path / "_version.py").write_text(version)
        else:
            monkeypatch.setattr(importlib.metadata, "version", lambda name, v=version: {"numba": v}[name])
        keys.append(digests.cache_key.__wrapped__())
    assert keys[0] != keys[1]


def test_another_cpu_gives_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests.cache_key.__wrapped__()
    monkeypatch.setattr(digests, "target", lambda: ("another", ""))
    assert digests.cache_key.__wrapped__() != before
