"""float32 rows -> the bytes of a block format, and back. Knows no tensor names and no file.

Bytes equal `gguf.quants.quantize`, the reference, in every block whose scale has a finite reciprocal. Where it has not
(largest magnitude under 1e-37) the reference casts infinities to integers, which each CPU does in its own way; here
such a block is all zero bytes after its scale, and its scale is zero in float16 anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Without the sign, float32 bits are in the order of the numbers; and LLVM vectorizes the maximum of integers.
_MAGNITUDE = np.int32(0x7FFFFFFF)


class OutOfRangeError(ValueError):
    """A value, or the scale of its block, is too large for the format. `row` is its row in the array."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(f"row {row} is out of range")


def encode(values: Floats, name: str) -> Bytes:
    """Rows of `values`, (rows, columns) and finite, in format `name`: (rows, bytes of a row).

    Raises OutOfRangeError where float16 or bfloat16 would overflow, KeyError for a format that is not written.
    """
    return _ENCODERS[name](np.ascontiguousarray(values))


def decode(raw: Bytes, name: str) -> Floats:
    """float32 values of rows of any format, (rows, bytes of a row) -> (rows, columns); a view for F32."""
    if name == "F32":
        return raw.view("<f4")
    if name == "F16":
        return raw.view("<f2").astype(np.float32)
    if name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    from gguf import GGMLQuantizationType, quants

    # One long row: the package works on 16 rows at a time, and short rows would drown in its Python.
    return np.asarray(quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[name])).reshape(len(raw), -1)


def can_encode(name: str) -> bool:
    """Whether `encode` writes this format."""
    return name in _ENCODERS


def _f32(values: Floats) -> Bytes:
    return values.astype("<f4", copy=False).view(np.uint8)


def _f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):  # found and reported by the check
        halves = values.astype("<f2")
    return _checked(halves, np.isinf(halves).any(axis=1))


def _bf16(values: Floats) -> Bytes:
    bits = values.view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)  # to nearest, even
    halves = bits.astype("<u2")
    return _checked(halves, ((halves & 0x7FFF) == 0x7F80).any(axis=1))


def _checked(halves: NDArray[np.generic], overflow: NDArray[np.bool_]) -> Bytes:
    if overflow.any():
        raise OutOfRangeError(int(np.argmax(overflow)))
    return halves.view(np.uint8)


def _blocks_of_32(kernel: Callable[..., None], nbytes: int) -> Callable[[Floats], Bytes]:
    """An encoder for blocks of a float16 scale followed by `nbytes` - 2 bytes, which `kernel` fills."""

    def encoder(values: Floats) -> Bytes:
        rows = len(values)
        blocks = values.reshape(-1, 32)
        scales = np.empty(len(blocks), np.float32)
        out = np.empty((len(blocks), nbytes), np.uint8)
        kernel(blocks, blocks.view(np.int32), scales, out)
        with np.errstate(over="ignore", under="ignore"):
            halves = scales.astype("<f2")
        _checked(halves, np.isinf(halves).reshape(rows, -1).any(axis=1))
        out[:, :2] = halves.view(np.uint8).reshape(-1, 2)
        return out.reshape(rows, -1)

    return encoder


@njit(nogil=True, error_model="numpy")
def _q4_0(blocks: Floats, bits: NDArray[np.int32], scales: Floats, out: Bytes) -> None:
    """Byte i of 16 holds value i in its low half and value i + 16 in its high one, each x / scale + 8 in 0..15.

    The scale maps the value of largest magnitude (the first of several) to -8.
    """
    half, top = np.float32(8.5), np.int32(15)
    for b in range(len(blocks)):
        largest = np.int32(0)
        for i in range(32):
            largest = max(largest, bits[b, i] & _MAGNITUDE)
        first = 0
        while bits[b, first] & _MAGNITUDE != largest:
            first += 1
        scale = blocks[b, first] / np.float32(-8)
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        scales[b] = scale
        if np.isinf(inverse):
            out[b, 2:] = 0
            continue
        for i in range(16):
            low = min(np.int32(blocks[b, i] * inverse + half), top)
            high = min(np.int32(blocks[b, i + 16] * inverse + half), top)
            out[b, 2 + i] = low | (high << np.int32(4))


@njit(nogil=True, error_model="numpy")
def _q8_0(blocks: Floats, bits: NDArray[np.int32], scales: Floats, out: Bytes) -> None:
    """32 signed bytes, each x / scale rounded to nearest, halves away from zero; the scale maps the largest to 127."""
    for b in range(len(blocks)):
        largest = np.int32(0)
        for i in range(32):
            largest = max(largest, bits[b, i] & _MAGNITUDE)
        first = 0
        while bits[b, first] & _MAGNITUDE != largest:
            first += 1
        scale = abs(blocks[b, first]) / np.float32(127)
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        scales[b] = scale
        if np.isinf(inverse):
            out[b, 2:] = 0
            continue
        for i in range(32):
            x = blocks[b, i] * inverse
            whole = np.int32(x)
            rest = x - np.float32(whole)  # exact, in (-1, 1), with the sign of x
            out[b, 2 + i] = whole + np.int32(rest + rest)


_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _blocks_of_32(_q8_0, 34),
    "Q4_0": _blocks_of_32(_q4_0, 18),
}
