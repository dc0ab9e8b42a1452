"""The key of a set of compiled kernels: a digest of all that their machine code depends on. Knows no file of theirs."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import llvmlite
import llvmlite.binding as llvm
import numpy as np

import edge_gemma.kernels
from edge_gemma import __version__

from ..isa import current, target
from .installed import module_content, package_contents, package_places

KEY_DIGITS = 24


@cache
def cache_key() -> str | None:
    """The key, `KEY_DIGITS` hexadecimal digits; None if this installation does not tell what its kernels are."""
    if INSTALLED is None:
        return None
    versions = [__version__, llvmlite.__version__, llvm.llvm_version_info, np.__version__]
    machine = [llvm.get_default_triple(), current().name, *target()]
    return hashlib.sha256(json.dumps([INSTALLED, versions, machine]).encode()).hexdigest()[:KEY_DIGITS]


def _installed() -> str | None:
    """Digest of the modules that kernels are made of and with, as they are installed now; None if they do not tell."""
    try:
        kernels = package_contents("edge_gemma.kernels", edge_gemma.kernels.__path__)
        parts = {name: content for name, content in kernels.items() if not name.startswith("reference")}
        formats = module_content("edge_gemma.formats", edge_gemma.__path__)
        numba = _numba_version()
    except OSError:  # an update is removing them
        return None
    return _digest({**parts, "edge_gemma.formats": formats, "numba": numba}) if parts else None


def _digest(parts: dict[str, bytes | None]) -> str | None:
    digest = hashlib.sha256()
    for name, content in sorted(parts.items()):
        if content is None:
            return None
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _numba_version() -> bytes | None:
    """Where Numba keeps its version: importing it takes half a second, and importlib.metadata 20 ms."""
    content = module_content("numba._version", package_places("numba"))
    if content is None:
        from importlib import metadata

        try:
            return metadata.version("numba").encode()
        except metadata.PackageNotFoundError:
            return None
    return content


INSTALLED = _installed()
"""At the import of this module, which is when others are imported; later, another version may have been installed."""
