"""The order of rows in query and key heads of GGUF files for llama, where what rotates as a pair is neighbours.

llama.cpp's converter makes it of a checkpoint's, where row i of a head and row i + d / 2 are a pair. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Read = Callable[[int, int], NDArray[Any]]
"""read(start, stop): some rows of a matrix."""


def in_pairs(read: Read, head_dim: int) -> Read:
    """The rows that `read` reads in a checkpoint's order, in that of GGUF files. Whole heads are read at a time."""

    def rows(start: int, stop: int) -> NDArray[Any]:
        first, end = start // head_dim * head_dim, -(-stop // head_dim) * head_dim
        wanted: NDArray[Any] = read(first, end)[_in_checkpoint(np.arange(start, stop), head_dim) - first]
        return wanted

    return rows


def vector_in_pairs(read: Read, head_dim: int, value_bytes: int) -> Read:
    """The same for a vector, which is one row of bytes, so many for each value."""

    def row(start: int, stop: int) -> NDArray[Any]:
        raw = read(start, stop)
        values = raw.reshape(len(raw), -1, value_bytes)
        return values[:, _in_checkpoint(np.arange(values.shape[1]), head_dim)].reshape(raw.shape)

    return row


def _in_checkpoint(rows: NDArray[np.intp], head_dim: int) -> NDArray[np.intp]:
    """The numbers that rows of a GGUF file have in a checkpoint."""
    return rows // head_dim * head_dim + rows % 2 * (head_dim // 2) + rows % head_dim // 2
