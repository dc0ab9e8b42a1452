"""The key of a set of compiled kernels: a digest of all that their machine code depends on. Knows no file of theirs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from edge_gemma.kernels.isa import target

KEY_DIGITS = 24


def _numba_version() -> str:
    """What stands where Numba keeps its version: importing it takes half a second, and importlib.metadata 20 ms."""
    package = importlib.util.find_spec("numba")
    for folder in (package.submodule_search_locations or []) if package else []:
        if (file := Path(folder) / "_version.py").is_file():
            return file.read_text("utf-8")
    from importlib.metadata import version

    return version("numba")


@cache
def cache_key() -> str:
    """Digest of all that the machine code depends on."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    sources = sorted(path for path in here.glob("*.py") if not path.name.startswith("reference"))
    for source in [*sources, here / "../edge_gemma/formats.py", here / "../formats.py"]:
        if source.is_file():
            digest.update(source.read_bytes())
    for version in (_numba_version(), llvmlite.__version__, np.__version__):
        digest.update(version.encode())
    digest.update(json.dumps([llvm.get_default_triple(), *target()]).encode())
    return digest.hexdigest()[:KEY_DIGITS]
