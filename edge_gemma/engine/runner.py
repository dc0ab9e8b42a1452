"""A model ready to run: weights in the mapping, recorded program, cache, threads. Knows no text and no sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.memory_plan import scratch_bytes
from edge_gemma.errors import Cancelled, ContextOverflowError, ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.cache import KVCache
from edge_gemma.graph.program import Program, words_of
from edge_gemma.graph.step import Step
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.operations import Kernel
from edge_gemma.kernels.threads.pool import KERNELS, ThreadPool
from edge_gemma.kernels.tuning.choices import tuned_choices
from edge_gemma.kernels.tuning.tuner import Matrix, tune_once
from edge_gemma.memory import memory_for, require_memory
from edge_gemma.models.config import GemmaConfig
from edge_gemma.models.gemma import record, record_logits
from edge_gemma.models.weights import Weights

HEAD_STEP = 32
"""The kernels rotate and cache heads in steps of so many dimensions."""

Progress = Callable[[int, int, str], None]
ChunkProgress = Callable[[int, int], None]


def require_head_step(file: GgufFile, config: GemmaConfig) -> None:
    """Raise ModelFormatError for heads that the kernels do not take."""
    if config.head_dim % HEAD_STEP:
        key = f"{config.architecture}.attention.key_length"
        raise ModelFormatError(f"{config.head_dim} is no multiple of {HEAD_STEP}", field=key, path=str(file.path))


def product_matrices(weights: Weights) -> list[Matrix]:
    """The quantized matrices of a model, for the tuner."""
    return [Matrix(t.format.name, t.row_bytes, t.nbytes) for t in weights.tensors() if not t.format.is_float]


class Engine:
    """Runs steps of one sequence, from an empty cache at position 0. One call at a time.

    context: positions the cache holds; chunk: most rows of a step; kv_type: the cache's elements.
    `progress(done, total, name)` reports kernels being compiled, on the first run on a machine.
    """

    def __init__(
        self,
        file: GgufFile,
        config: GemmaConfig,
        weights: Weights,
        *,
        context: int,
        chunk: int,
        threads: int,
        kv_type: Literal["f16", "f32"],
        progress: Progress | None = None,
    ) -> None:
        require_head_step(file, config)
        self.config, self.context, self.chunk, self.threads = config, context, chunk, threads
        self.position = 0
        self.sequence = 0
        """Another number for each sequence: whoever went away from one can see whether it is still there."""
        self._unwanted: Callable[[], bool] = lambda: False
        self._file = file
        self._cache = KVCache(config.states, context, chunk, kv_type)
        tune_once(product_matrices(weights), threads, self._planned(weights, kv_type), progress)
        program = Program(chunk, lambda tensor: file.data(tensor).ctypes.data, kv_type, choices=tuned_choices())
        self._x = record(program, config, weights, self._cache.layers)
        self._body = len(program)
        last = program.outside(self._x.name, self._x.columns, self._x.stride)
        logits = program.outside("logits", config.vocab_size, 4 * config.vocab_size)
        record_logits(program, config, weights, last, logits)
        self._program = program
        self._table = program.table(shared().load([*program.kernels(), *KERNELS], progress))
        self._words_of_last, self._words_of_logits = words_of(self._table, last), words_of(self._table, logits)
        self._step = Step(program.ropes, chunk, threads, scratch_bytes(config, chunk))
        self._pool = ThreadPool(threads)

    def _planned(self, weights: Weights, kv_type: str) -> Iterator[Kernel]:
        """The kernels that are needed anyway. They are recorded only if somebody asks, 5 ms."""
        planned = Program(self.chunk, lambda _: 0, kv_type, choices=tuned_choices(), allocate=False)
        record(planned, self.config, weights, self._cache.layers)
        yield from (*planned.kernels(), *KERNELS)

    def close(self) -> None:
        """End the threads. The engine must not be used afterwards."""
        self._pool.close()

    def cancel(self) -> None:
        """Make a running `prefill`, `decode` or `logits` raise Cancelled soon. From any thread.

        The cache then holds what was there before the step.
        """
        self._step.cancelled = True

    def ready(self, unwanted: Callable[[], bool]) -> None:
        """Forget a cancel that came too late. Steps raise Cancelled, too, before which `unwanted` says so."""
        self._step.cancelled = False
        self._unwanted = unwanted

    def reset(self) -> None:
        """Begin another sequence."""
        self.position = 0
        self.sequence += 1

    def prefill(self, tokens: Sequence[int], progress: ChunkProgress | None = None) -> NDArray[np.float32]:
        """Append `tokens`, chunk by chunk; the last one's logits, (V,)."""
        ids = self._begin(tokens)
        for start in range(0, len(ids), self.chunk):
            if progress:
                progress(start, len(ids))
            part = ids[start : start + self.chunk]
            self._run(part, self._table[: self._body])
        logits = self._new_logits(1).reshape(-1)
        self._head(len(part) - 1, logits)
        if progress:
            progress(len(ids), len(ids))
        return logits

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; its logits, (V,)."""
        logits = self._new_logits(1).reshape(-1)
        self._point_head(0, logits)
        self._run(self._begin([token]), self._table)
        return logits

    def logits(self, tokens: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]:
        """Append `tokens`; the logits of each, (T, V)."""
        ids, size = self._begin(tokens), chunk or self.chunk
        if not 1 <= size <= self.chunk:
            raise ValueError(f"chunk: {size} is outside 1..{self.chunk}, the model's chunk")
        logits = self._new_logits(len(ids))
        for start in range(0, len(ids), size):
            self._point_head(0, logits[start:])
            self._run(ids[start : start + size], self._table)
        return logits

    def check(self, tokens: Sequence[int], name: str = "tokens") -> NDArray[np.int64]:
        """The ids as an array, if a sequence may begin with them. Raises ValueError, ContextOverflowError."""
        return self._checked(tokens, 0, name)

    def _checked(self, tokens: Sequence[int], position: int, name: str = "tokens") -> NDArray[np.int64]:
        ids = np.asarray(tokens)
        if not len(ids) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"{name}: there must be at least one token, and all must be integers")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"{name}: ids must be in 0..{self.config.vocab_size - 1}")
        if position + len(ids) > self.context:
            count = position + len(ids)
            raise ContextOverflowError(
                f"{name}: {count} tokens do not fit the context of {self.context}; open with a larger one"
            )
        return ids.astype(np.int64)

    def _begin(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        ids = self._checked(tokens, self.position)
        self._file.check_unchanged()
        return ids

    def _new_logits(self, rows: int) -> NDArray[np.float32]:
        """Memory for logits of `rows` positions, (rows, V). Raises MemoryBudgetError."""
        what, size = f"logits for {rows} positions", 4 * rows * self.config.vocab_size
        advice = "ask for fewer at a time (logits_chunks)" if rows > 1 else "close other programs or models"
        require_memory(what, size, advice)
        with memory_for(what, size, advice):
            return np.empty((rows, self.config.vocab_size), np.float32)

    def _run(self, ids: NDArray[np.int64], table: NDArray[np.int64]) -> None:
        self._step.prepare(ids, self.position)
        self._execute(table)
        self.position += len(ids)

    def _head(self, row: int, logits: NDArray[np.float32]) -> None:
        """Logits of one row of the last step."""
        self._point_head(row, logits)
        self._step.words[ops.STEP_ROWS] = 1
        self._execute(self._table[self._body :])

    def _point_head(self, row: int, logits: NDArray[np.float32]) -> None:
        """Have the logits' operations read from row `row` of the last layer's output on, and write to `logits`."""
        self._table[self._words_of_last] = self._x.address + row * self._x.stride
        self._table[self._words_of_logits] = logits.ctypes.data

    def _execute(self, table: NDArray[np.int64]) -> None:
        if self._unwanted() or not self._pool.run(table, self._step.words):
            raise Cancelled
