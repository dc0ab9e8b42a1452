"""The first run of a program: each matrix is mapped by all threads just before its product. Knows no model.

Not when a file is opened, nor all at once: what is resident is what a step has read so far, in the order in which it
reads, and a barrier still ends the step everywhere. Tables of which a step reads a few rows stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.program import Recorded
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.operations import Kernel

KERNEL = Kernel("ops.touch", "touch")
_MATRICES = {
    ops.MATMUL: (ops.MATMUL.slots.weights,),
    ops.GATED: (ops.GATED.slots.weights, ops.GATED.slots.up),
}
"""The words of an operation's row that have the addresses of its weights, in their order."""


def with_touches(table: NDArray[np.int64], recorded: Sequence[Recorded], kernel: int) -> NDArray[np.int64]:
    """A copy of `table`, int64 (operations, ROW_WORDS), with a touch of each matrix before its first product.

    `recorded`: what each row is. `kernel`: the address of KERNEL.
    """
    rows: list[NDArray[np.int64]] = []
    seen: set[int] = set()
    for row, what in zip(table, recorded, strict=True):
        for address, size in _matrices(row, what):
            if address not in seen:
                rows.append(_touch(address, size, kernel))
                seen.add(address)
        rows.append(row)
    return np.array(rows)


def _matrices(row: NDArray[np.int64], what: Recorded) -> Iterator[tuple[int, int]]:
    """Address and bytes of the weights of a product."""
    for slot, tensor in zip(_MATRICES.get(what.operation, ()), what.weights, strict=False):
        yield int(row[slot]), tensor.nbytes


def _touch(address: int, size: int, kernel: int) -> NDArray[np.int64]:
    row = np.zeros(ops.ROW_WORDS, np.int64)
    row[[ops.ONE, ops.FEW, ops.MANY]] = kernel
    row[list(ops.TOUCH.slots)] = address, size
    return row
