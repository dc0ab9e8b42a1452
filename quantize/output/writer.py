"""The bytes of a GGUF file before its tensor data (version 3, little-endian). Knows no model and no file system.

The `gguf` package's writer is not used: it takes a Python call per token and writes under the final name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_gemma.formats import BlockFormat
from edge_gemma.gguf.parse import ARRAY, SCALARS, STRING
from edge_gemma.gguf.values import Metadata, Value

ALIGNMENT = 32
VERSION = 3
_SCALAR_IDS = {name: (type_id, code) for type_id, (name, code) in SCALARS.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A row of the tensor table. `shape` is row-major, (rows, columns) or (n,)."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    nbytes: int

    @property
    def padded(self) -> int:
        """Bytes up to the next tensor."""
        return padded(self.nbytes)


def padded(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def encode_header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """Header, metadata and tensor table, padded so that the data of the first tensor may follow."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        parts.append(_tensor_info(tensor, offset))
        offset += tensor.padded
    header = b"".join(parts)
    return header + bytes(padded(len(header)) - len(header))


def _tensor_info(tensor: TensorInfo, offset: int) -> bytes:
    dims = tensor.shape[::-1]  # the innermost dimension comes first
    numbers = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.format.type_id, offset)
    return _string(tensor.name) + numbers


def _value(value: Value) -> bytes:
    if value.kind == "STRING":
        return struct.pack("<I", STRING) + _string(value.value)
    if value.kind in _SCALAR_IDS:
        type_id, code = _SCALAR_IDS[value.kind]
        return struct.pack(f"<I{code}", type_id, value.value)
    return struct.pack("<I", ARRAY) + _array(value.kind.removeprefix("ARRAY[").removesuffix("]"), value)


def _array(item: str, value: Value) -> bytes:
    if item == "ARRAY":  # arrays of arrays come as they lay in the file, their type and count in front
        return bytes(value.value)
    if item == "STRING":
        return struct.pack("<IQ", STRING, len(value.value)) + b"".join(map(_string, value.value))
    type_id, code = _SCALAR_IDS[item]
    array = np.asarray(value.value).astype("<" + code, copy=False)
    return struct.pack("<IQ", type_id, len(array)) + array.tobytes()


def _string(text: str | bytes | memoryview) -> bytes:
    """Names that were read from a GGUF file may have bytes that are no text, as surrogates."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data
