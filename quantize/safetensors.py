"""Read one safetensors file through a mapping. Knows the container, not the model inside it.

NumPy has no bfloat16, and the reference reader accepts duplicate names and empty tensors; hence a reader of our own.
Layout: u64 length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the tensors' bytes without gaps.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS, BlockFormat
from edge_gemma.quantize import blocks
from edge_gemma.quantize.strict_json import parse_object

MAX_HEADER = 100_000_000  # the reference reader's limit
MAX_DIMS = 8
MAX_DIM = 1 << 31


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: `shape` is row-major, `data` a read-only view of its bytes in the mapping."""

    name: str
    path: Path
    format: BlockFormat
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def where(self) -> str:
        """File and tensor, for messages."""
        return f"{self.path.name}: {self.name}"

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes of rows [start, stop), shape (rows, bytes of a row). A vector is one row."""
        row = self.shape[-1] * self.format.nbytes
        return self.data[start * row : stop * row].reshape(stop - start, row)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) widened to float32 (exact), shape (rows, columns)."""
        return blocks.decode(self.raw_rows(start, stop), self.format.name)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file at `path`, by name, in file order.

    Raises CheckpointError naming file and tensor for anything outside the format, OSError if it cannot be opened.
    """
    data = _map(path)
    if len(data) < 8:
        raise CheckpointError(f"{path}: {len(data)} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if length > min(MAX_HEADER, len(data) - 8):
        raise CheckpointError(f"{path}: header of {length} bytes in {len(data)} (not safetensors, or cut off)")
    header = parse_object(data[8 : 8 + length].tobytes(), f"{path}: header")
    header.pop("__metadata__", None)
    return _tensors(path, header, data[8 + length :])


def _map(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _tensors(path: Path, header: dict[str, Any], body: NDArray[np.uint8]) -> dict[str, StoredTensor]:
    spans = sorted(((_span(path, name, entry), name, entry) for name, entry in header.items()), key=lambda s: s[0])
    tensors, end = {}, 0
    for (start, stop), name, entry in spans:
        if start != end:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {start}; the one before it ends at {end}")
        end = stop
        if end > len(body):
            raise CheckpointError(f"{path}: tensor {name!r} ends {end - len(body)} bytes beyond the file (cut off?)")
        tensors[name] = _tensor(path, name, entry, body[start:stop])
    if end != len(body):
        raise CheckpointError(f"{path}: {len(body) - end} bytes after the last tensor")
    return tensors


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        raise CheckpointError(f"{path}: tensor {name!r}: data_offsets must be two byte offsets, got {offsets!r}")
    return offsets[0], offsets[1]


def _tensor(path: Path, name: str, entry: dict[str, Any], data: NDArray[np.uint8]) -> StoredTensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if dtype not in ("F32", "F16", "BF16"):
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype!r}; F32, F16 and BF16 are read")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMS or not all(type(n) is int for n in shape):
        raise CheckpointError(f"{path}: tensor {name!r}: bad shape {shape!r}")
    if not all(0 < n <= MAX_DIM for n in shape):
        raise CheckpointError(f"{path}: tensor {name!r}: every dimension must be in 1..{MAX_DIM}, got {shape}")
    nbytes = math.prod(shape) * FORMATS[dtype].nbytes
    if nbytes != len(data):
        raise CheckpointError(f"{path}: tensor {name!r}: {shape} of {dtype} takes {nbytes} bytes, not {len(data)}")
    return StoredTensor(name, path, FORMATS[dtype], tuple(shape), data)
