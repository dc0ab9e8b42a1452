"""float32 rows -> the bytes of a block format, and back. Knows no tensor names and no file.

Without importance the bytes of Q4_0 and Q8_0 equal `gguf.quants.quantize`, the reference, in every block whose scale
has a finite reciprocal; but Q4_0 finds the grid of weights that were trained for it, which the reference may miss.
Where there is no reciprocal (largest magnitude under 1e-37) the reference casts infinities to integers, which each CPU
does in its own way; here such a block is one of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from edge_gemma.kernels.encode import rows
from edge_gemma.progress import Progress

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_HALF = 65504.0
_LIMITS = {
    "Q4_0": 8 * _HALF,
    "Q4_1": _HALF,
    "Q5_0": 15 * _HALF,
    "Q5_1": _HALF,
    "Q8_0": 127 * _HALF,
    "Q2_K": 15 * _HALF,
    "Q3_K": 31 * 3 * _HALF,
    "Q4_K": 63 * _HALF,
    "Q5_K": 63 * _HALF,
    "Q6_K": 127 * 31 * _HALF,
    "IQ4_NL": 113 * _HALF,
    "IQ4_XS": 31 * 113 * _HALF,
}
"""The largest magnitude whose scales, or minima, are surely in the range of float16."""


class OutOfRangeError(ValueError):
    """A value, or the scale of its block, is too large for the format. `row` is its row in the array."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(f"row {row} is out of range")


def encode(values: Floats, name: str, importance: Floats | None = None, *, largest: float | None = None) -> Bytes:
    """Rows of `values`, (rows, columns) and finite, in format `name`: (rows, bytes of a row).

    `importance`, (columns,): the weight of each column's squared errors; it does not matter to float formats.
    `largest`: what `magnitude` says of the values, or more, if known.

    Raises OutOfRangeError where float16 or bfloat16 would overflow, KeyError for a format that is not written.
    """
    values = np.ascontiguousarray(values)
    if name in _FLOATS:
        return _FLOATS[name](values)
    if (magnitude(values) if largest is None else largest) > _LIMITS[name]:
        raise OutOfRangeError(int(np.argmax(np.abs(values).max(axis=1))))
    return rows.encode(values, name, importance)


def decode(raw: Bytes, name: str) -> Floats:
    """float32 values of rows of any format, (rows, bytes of a row) -> (rows, columns); a view for F32."""
    if name in _FLOATS:
        return _widened(raw, name)
    from gguf import GGMLQuantizationType, quants

    # One long row: the package works on 16 rows at a time, and short rows would drown in its Python.
    return np.asarray(quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[name])).reshape(len(raw), -1)


def _widened(raw: Bytes, name: str) -> Floats:
    if name == "F32":
        return raw.view("<f4")
    if raw.size >= 2 * rows.GROUPS:
        return rows.widen(np.ascontiguousarray(raw), name)
    if name == "F16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def magnitude(values: Floats) -> float:
    """The largest one of any value; NaN if there is a NaN. Takes no memory."""
    return max(float(values.max()), -float(values.min()))


def can_encode(name: str) -> bool:
    """Whether `encode` writes this format."""
    return name in _FLOATS or name in rows.ENCODED


def prepare(names: Iterable[str], weighted: Iterable[str], sources: Iterable[str], progress: Progress | None) -> None:
    """Load the kernels that write `names`, `weighted` ones with importance too, and those that read `sources`.

    What is in no cache yet is compiled, with `progress(done, total, name)`.
    """
    wanted = [rows.kernel_of(name, weighted=False) for name in names if name not in _FLOATS]
    wanted += [rows.kernel_of(name, weighted=True) for name in weighted if name not in _FLOATS]
    rows.prepare([*wanted, *(rows.widener_of(name) for name in sources if name in ("F16", "BF16"))], progress)


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


_FLOATS: dict[str, Callable[[Floats], Bytes]] = {"F32": _f32, "F16": _f16, "BF16": _bf16}
