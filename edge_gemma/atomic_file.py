"""A file that appears under its name complete or not at all. Knows nothing of what is written.

The bytes go to `.<name>.partial-<pid>` in the same folder, which is synced to disk and renamed at the end. On an error
or Ctrl-C the partial file is removed and a file that had the name stays as it was. What a killed process left behind is
removed by the next one that writes the same name; what a running one has there is not, whichever of the two ends first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from edge_gemma.errors import OutputError

HEADROOM = 64 << 20  # bytes that must stay free on the disk
SYNC_BYTES = 64 << 20  # are sent to the disk while more is written: the end need not wait for all
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
MAKE_ROOM = "make room there, or name a file on another disk"
CLOCK_SECONDS = 60.0  # by which the clock of a disk may differ from that of processes

_in_progress: set[Path] = set()  # temporary files of this process
_claimed: set[Path] = set()
_lock = threading.Lock()


def check_destination(path: Path, *, force: bool, sources: list[Path]) -> None:
    """Raise OSError unless `path` may be written: its folder exists, it is no link, no source, and new or `force`."""
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is not a folder; create it first")
    if path.is_symlink():
        raise FileExistsError(f"{path} is a symbolic link; name the file itself")
    if not path.exists():
        return
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, not a regular file; name a file in it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise FileExistsError(f"{path} exists and is not a regular file")
    if any(path.samefile(source) for source in sources):
        raise FileExistsError(f"{path} is part of the source; name another output")
    if not force:
        raise FileExistsError(f"{path} exists; pass --force (force=True) to replace it")


class AtomicFile:
    """Context manager; `write` appends. Leaving it without an error publishes the file, with one removes it."""

    def __init__(self, path: Path, size: int, *, force: bool) -> None:
        """`size`: bytes that will be written, checked against the free space before the first one is."""
        self.path = path.resolve()
        self.partial = temporary(self.path, "partial")
        self._size = size
        self._force = force

    def __enter__(self) -> Self:
        remove_leftovers(self.path)
        free = shutil.disk_usage(self.path.parent).free
        if free < self._size + HEADROOM:
            raise OutputError(f"{self.path}: needs {self._size + HEADROOM} bytes of disk, {free} are free; {MAKE_ROOM}")
        self._fd = self._create()
        _in_progress.add(self.partial)
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._syncing: Future[None] | None = None
        self._unsynced = 0
        return self

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            return os.open(self.partial, flags, 0o666)
        except FileExistsError:
            text = "is being written, by this process or by one of the same number on another machine"
            raise FileExistsError(f"{self.path} {text}; wait for it, or remove {self.partial}") from None
        except OSError as error:
            raise self._failed(error) from error
        except BaseException:  # Ctrl-C, when the file may be there already
            self.partial.unlink(missing_ok=True)
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`. Raises OutputError, naming the file, when the disk takes no more."""
        view = memoryview(data).cast("B")
        try:
            while view:
                written = os.write(self._fd, view)
                self._unsynced += written
                view = view[written:]
            self._sync_early()
        except OSError as error:
            raise self._failed(error) from error

    def _sync_early(self) -> None:
        """Begin to send to the disk what it lacks, unless it is busy with that already."""
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._finish_sync()
            self._syncing, self._unsynced = self._syncer.submit(_sync_data, self._fd), 0

    def _finish_sync(self) -> None:
        """Wait for it. Raises its OSError, which the system tells only once."""
        if self._syncing is not None:
            self._syncing.result()

    def rewrite_start(self, data: bytes) -> None:
        """Write `data` over the first bytes of the file; the next `write` appends again. Raises as `write`."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.write(data)
        os.lseek(self._fd, 0, os.SEEK_END)

    def flush(self) -> None:
        """Wait until everything written is on the disk."""
        try:
            self._finish_sync()
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
            else:
                self._close()
        finally:
            self.partial.unlink(missing_ok=True)
            _in_progress.discard(self.partial)

    def _publish(self) -> None:
        try:
            self.flush()
        finally:
            self._close()
        if self.path.exists() and not self._force:
            raise FileExistsError(f"{self.path} appeared while it was being written; pass --force to replace it")
        try:
            self.partial.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def _close(self) -> None:
        try:
            self._syncer.shutdown()
        finally:
            os.close(self._fd)

    def _failed(self, error: OSError) -> OutputError:
        advice = f"; {MAKE_ROOM}" if error.errno in NO_ROOM else ""
        return OutputError(f"{self.path}: {os.strerror(error.errno or errno.EIO)}{advice}")


def temporary(path: Path, kind: str) -> Path:
    """Where this process keeps something beside `path` while it writes it; `kind` is "partial" or "source"."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


@contextmanager
def in_use(file: Path) -> Iterator[None]:
    """A temporary file is not taken for a leftover meanwhile."""
    file = file.resolve()
    _in_progress.add(file)
    try:
        yield
    finally:
        _in_progress.discard(file)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """No other thread of this process writes `path` meanwhile. Raises FileExistsError if one does."""
    path = path.resolve()
    with _lock:
        if path in _claimed:
            raise FileExistsError(f"{path} is being written by this process; wait for it, or name another output")
        _claimed.add(path)
    try:
        yield
    finally:
        _claimed.discard(path)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of their writing `path`: partial files, copies of sources, parts of these."""
    path = path.resolve()
    name = re.escape(path.name)
    left = re.compile(rf"\.{name}\.(?:partial|source)-([0-9]+)|\.\.{name}\.source-[0-9]+\.partial-([0-9]+)")
    for entry in path.parent.iterdir():
        match = left.fullmatch(entry.name)
        if match is not None and not _being_written(entry, int(match[1] or match[2])):
            entry.unlink(missing_ok=True)


def _being_written(partial: Path, pid: int) -> bool:
    """A process number is used again, in containers mostly 1: who has it now must be older than the last byte written.

    Our own number is trusted only if this process says so.
    """
    if pid == os.getpid():
        return partial in _in_progress
    try:
        return bool(psutil.Process(pid).create_time() <= partial.stat().st_mtime + CLOCK_SECONDS)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def _sync_data(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS and Windows have but the latter


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and a rename is durable
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
