"""Read one safetensors file through a mapping. Knows the container, not the model inside it.

NumPy has no bfloat16, and the reference reader accepts duplicate names and empty tensors; hence a reader of our own.
Layout: u64 length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the tensors' bytes without gaps.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS

from .stored_tensor import READABLE, MappedFile, NameTest, StoredTensor, check_shape, no_name
from .strict_json import parse_object

MAX_HEADER = 100_000_000  # the reference reader's limit


def read_safetensors(path: Path, unread: NameTest = no_name) -> dict[str, StoredTensor]:
    """Every tensor of the file at `path`, by name, in file order; but those that are `unread`, of whatever type.

    Raises CheckpointError naming file and tensor for anything outside the format, OSError if it cannot be opened.
    """
    file = MappedFile(path)
    if len(file) < 8:
        raise CheckpointError(f"{path}: {len(file)} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", file.view(0, 8).tobytes())
    if length > min(MAX_HEADER, len(file) - 8):
        raise CheckpointError(f"{path}: header of {length} bytes in {len(file)} (not safetensors, or cut off)")
    header = parse_object(file.view(8, 8 + length).tobytes(), f"{path}: header")
    header.pop("__metadata__", None)
    return _tensors(file, header, 8 + length, unread)


def _tensors(file: MappedFile, header: dict[str, Any], base: int, unread: NameTest) -> dict[str, StoredTensor]:
    path, size = file.path, len(file) - base
    spans = sorted(((_span(path, name, entry), name, entry) for name, entry in header.items()), key=lambda s: s[0])
    tensors, end = {}, 0
    for (start, stop), name, entry in spans:
        if start != end:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {start}; the one before it ends at {end}")
        end = stop
        if end > size:
            raise CheckpointError(f"{path}: tensor {name!r} ends {end - size} bytes beyond the file (cut off?)")
        if not unread(name):
            tensors[name] = _tensor(file, name, entry, base + start, stop - start)
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes after the last tensor")
    return tensors


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        raise CheckpointError(f"{path}: tensor {name!r}: data_offsets must be two byte offsets, got {offsets!r}")
    return offsets[0], offsets[1]


def _tensor(file: MappedFile, name: str, entry: dict[str, Any], start: int, size: int) -> StoredTensor:
    where = f"{file.path}: tensor {name!r}"
    dtype = entry.get("dtype")
    if dtype not in READABLE:
        raise CheckpointError(f"{where} has dtype {dtype!r}; F32, F16 and BF16 are read")
    shape = check_shape(entry.get("shape"), where)
    nbytes = math.prod(shape) * FORMATS[dtype].nbytes
    if nbytes != size:
        raise CheckpointError(f"{where}: {list(shape)} of {dtype} takes {nbytes} bytes, not {size}")
    return StoredTensor(name, file, FORMATS[dtype], shape, start)
