"""Rows of float32 to the bytes of a quantized format, by compiled kernels. Knows no tensor and no file.

The bytes depend on nothing but the values and the importance of their columns: not on the CPU, and not on how rows are
shared out to threads. A call computes in the caller's thread, without the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS

from ..jit.library import Progress, shared
from ..operations import ROW_WORDS, Kernel, Operation

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

ENCODE = Operation("encode", ("x", "y", "rows", "columns", "importance", "scratch"))
WIDEN = Operation("widen", ("x", "y", "count"))
"""`importance` is 0 or the address of float32 values, one per column, repeated until GROUPS groups more than a row."""

GROUPS = 16
"""Groups of values encoded at a time: a call needs at least as many."""
SCRATCH_BYTES = 16384
LEAST_WEIGHT = np.float32(2.0**-60)
"""Its square is a normal float32 number."""

PLAIN = ("Q4_0", "Q8_0")
"""Formats whose blocks are rounded in one way, the reference's, where no importance is given."""
_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_SUPER_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
ENCODED = (*_BLOCKS, *_SUPER_BLOCKS)

_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)


def kernel_of(name: str, *, weighted: bool) -> Kernel:
    """The kernel that encodes format `name`, with importance or without."""
    if name in PLAIN and not weighted:
        return Kernel("encode.plain", name)
    return Kernel("encode.blocks" if name in _BLOCKS else "encode.super_blocks", name)


def widener_of(name: str) -> Kernel:
    """The kernel that reads float format `name`."""
    return Kernel("encode.plain", name)


def prepare(kernels: Iterable[Kernel], progress: Progress | None = None) -> None:
    """Load these kernels, or compile them with `progress`, so that no thread has to wait for it later."""
    shared().load(kernels, progress)


def encode(values: Floats, name: str, importance: Floats | None = None) -> Bytes:
    """Contiguous finite rows (rows, columns) to (rows, bytes of a row) of quantized format `name`.

    `importance`: (columns,), finite and not negative, the weight of a column's squared errors. Only its ratios within a
    block count, up to 2^60; where all of a block are 0 they are taken as equal.
    """
    rows, columns = values.shape
    fmt = FORMATS[name]
    padded = _at_least(values, fmt.block)
    out = np.empty((len(padded), fmt.row_bytes(columns)), np.uint8)
    scratch = np.empty(SCRATCH_BYTES, np.uint8)
    weights = None if importance is None else np.resize(_weights(importance, fmt.block), columns + GROUPS * 32)
    kernel = kernel_of(name, weighted=importance is not None)
    _call(
        kernel,
        ENCODE,
        padded.ctypes.data,
        out.ctypes.data,
        len(padded),
        columns,
        0 if weights is None else weights.ctypes.data,
        scratch.ctypes.data,
    )
    return out[:rows]


def _weights(importance: Floats, block: int) -> Floats:
    """The importances, the largest of each block in [0.5, 1), the others 0 or LEAST_WEIGHT at least; 1 if all are 0.

    The searches multiply sums of them. Factors are powers of two, which change no bit of what is computed.
    """
    blocks = importance.astype(np.float32, copy=False).reshape(-1, block)
    largest = blocks.max(axis=1, keepdims=True)
    _, exponents = np.frexp(largest)
    scaled = np.maximum(np.ldexp(blocks, -exponents), LEAST_WEIGHT)
    weights: Floats = np.where(blocks > 0, scaled, (largest == 0).astype(np.float32)).ravel()
    return weights


def _at_least(values: Floats, block: int) -> Floats:
    """The rows, and as many rows of zeros as are needed to have GROUPS groups; two file blocks always have them."""
    rows, columns = values.shape
    needed = GROUPS if block == 32 else 2
    missing = -(-needed * block // columns) - rows
    return np.ascontiguousarray(np.pad(values, ((0, missing), (0, 0)))) if missing > 0 else values


def widen(raw: Bytes, name: str) -> Floats:
    """Contiguous rows of F16 or BF16 bytes, at least 16 values, as float32."""
    count = raw.size // FORMATS[name].nbytes
    out = np.empty((len(raw), count // len(raw)), np.float32)
    _call(widener_of(name), WIDEN, raw.ctypes.data, out.ctypes.data, count)
    return out


def _call(kernel: Kernel, operation: Operation, *arguments: int) -> None:
    function = _PROTOTYPE(shared().load([kernel])[kernel])
    row = np.zeros(ROW_WORDS, np.int64)
    row[list(operation.slots)] = arguments
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    status = function(ctypes.addressof(result), ctypes.addressof(exception), row.ctypes.data, 0, 0)
    assert status == 0, f"{kernel} failed with status {status}"
