"""What the kernels are told of one step: tokens, positions, tiles of queries, rotation angles. Knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.buffers import aligned_bytes
from edge_gemma.graph.cache import PageTable
from edge_gemma.graph.states import Rope
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import QUERY_ROWS, whole_head


@dataclass(frozen=True)
class SequenceRows:
    """The next `tokens`, int64 (T,), of one sequence, from position `table.length` on.

    Logits are wanted after the last `wanted` of them.
    """

    table: PageTable
    tokens: NDArray[np.int64]
    wanted: int = 0


@dataclass(frozen=True)
class Segment:
    """Tokens start..end-1 of `rows`, one after the other in a step."""

    rows: SequenceRows
    start: int
    end: int


def segments_of(batch: Sequence[SequenceRows]) -> list[Segment]:
    """All rows whose logits are not wanted, then those whose are, which so are one run; each in the batch's order.

    A segment is as long as it can be: a tile's rows share the loads of their keys.
    """
    split = [(rows, len(rows.tokens) - rows.wanted) for rows in batch]
    first = [Segment(rows, 0, middle) for rows, middle in split if middle]
    then = [Segment(rows, middle, len(rows.tokens)) for rows, middle in split if rows.wanted]
    if first and then and first[-1].rows is then[0].rows:
        return [*first[:-1], Segment(then[0].rows, 0, then[0].end), *then[1:]]
    return first + then


class Step:
    """The words of a step, and the arrays they point to, for at most `max_rows` rows of a program that has `ropes`."""

    def __init__(self, ropes: Sequence[Rope], max_rows: int, threads: int, scratch_bytes: int) -> None:
        self.words = np.frombuffer(aligned_bytes(8 * ops.STEP_WORDS), np.int64)
        self._tokens, self._positions, self._tables, self._lasts = (np.zeros(max_rows, np.int64) for _ in range(4))
        self._tiles = np.zeros((max_rows, 2), np.int64)
        self._angles = [Angles(rope, max_rows) for rope in ropes]
        self._scratch = aligned_bytes(threads * scratch_bytes)
        arrays: dict[int, NDArray[Any]] = {
            ops.STEP_TOKENS: self._tokens,
            ops.STEP_POSITIONS: self._positions,
            ops.STEP_TABLES: self._tables,
            ops.STEP_LASTS: self._lasts,
            ops.STEP_TILES: self._tiles,
            ops.STEP_SCRATCH: self._scratch,
        }
        arrays |= {ops.STEP_ANGLES + i: angles.table for i, angles in enumerate(self._angles)}
        for word, array in arrays.items():
            self.words[word] = array.ctypes.data
        self.words[ops.STEP_SCRATCH_BYTES] = scratch_bytes
        self.scratch_bytes = self._scratch.nbytes

    def prepare(self, batch: Sequence[SequenceRows]) -> None:
        """The rows of `batch`, at most `max_rows`, by `segments_of`. The tables must live until the step is run."""
        row, tiles = 0, []
        for segment in segments_of(batch):
            end = row + segment.end - segment.start
            table = segment.rows.table
            self._tokens[row:end] = segment.rows.tokens[segment.start : segment.end]
            self._positions[row:end] = np.arange(table.length + segment.start, table.length + segment.end)
            self._tables[row:end] = table.address
            self._lasts[row:end] = table.length + len(segment.rows.tokens) - 1
            tiles += [(first, min(QUERY_ROWS, end - first)) for first in range(row, end, QUERY_ROWS)]
            row = end
        self._tiles[: len(tiles)] = tiles
        self.words[ops.STEP_ROWS], self.words[ops.STEP_N_TILES] = row, len(tiles)
        for angles in self._angles:
            angles.fill(self._positions[:row])

    @property
    def cancelled(self) -> bool:
        """Whether a running program has been asked to stop."""
        return bool(self.words[ops.STEP_CANCEL])

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self.words[ops.STEP_CANCEL] = int(value)


class Angles:
    """Cosines and sines of the rotary embedding, float32 (rows, dims): | cos of each pair | sin of each pair |.

    Where neighbours are pairs, (rows, 2 * whole_head(dims)): | cos of each dimension's pair | sin, of even dimensions
    negated |, and 0 for those behind a head's own.
    """

    def __init__(self, rope: Rope, max_rows: int) -> None:
        exponents = np.arange(0, rope.dims, 2) / rope.dims
        divisors = rope.scale * np.array(rope.factors or 1.0)
        self._frequencies = rope.base**-exponents / divisors  # (dims / 2,)
        self._neighbours = rope.neighbours
        self.table = np.zeros((max_rows, 2 * whole_head(rope.dims) if rope.neighbours else rope.dims), np.float32)

    def fill(self, positions: NDArray[np.int64]) -> None:
        """Rows of the table for `positions`, computed in float64."""
        angles = positions[:, None] * self._frequencies
        rows, half = self.table[: len(positions)], self.table.shape[1] // 2
        cosines, sines, pairs = rows[:, :half], rows[:, half:], angles.shape[1]
        if self._neighbours:
            cosines[:, 0 : 2 * pairs : 2] = cosines[:, 1 : 2 * pairs : 2] = np.cos(angles)
            sines[:, 1 : 2 * pairs : 2] = np.sin(angles)
            sines[:, 0 : 2 * pairs : 2] = -sines[:, 1 : 2 * pairs : 2]
        else:
            cosines[:], sines[:] = np.cos(angles), np.sin(angles)
