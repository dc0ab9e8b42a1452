"""What the converter needs of a checkpoint, whichever kind it is: metadata, and tensors as slabs of rows.

Knows no file format (`hf_source.py`, `gguf_source.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import BlockFormat
from edge_gemma.gguf.values import Metadata
from edge_gemma.models.architecture import Config


@dataclass(frozen=True)
class SourceTensor:
    """A tensor under its GGUF name. `shape` is row-major; a vector is one row."""

    name: str
    origin: str  # file and tensor, for messages
    shape: tuple[int, ...]
    format: BlockFormat
    raw: Callable[[int, int], NDArray[np.uint8]]
    """raw(start, stop): the stored bytes of those rows, (rows, bytes of a row)."""
    shift: float = 0.0
    """Added to every value."""
    merged: BlockFormat | None = None
    """The format in the file, where an adapter was added to its values; `format` is that of the sum then."""

    @property
    def columns(self) -> int:
        """Values of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows; a vector is one."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Stored bytes of a row."""
        return self.format.row_bytes(self.columns)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the tensor."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Source:
    """A checkpoint: metadata of the GGUF file to be, its tensors in file order, the files read, and what to tell.

    config: of the model, which has as many rows of the embedding as there are tokens.
    """

    config: Config
    metadata: Metadata
    tensors: list[SourceTensor]
    files: list[Path]
    notices: list[str]
