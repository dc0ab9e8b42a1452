"""Kernels as machine code in this process: loaded from the disk cache, or compiled and saved there.

Knows no kernel's meaning. A cached kernel is an object file behind a header line; loading it takes llvmlite alone, so
a process whose kernels are cached starts without Numba.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from edge_gemma.errors import ForkError

from ..isa import target
from ..operations import Kernel
from .cache_file import read_object, write_object
from .cache_folder import cache_folder
from .cache_key import cache_key
from .executable_memory import require_executable_memory
from .workers import Compilation

log = logging.getLogger(__name__)

SUFFIX = ".kernel"
Progress = Callable[[int, int, str], None]


class Library:
    """All kernels of this process. Use `shared()`."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = threading.RLock()  # `progress` may open another model
        self._lost = False
        self._addresses: dict[Kernel, int] = {}
        self._engine = _new_engine()

    def load(self, kernels: Iterable[Kernel], progress: Progress | None = None) -> dict[Kernel, int]:
        """Addresses of `kernels`. What has to be compiled is, with `progress(done, total, name)` around each.

        Raises ForkError in a child that was forked while another thread was in here.
        """
        if self._lost:
            raise ForkError("this process was forked while kernels were loaded; use spawn, or fork earlier or later")
        with self._lock:
            wanted = sorted(set(kernels), key=symbol_of)
            if not self._addresses.keys() >= set(wanted):
                require_executable_memory()
            missing = [k for k in wanted if k not in self._addresses and not self._load_cached(k)]
            with Compilation(missing) as compilation:
                if self.folder and (key := cache_key()):
                    compilation.start_workers(self.folder, key)
                for done, (kernel, written) in enumerate(compilation):
                    if progress:
                        progress(done, len(missing), symbol_of(kernel))
                    if kernel not in self._addresses and not (written and self._load_cached(kernel)):
                        self._compile(kernel)
            if progress and missing:
                progress(len(missing), len(missing), "")
            return {k: self._addresses[k] for k in wanted}

    def note_fork(self) -> None:
        """In a forked child: what a thread holds that does not exist there, nobody will ever let go."""
        self._lost = not self._lock.acquire(blocking=False)
        if not self._lost:
            self._lock.release()

    def _load_cached(self, kernel: Kernel) -> bool:
        code = read_object(self.folder / file_name(kernel)) if self.folder else None
        if code is not None:
            self._add(kernel, code)
        return code is not None

    def _compile(self, kernel: Kernel) -> None:
        from .compile import compile_kernel

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
    library = Library(cache_folder())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=library.note_fork)
    return library


def symbol_of(kernel: Kernel) -> str:
    """The kernel's name in object files and progress lines."""
    return ".".join(filter(None, (kernel.module, kernel.name, kernel.strategy)))


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
