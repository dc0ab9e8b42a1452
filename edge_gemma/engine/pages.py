"""What the engine wants of a model and its memory: a few methods, so that it can be tested without either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.step import SequenceRows

T = TypeVar("T", bound="Table")


class Table(Protocol):
    """The pages of a sequence; see `graph.cache.PageTable`."""

    @property
    def length(self) -> int:
        """Positions whose keys and values are there."""

    def fork(self: T) -> T:
        """Another table of the same pages."""

    def can_truncate(self, length: int) -> bool:
        """Whether a sequence may go on at `length`."""

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""

    def release(self) -> None:
        """Give the pages back. Idempotent."""


class Pages(Protocol):
    """What the engine wants of the memory for keys and values."""

    @property
    def bytes_in_use(self) -> int:
        """Of all pages that somebody holds."""

    def bytes_only_in(self, tables: Sequence[Any]) -> int:
        """Of pages that these tables hold, and nobody else."""


class Runner(Protocol):
    """What the engine wants of a model; see `runner.Runner`."""

    @property
    def chunk(self) -> int:
        """Most rows of a step."""

    @property
    def context(self) -> int:
        """Most positions of a sequence."""

    @property
    def pool(self) -> Pages:
        """Where its tables' pages come from."""

    @property
    def maxima(self) -> NDArray[np.float32] | None:
        """Of groups of the last step's logits, (wanted, groups), if it finds them; see `sampler`."""

    def new_table(self) -> Table:
        """The table of an empty sequence."""

    def run(self, batch: Sequence[SequenceRows]) -> NDArray[np.float32]:
        """Compute rows; the logits that are wanted of them, (wanted, V), until the next call."""

    def cancel(self) -> None:
        """End a step that is running."""

    def close(self) -> None:
        """Free everything."""
