"""An open GGUF file: one mapping, its metadata, and its tensors as views of the mapping. Knows no model.

The file is opened once; what is checked and what is mapped is that same file, whatever happens to its name.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.errors import ModelChangedError, ModelFormatError
from edge_gemma.gguf.file_kind import expanded, folder_message, missing_message
from edge_gemma.gguf.metadata import Metadata, StringArray
from edge_gemma.gguf.parse import Cursor, parse_header, parse_metadata
from edge_gemma.gguf.tensors import Tensor, data_alignment, parse_tensors
from edge_gemma.memory import memory_for, require_memory

__all__ = ["GgufFile", "Metadata", "StringArray", "Tensor"]

COPY_ALIGNMENT = 64
# A FIFO would otherwise block until someone writes to it. Windows has neither flag, but would translate line ends.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class GgufFile:
    """A GGUF file, version 2 or 3, with every rule of the container checked. Use `open`; close it or use `with`.

    Views handed out keep the mapping alive, so closing never leaves one dangling.
    """

    path: Path
    size: int
    version: int
    metadata: Metadata
    tensors: dict[str, Tensor]

    def __init__(self, path: Path, fd: int) -> None:
        """`fd`: an open descriptor, which this object closes. Nothing is read yet: `open` does that."""
        self.path = path
        self._fd = fd
        self._stamp = (0, 0)
        self._bytes: NDArray[np.uint8] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, strict: bool = False, load: Literal["map", "copy"] = "map") -> Self:
        """Open `path` and check its header and tensor table; tensor data is not touched.

        A "~" in front of `path` is the home folder. `strict` refuses bytes after the last tensor instead of warning.
        `load="copy"` reads the file into memory, for disks that may go away under a mapping. Raises OSError,
        MemoryBudgetError where there is no room for it, ModelFormatError naming field and offset, or TypeError and
        ValueError for a path that is none.
        """
        name = arguments.path("path", path)
        found = expanded(name)
        file = cls(found, _open(found, name))
        try:
            file._load(load)
            file._parse(strict)
        except BaseException:
            file.close()
            raise
        return file

    def data(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The blocks of `tensor`: a read-only view, (rows, row_bytes); a 1-D tensor is one row. No copy."""
        blocks = self._view()[tensor.offset : tensor.offset + tensor.nbytes]
        return blocks.reshape(math.prod(tensor.shape[:-1]), tensor.row_bytes)

    def check_unchanged(self) -> None:
        """Raise ModelChangedError if the mapped file was written to or cut off since it was opened.

        Reading a mapping past the end of a shortened file kills the process; this is the guard before each request.
        A file that was replaced by a rename is not touched: the mapping keeps the old one.
        """
        if self._fd >= 0 and self._current_stamp() != self._stamp:
            raise ModelChangedError(f"{self.path} was modified on disk while it was open; open it again")

    def close(self) -> None:
        """Give up the mapping; it goes when the last view of it does. Closing twice is fine."""
        self._bytes = None
        self._close_fd()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._close_fd()

    def _load(self, load: Literal["map", "copy"]) -> None:
        self._stamp = self._checked_stamp()
        self.size = self._stamp[0]
        self._bytes = self._mapped() if load == "map" else self._copied()
        self.check_unchanged()
        if load == "copy":
            self._close_fd()

    def _mapped(self) -> NDArray[np.uint8]:
        advice = "raise the process's limit of address space (ulimit -v), or use a file of fewer bits per weight"
        with memory_for(f"mapping {self.path}", self.size, advice):
            return np.frombuffer(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ), np.uint8)

    def _copied(self) -> NDArray[np.uint8]:
        what, advice = f"a copy of {self.path}", 'load="map" takes none of its own'
        require_memory(what, self.size, advice)
        with memory_for(what, self.size, advice):
            return _read_aligned(self._fd, self.size)

    def _checked_stamp(self) -> tuple[int, int]:
        """Size and modification time of a regular file that is not empty."""
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISDIR(mode):
            raise _folder_error(self.path)
        if not stat.S_ISREG(mode):
            kind = "a device, pipe or socket, not a regular file, which alone can be mapped; save it as a file first"
            raise ModelFormatError(kind, field="file", path=str(self.path))
        stamp = self._current_stamp()
        if stamp[0] == 0:
            raise ModelFormatError("the file is empty", field="header", offset=0, path=str(self.path))
        return stamp

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns

    def _parse(self, strict: bool) -> None:
        cursor = Cursor(self._view().data, str(self.path))
        self.version, n_tensors, n_keys = parse_header(cursor)
        self.metadata = parse_metadata(cursor, n_keys)
        _refuse_split(self.metadata)
        alignment = data_alignment(self.metadata)
        self.tensors, end = parse_tensors(cursor, n_tensors, alignment)
        extra = self.size - -(-end // alignment) * alignment
        if extra > 0 and strict:
            raise cursor.error(f"{extra} bytes after the last tensor", "end of data", self.size - extra)
        if extra > 0:
            warnings.warn(f"{self.path}: {extra} bytes after the last tensor are ignored", stacklevel=4)

    def _view(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        return self._bytes

    def _close_fd(self, close: Callable[[int], None] = os.close) -> None:
        """`close` is kept here because modules may be gone when an interpreter that ends deletes a file left open."""
        fd, self._fd = self._fd, -1  # forgotten first: Ctrl-C between the two must not lead to closing it twice
        if fd >= 0:
            close(fd)


def _open(path: Path, name: str) -> int:
    """A descriptor of `path`, which the user called `name`."""
    try:
        return os.open(path if name else name, _OPEN_FLAGS)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, missing_message(name), name) from None
    except PermissionError:
        if path.is_dir():  # what Windows says of a folder
            raise _folder_error(path) from None
        raise


def _folder_error(path: Path) -> ModelFormatError:
    return ModelFormatError(folder_message(path), field="file", path=str(path))


def _refuse_split(metadata: Metadata) -> None:
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts not in (0, 1):
        merge = "merge them into one file first, with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT`"
        raise metadata.error("split.count", f"one of {parts} parts of a split model; {merge}")


def _read_aligned(fd: int, size: int) -> NDArray[np.uint8]:
    """The first `size` bytes of an open file, in memory, at a multiple of COPY_ALIGNMENT; shorter if the file is."""
    buffer = np.empty(size + COPY_ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % COPY_ALIGNMENT
    content = buffer[start : start + size]
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
        done = 0
        while done < size and (count := file.readinto(content[done:].data)):
            done += count
    content = content[:done]
    content.flags.writeable = False
    return content
