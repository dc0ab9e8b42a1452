"""A model without kernels whose logits depend on the whole text: who mixes up rows or positions gets others."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import Cancelled, MemoryBudgetError
from edge_gemma.graph.step import SequenceRows

VOCABULARY = 40


def logits_after(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Any logits, but the same for the same text."""
    seed = zlib.crc32(np.asarray(tokens, np.int64).tobytes())
    return np.random.Generator(np.random.SFC64(seed)).normal(0, 3, VOCABULARY).astype(np.float32)


class FakePool:
    def __init__(self) -> None:
        self.bytes_in_use = 0
        self.tables = 0

    def bytes_only_in(self, tables: Sequence[FakeTable]) -> int:
        return sum(table.length for table in tables)


class FakeTable:
    """`window`: how far back from its greatest length a table can be continued; None: anywhere."""

    def __init__(self, pool: FakePool, window: int | None, tokens: list[int], furthest: int) -> None:
        self.pool, self.window, self.tokens, self.furthest = pool, window, tokens, furthest
        self.released = False
        pool.tables += 1
        pool.bytes_in_use += len(tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def append(self, tokens: list[int]) -> None:
        assert not self.released
        self.tokens += tokens
        self.furthest = max(self.furthest, len(self.tokens))
        self.pool.bytes_in_use += len(tokens)

    def fork(self) -> FakeTable:
        assert not self.released
        return FakeTable(self.pool, self.window, list(self.tokens), self.furthest)

    def can_truncate(self, length: int) -> bool:
        return length <= self.length and (self.window is None or length >= self.furthest - self.window or length == 0)

    def truncate(self, length: int) -> None:
        assert self.can_truncate(length), (length, self.length, self.furthest)
        self.pool.bytes_in_use -= len(self.tokens) - length
        del self.tokens[length:]

    def release(self) -> None:
        if not self.released:
            self.released = True
            self.pool.tables -= 1
            self.pool.bytes_in_use -= len(self.tokens)


class FakeRunner:
    """`limit`: positions that all tables together may have. on_step: called in every step, before its end."""

    def __init__(self, chunk: int = 16, window: int | None = None, limit: int = 10**9) -> None:
        self.chunk, self.window, self.limit = chunk, window, limit
        self.pool = FakePool()
        self.maxima = None
        self.context = 10**6
        self.steps: list[list[int]] = []
        self.closed = False
        self.on_step: Callable[[list[SequenceRows]], None] = lambda _rows: None
        self._cancelled = False

    def new_table(self) -> FakeTable:
        return FakeTable(self.pool, self.window, [], 0)

    def run(self, batch: Sequence[SequenceRows]) -> NDArray[np.float32]:
        assert not self.closed
        assert 0 < sum(len(rows.tokens) for rows in batch) <= self.chunk
        assert len({id(rows.table) for rows in batch}) == len(batch)
        self._cancelled = False
        if self.pool.bytes_in_use + sum(len(rows.tokens) for rows in batch) > self.limit:
            raise MemoryBudgetError("no more pages")
        self.on_step(list(batch))
        if self._cancelled:
            raise Cancelled
        wanted = []
        for rows in batch:
            table: Any = rows.table
            first = table.length + len(rows.tokens) - rows.wanted
            table.append(rows.tokens.tolist())
            wanted += [logits_after(table.tokens[: i + 1]) for i in range(first, table.length)]
        self.steps.append([len(rows.tokens) for rows in batch])
        return np.array(wanted, np.float32).reshape(len(wanted), VOCABULARY)

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self.closed = True


def slow(seconds: float) -> Callable[[list[SequenceRows]], None]:
    return lambda _rows: time.sleep(seconds)
