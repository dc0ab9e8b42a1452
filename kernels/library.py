"""Kernels as machine code in this process: loaded from the disk cache, or compiled and saved there.

Knows no kernel's meaning. A cached kernel is an object file behind a header line; loading it takes llvmlite alone, so
a process whose kernels are cached starts without Numba. The cache is one folder per set of kernel sources, compiler
versions and CPU; a file is believed if its digest is right, and the folder if nobody else may write to it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from platformdirs import user_cache_path

from edge_gemma.kernels.compile_workers import Compilation
from edge_gemma.kernels.isa import target
from edge_gemma.kernels.operations import Kernel

log = logging.getLogger(__name__)

SUFFIX = ".kernel"
KEY_DIGITS = 24
KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
UNUSED_DAYS = 30
"""Folders of kernels that no process has opened for so long are removed when a new one is made."""
Progress = Callable[[int, int, str], None]


class Library:
    """All kernels of this process. Use `shared()`."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._addresses: dict[Kernel, int] = {}
        self._engine = _new_engine()

    def load(self, kernels: Iterable[Kernel], progress: Progress | None = None) -> dict[Kernel, int]:
        """Addresses of `kernels`. What has to be compiled is, with `progress(done, total, name)` around each."""
        with self._lock:
            wanted = sorted(set(kernels), key=lambda k: (k.module, k.name))
            missing = [k for k in wanted if k not in self._addresses and not self._load_cached(k)]
            with Compilation(missing) as compilation:
                if self.folder:
                    compilation.start_workers(self.folder, cache_key())
                for done, (kernel, written) in enumerate(compilation):
                    if progress:
                        progress(done, len(missing), symbol_of(kernel))
                    if not (written and self._load_cached(kernel)):
                        self._compile(kernel)
            if progress and missing:
                progress(len(missing), len(missing), "")
            return {k: self._addresses[k] for k in wanted}

    def _load_cached(self, kernel: Kernel) -> bool:
        code = read_object(self.folder / file_name(kernel)) if self.folder else None
        if code is not None:
            self._add(kernel, code)
        return code is not None

    def _compile(self, kernel: Kernel) -> None:
        from edge_gemma.kernels.compile import compile_kernel

        code = compile_kernel(kernel, symbol_of(kernel))
        if self.folder:
            try:
                write_object(self.folder / file_name(kernel), code)
            except OSError as error:
                log.warning("kernels will be compiled again next time, %s cannot be written: %s", self.folder, error)
                self.folder = None
        self._add(kernel, code)

    def _add(self, kernel: Kernel, code: bytes) -> None:
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._addresses[kernel] = self._engine.get_function_address(symbol_of(kernel))


@cache
def shared() -> Library:
    """The library of this process."""
    return Library(cache_folder())


def symbol_of(kernel: Kernel) -> str:
    """The kernel's name in object files and progress lines."""
    return f"{kernel.module}.{kernel.name}"


def file_name(kernel: Kernel) -> str:
    """The kernel's file in the cache folder."""
    return symbol_of(kernel) + SUFFIX


def _new_engine() -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = target()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, jit=True)
    empty = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(empty, machine)
    engine.remove_module(empty)  # it would be compiled with the first object: 5 MB of the compiler's pages, and 2 ms
    return engine


# ---- files -------------------------------------------------------------------------------------------------------


def write_object(path: Path, code: bytes) -> None:
    """Write header and object under a temporary name, and rename: readers see all of it or nothing."""
    header = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "bytes": len(code)}).encode() + b"\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header + code)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_object(path: Path) -> bytes | None:
    """The object in a cache file; None if there is no such file, or it is not whole."""
    try:
        header, _, code = path.read_bytes().partition(b"\n")
        expected = json.loads(header)["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("ignoring a damaged kernel file, %s: %s", path, error)
        return None
    if hashlib.sha256(code).hexdigest() != expected:
        log.warning("ignoring a damaged kernel file, %s: its digest is wrong", path)
        return None
    return code


# ---- the folder --------------------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """The folder for this set of sources, compilers and CPU, made if need be; None if there is no safe place."""
    override = os.environ.get("EDGE_GEMMA_CACHE_DIR")
    try:
        base = Path(override) if override else user_cache_path("edge-gemma", appauthor=False)
        folder = base / "kernels" / cache_key()
        new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _only_ours(folder):
            log.warning("kernels are not cached: others may write to %s", folder)
            return None
        _note_use(folder, new)
    except (OSError, RuntimeError) as error:
        log.warning("kernels are not cached: %s", error)
        return None
    return folder


def _note_use(folder: Path, new: bool) -> None:
    """Date the folder. Failing costs nothing: it may be read-only, or another process may clean up meanwhile."""
    try:
        os.utime(folder)
        if new:
            _forget_unused(folder.parent)
    except OSError as error:
        log.debug("kernels of older versions stay: %s", error)


def _forget_unused(kernels: Path) -> None:
    """Remove what older versions left: each release, compiler or CPU has a folder of some MB of its own."""
    oldest = time.time() - 86400 * UNUSED_DAYS
    for folder in kernels.iterdir():
        if KEY.fullmatch(folder.name) and folder.lstat().st_mtime < oldest:
            log.info("removing kernels that were not used for %d days: %s", UNUSED_DAYS, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _only_ours(folder: Path) -> bool:
    """No other user can put machine code there. Windows gives each user a folder of their own."""
    if os.name != "posix":
        return True
    for part in (folder, folder.parent):
        status = part.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
    return True


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
