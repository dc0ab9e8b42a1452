"""The tensor table of a GGUF file: names, formats, shapes, and where the data lies.

Knows no file system, no model and no tensor data. Dimensions are Python integers, which cannot overflow. A tensor may
have any name and any type of known size: whoever binds it to a model asks for more (`weights.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_gemma.formats import BY_TYPE_ID, BlockFormat
from edge_gemma.gguf.metadata import Metadata
from edge_gemma.gguf.parse import Cursor, check_count

DEFAULT_ALIGNMENT = 32
MAX_TENSORS = 16384
MAX_NAME_BYTES = 63
MAX_RANK = 4
MAX_DIMENSION = 2**31
MAX_ELEMENTS = 2**40
MIN_TENSOR_ENTRY = 8 + 1 + 4 + 8 + 4 + 8  # a name of one letter, rank 1, one dimension, type, offset


@dataclass(frozen=True)
class Tensor:
    """A row of the tensor table. `shape` is in NumPy's order: (rows, columns) or (n,); a scalar has (1,).

    `format` is one of `formats.FORMATS`, or where `is_executed` is false, another of ggml's.
    """

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int

    @property
    def is_executed(self) -> bool:
        """Whether there are kernels for the format."""
        return self.format.type_id in BY_TYPE_ID

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.format.row_bytes(self.shape[-1])


def data_alignment(metadata: Metadata) -> int:
    """Every tensor starts at a multiple of this many bytes."""
    alignment = metadata.u32("general.alignment", DEFAULT_ALIGNMENT, lo=8, hi=4096)
    if alignment & (alignment - 1):
        raise metadata.error("general.alignment", f"{alignment} is no power of two")
    return alignment


def parse_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> tuple[dict[str, Tensor], int]:
    """The tensor table, whose `n_tensors` entries start at the cursor, in file order; and where the last tensor ends.

    Every tensor follows the one before it, padded to `alignment`, and lies in the file: no gap, no overlap.
    """
    check_count(cursor, n_tensors, MAX_TENSORS, MIN_TENSOR_ENTRY, field="tensor count", at=8)
    entries: dict[str, Tensor] = {}
    expected = 0  # offset of the next tensor, from the start of the data section
    for i in range(n_tensors):
        at = cursor.pos
        tensor, offset_at = _parse_tensor(cursor, i)
        if tensor.name in entries:
            raise cursor.error("the tensor appears twice", tensor.name, at)
        if tensor.offset != expected:
            raise cursor.error(
                f"data at {tensor.offset}, expected {expected} (right after the last tensor)", tensor.name, offset_at
            )
        entries[tensor.name] = tensor
        expected += -(-tensor.nbytes // alignment) * alignment
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = {t.name: Tensor(t.name, t.format, t.shape, data_start + t.offset, t.nbytes) for t in entries.values()}
    return tensors, _check_extent(cursor, tensors)


def _check_extent(cursor: Cursor, tensors: dict[str, Tensor]) -> int:
    """Every tensor lies in the file. Returns where the last one ends."""
    end = max((t.offset + t.nbytes for t in tensors.values()), default=cursor.pos)
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > len(cursor.raw):
            missing = end - len(cursor.raw)
            raise cursor.error(f"the file is cut off: {missing} bytes are missing", tensor.name, tensor.offset)
    return end


def _parse_tensor(cursor: Cursor, index: int) -> tuple[Tensor, int]:
    """The next entry, its offset still relative to the data section, and where in the file that offset stands."""
    name = cursor.name(MAX_NAME_BYTES, f"tensor {index}")
    shape = _parse_shape(cursor, name)
    type_at = cursor.pos
    type_id = cursor.u32(name)
    tensor_format = BY_TYPE_ID.get(type_id) or _other_format(type_id)
    if tensor_format is None:
        raise cursor.error(f"tensor type {type_id} is unknown", name, type_at)
    if shape[-1] % tensor_format.block:
        raise cursor.error(
            f"rows of {shape[-1]} values are no multiple of {tensor_format.name}'s block of {tensor_format.block}",
            name,
            type_at,
        )
    nbytes = math.prod(shape[:-1]) * tensor_format.row_bytes(shape[-1])
    offset_at = cursor.pos
    return Tensor(name, tensor_format, shape, cursor.u64(name), nbytes), offset_at


def _parse_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    at = cursor.pos
    rank = cursor.u32(name)
    if rank > MAX_RANK:
        raise cursor.error(f"has {rank} dimensions, at most {MAX_RANK} are allowed", name, at)
    shape = tuple(cursor.u64(name) for _ in range(rank))[::-1] or (1,)
    if max(shape) > MAX_DIMENSION or math.prod(shape) > MAX_ELEMENTS:
        raise cursor.error(f"shape {shape} has a dimension above 2^31 or more than 2^40 values", name, at + 4)
    return shape


def _other_format(type_id: int) -> BlockFormat | None:
    """A format that is known but not executed."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # 0.1 s, and hardly a file needs it

    try:
        known = GGMLQuantizationType(type_id)
    except ValueError:
        return None
    return BlockFormat(known.name, type_id, *GGML_QUANT_SIZES[known])
