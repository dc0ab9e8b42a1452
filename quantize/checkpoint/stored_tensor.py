"""Tensors as they lie in a mapped file. Knows no container (`safetensors.py`, `torch_file.py`)."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import BlockFormat

from .. import blocks

READABLE = ("F32", "F16", "BF16")
MAX_DIMS = 8
MAX_DIM = 1 << 31

NameTest = Callable[[str], bool]
"""Whether a tensor of that name is meant."""


def no_name(name: str) -> bool:
    """The test that no name passes."""
    return False


class MappedFile:
    """A regular file, mapped read-only for as long as a view of it is in use."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for an empty or irregular file, OSError if it cannot be opened."""
        self.path = path
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            if status.st_size == 0:
                raise CheckpointError(f"{path}: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def __len__(self) -> int:
        return len(self._bytes)

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop), not copied. Raises CheckpointError if the file was cut off meanwhile."""
        if self._map.size() < len(self._bytes):  # touching what is gone would end the process
            raise CheckpointError(f"{self.path}: the file was cut off while it was being read")
        return self._bytes[start:stop]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `shape` is row-major and without gaps, from byte `start` on."""

    name: str
    file: MappedFile
    format: BlockFormat
    shape: tuple[int, ...]
    start: int

    @property
    def where(self) -> str:
        """File and tensor, for messages."""
        return f"{self.file.path.name}: {self.name}"

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes of rows [start, stop), shape (rows, bytes of a row). A vector is one row."""
        row = self.shape[-1] * self.format.nbytes
        raw = self.file.view(self.start + start * row, self.start + stop * row).reshape(stop - start, row)
        return raw if self.start % self.format.nbytes == 0 else raw.copy()  # compiled code wants numbers aligned

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) widened to float32 (exact), shape (rows, columns)."""
        return blocks.decode(self.raw_rows(start, stop), self.format.name)


def check_shape(shape: Any, where: str) -> tuple[int, ...]:
    """`shape` as a tuple if it is a list or tuple of 1 to 8 positive dimensions. Raises CheckpointError if not."""
    if not isinstance(shape, list | tuple) or not 1 <= len(shape) <= MAX_DIMS or not all(type(n) is int for n in shape):
        raise CheckpointError(f"{where}: bad shape {str(shape)[:200]}")
    if not all(0 < n <= MAX_DIM for n in shape):
        raise CheckpointError(f"{where}: every dimension must be in 1..{MAX_DIM}, got {list(shape)}")
    return tuple(shape)
