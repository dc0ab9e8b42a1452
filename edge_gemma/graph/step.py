"""What the kernels are told of one step: tokens, positions, tiles of queries, rotation angles. Knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.program import aligned_bytes
from edge_gemma.graph.states import Rope
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import QUERY_ROWS


@dataclass(frozen=True)
class Rows:
    """The next rows of a sequence: `tokens`, int64 (T,), at positions table.length, table.length + 1, ...

    The logits of the last `wanted` of them are wanted.
    """

    table: Any
    tokens: NDArray[np.int64]
    wanted: int


class Step:
    """The words of a step, and the arrays they point to, for at most `max_rows` rows of a program that has `ropes`."""

    def __init__(self, ropes: Sequence[Rope], max_rows: int, threads: int, scratch_bytes: int) -> None:
        self.words = np.frombuffer(aligned_bytes(8 * ops.STEP_WORDS), np.int64)
        self._tokens, self._positions, self._sequences = (np.zeros(max_rows, np.int64) for _ in range(3))
        self._tiles = np.zeros((max_rows, 2), np.int64)
        self._angles = [Angles(rope, max_rows) for rope in ropes]
        self._scratch = aligned_bytes(threads * scratch_bytes)
        for word, array in (
            (ops.STEP_TOKENS, self._tokens),
            (ops.STEP_POSITIONS, self._positions),
            (ops.STEP_SEQUENCES, self._sequences),
            (ops.STEP_TILES, self._tiles),
            *((ops.STEP_ANGLES + i, angles.table) for i, angles in enumerate(self._angles)),
            (ops.STEP_SCRATCH, self._scratch),
        ):
            self.words[word] = array.ctypes.data
        self.words[ops.STEP_SCRATCH_BYTES] = scratch_bytes
        self.scratch_bytes = self._scratch.nbytes

    def prepare(self, tokens: NDArray[np.int64], position: int) -> None:
        """Rows of one sequence, `tokens` (T,), at positions position, position + 1, ..."""
        rows = len(tokens)
        self._sequences[:rows] = 0
        self._fill(tokens, np.arange(position, position + rows), np.arange(0, rows, QUERY_ROWS))

    def prepare_each(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """A row of each sequence 0, 1, ...: its token and its position, both (T,)."""
        sequences = np.arange(len(tokens))
        self._sequences[: len(tokens)] = sequences
        self._fill(tokens, positions, sequences)

    def _fill(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """`starts`: the first rows of the tiles, each of neighbours in one sequence."""
        rows = len(tokens)
        self._tokens[:rows], self._positions[:rows] = tokens, positions
        self._tiles[: len(starts), 0] = starts
        self._tiles[: len(starts), 1] = np.diff(starts, append=rows)
        self.words[ops.STEP_ROWS], self.words[ops.STEP_N_TILES] = rows, len(starts)
        for angles in self._angles:
            angles.fill(positions)

    @property
    def cancelled(self) -> bool:
        """Whether a running program has been asked to stop."""
        return bool(self.words[ops.STEP_CANCEL])

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self.words[ops.STEP_CANCEL] = int(value)


class Angles:
    """Cosines and sines of the rotary embedding, float32 (rows, dims): | cos of each pair | sin of each pair |."""

    def __init__(self, rope: Rope, max_rows: int) -> None:
        exponents = np.arange(0, rope.dims, 2) / rope.dims
        self._frequencies = rope.base**-exponents / rope.scale  # (dims / 2,)
        self.table = np.zeros((max_rows, rope.dims), np.float32)

    def fill(self, positions: NDArray[np.int64]) -> None:
        """Rows of the table for `positions`, computed in float64."""
        angles = positions[:, None] * self._frequencies
        half = angles.shape[1]
        self.table[: len(positions), :half] = np.cos(angles)
        self.table[: len(positions), half:] = np.sin(angles)
