"""Tensors through a few threads, in slabs of rows: read, encoded, hashed and written at the same time, in order.

A few slabs are in memory at a time, whatever the model's size. Knows how slabs become bytes, and no file's beginning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_gemma.atomic_file import AtomicFile
from edge_gemma.errors import CheckpointError
from edge_gemma.progress import Progress

from . import blocks
from .checkpoint.source import SourceTensor
from .output.provenance import ErrorSum, Provenance, measure
from .output.writer import TensorInfo
from .plan import Importance, Plan, column_weights

SLAB_VALUES = 1 << 20  # 4 MiB as float32; with its source, temporaries and result about 16 MiB
VALUES_AT_ONCE = 1 << 22  # over all threads: many of them take smaller slabs
HASHED_LATER = 3  # slabs that may wait to be hashed


def write_tensors(
    file: AtomicFile,
    made: Plan,
    importance: Importance | None,
    progress: Progress | None,
    threads: int,
    provenance: Provenance,
) -> None:
    """Append the data of all tensors to `file`, encoded by `threads` threads, and tell `provenance` of it.
    `progress` counts bytes of the source.

    Raises CheckpointError for values that cannot be stored, OutputError when the file cannot be written.
    """
    total, done = sum(tensor.nbytes for tensor in made.source.tensors), 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
    with _Queue("hash source") as of_source, _Queue("hash result") as of_result:
        try:
            values = min(SLAB_VALUES, VALUES_AT_ONCE // threads)
            for slab, rows in _in_order(pool, _slabs(made, importance, values), ahead=threads + 1):
                of_source.put(provenance.add_source, rows.raw)
                of_result.put(provenance.add, slab.info.name, rows.data, rows.error)
                file.write(rows.data.data)
                if slab.stop == slab.tensor.rows:
                    file.write(bytes(slab.info.padded - slab.info.nbytes))
                done += (slab.stop - slab.start) * slab.tensor.row_bytes
                if progress is not None:
                    progress(done, total, slab.tensor.name)
        finally:
            pool.shutdown(cancel_futures=True)


class _Queue:
    """A thread that makes the calls it is given, in order. Context manager: leaving it waits for them."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[Future[Any]] = deque()

    def put(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Make this call later. Waits while HASHED_LATER calls are outstanding; raises what an earlier one raised."""
        self._waiting.append(self._pool.submit(call, *arguments))
        if len(self._waiting) > HASHED_LATER:
            self._waiting.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._waiting.popleft().result()


@dataclass(frozen=True)
class _Slab:
    """Rows [start, stop) of a tensor, to be written in the format of `info`, with weights for the columns or none."""

    tensor: SourceTensor
    info: TensorInfo
    weights: NDArray[np.float32] | None
    start: int
    stop: int


@dataclass(frozen=True)
class _Converted:
    """The rows of a slab as stored in the source, as written, and how far these are from those."""

    raw: NDArray[np.uint8]
    data: NDArray[np.uint8]
    error: ErrorSum


def _slabs(made: Plan, importance: Importance | None, values: int) -> Iterator[_Slab]:
    """All rows, in order, cut into slabs of at most so many values, or of one row; none is of two experts that have
    weights of their own."""
    for tensor, info in zip(made.source.tensors, made.infos, strict=True):
        weights = column_weights(made, importance, info)
        rows = tensor.rows if weights is None else tensor.rows // len(weights)
        for matrix, first in enumerate(range(0, tensor.rows, rows)):
            for start, stop in _stretches(first, first + rows, max(1, values // tensor.columns)):
                yield _Slab(tensor, info, None if weights is None else weights[matrix], start, stop)


def _stretches(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + step, stop)) for at in range(start, stop, step))


def _in_order(pool: ThreadPoolExecutor, slabs: Iterator[_Slab], ahead: int) -> Iterator[tuple[_Slab, _Converted]]:
    """Each slab with its bytes, in order; no more than `ahead` are worked on or waiting."""
    waiting: deque[tuple[_Slab, Future[_Converted]]] = deque()
    for slab in slabs:
        waiting.append((slab, pool.submit(_convert, slab)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _convert(slab: _Slab) -> _Converted:
    tensor, info = slab.tensor, slab.info
    raw = tensor.raw(slab.start, slab.stop)
    values = blocks.decode(raw, tensor.format.name)
    largest = blocks.magnitude(values)
    if not math.isfinite(largest):
        raise _not_finite(values, slab)
    if tensor.shift != 0.0:
        values = values + np.float32(tensor.shift)
    data = _encode(slab, raw, values, largest + abs(tensor.shift))
    return _Converted(raw, data, measure(values, data, info, slab.start))


def _encode(slab: _Slab, raw: NDArray[np.uint8], values: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    tensor, info = slab.tensor, slab.info
    if tensor.format == info.format and tensor.shift == 0.0:
        return np.ascontiguousarray(raw)  # a second rounding of the same blocks could only lose
    try:
        return blocks.encode(values, info.format.name, slab.weights, largest=largest)
    except blocks.OutOfRangeError as error:
        row = slab.start + error.row
        largest = float(np.abs(values[error.row]).max())
        where = f"{tensor.origin}: row {row}"
        raise CheckpointError(f"{where}: {largest:.6g} is too large for {info.format.name}") from None


def _not_finite(values: NDArray[np.float32], slab: _Slab) -> CheckpointError:
    finite = np.isfinite(values)
    row = int(np.argmin(finite.all(axis=1)))
    bad, column = int((~finite[row]).sum()), int(np.argmin(finite[row]))
    where = f"{slab.tensor.origin}: row {slab.start + row}"
    return CheckpointError(f"{where}: {bad} values are NaN or infinite, the first in column {column}")
