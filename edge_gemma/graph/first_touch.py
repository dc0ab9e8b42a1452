"""The first run of a program: each matrix is mapped by all threads just before its product. Knows no model.

Not when a file is opened, nor all at once: what is resident is what a step has read so far, in the order in which it
reads, and a barrier still ends the step everywhere. Tables of which a step reads a few rows stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.recorder import Recorded
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.operations import Kernel

TOUCH = Kernel("ops.touch", "touch")
_MATRICES = {
    ops.MATMUL: (ops.MATMUL.slots.weights,),
    ops.GATED: (ops.GATED.slots.weights, ops.GATED.slots.up),
}
"""The words of an operation's row that have the addresses of its weights, in their order. Not those of experts, of
which a step reads a few."""


class FirstTouch:
    """What of a model has been read. `kernel`: the address of TOUCH."""

    def __init__(self, kernel: int) -> None:
        self._kernel = kernel
        self._tables: set[tuple[int, int]] = set()
        self._matrices: set[int] = set()

    def added_to(self, table: NDArray[np.int64], recorded: Sequence[Recorded]) -> NDArray[np.int64]:
        """`table`, int64 (operations, ROW_WORDS), and in a copy, if need be, a touch before what was not read yet.

        `recorded`: what each row is.
        """
        if _key(table) in self._tables:
            return table
        rows: list[NDArray[np.int64]] = []
        seen = set(self._matrices)
        for row, what in zip(table, recorded, strict=True):
            for address, size in _matrices(row, what):
                if address not in seen:
                    rows.append(_touch(address, size, self._kernel))
                    seen.add(address)
            rows.append(row)
        return np.array(rows, np.int64).reshape(-1, ops.ROW_WORDS)

    def note(self, table: NDArray[np.int64], recorded: Sequence[Recorded]) -> None:
        """`table` has been run to its end, for the first time."""
        self._tables.add(_key(table))
        parts = zip(table, recorded, strict=True)
        self._matrices |= {address for row, what in parts for address, _ in _matrices(row, what)}


def _key(table: NDArray[np.int64]) -> tuple[int, int]:
    return table.ctypes.data, len(table)


def _matrices(row: NDArray[np.int64], what: Recorded) -> Iterator[tuple[int, int]]:
    """Address and bytes of the weights of a product."""
    for slot, tensor in zip(_MATRICES.get(what.operation, ()), what.weights, strict=False):
        yield int(row[slot]), tensor.nbytes


def _touch(address: int, size: int, kernel: int) -> NDArray[np.int64]:
    row = np.zeros(ops.ROW_WORDS, np.int64)
    row[ops.KERNEL] = kernel
    row[list(ops.TOUCH.slots)] = address, size
    return row
