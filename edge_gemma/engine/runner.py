"""`Runner`: a model ready to run, with weights in the mapping, recorded programs, cache and threads.

The only place that opens one. Knows no text and no sampling, and not what the rows of a step are for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_gemma.cores import available_memory, default_threads
from edge_gemma.engine.memory_plan import (
    DEFAULT_CONTEXT,
    KvType,
    default_chunk,
    require_budget,
    scratch_bytes,
    sequences_of_texts,
    usual_context,
)
from edge_gemma.engine.recording import Recording
from edge_gemma.errors import Cancelled, ContextOverflowError, ModelFormatError
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.graph.cache import PagePool, PageTable
from edge_gemma.graph.experts import ExpertActivationStats
from edge_gemma.graph.first_touch import TOUCH, FirstTouch
from edge_gemma.graph.recorder import Recorded
from edge_gemma.graph.step import SequenceRows, Step
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.layout import logit_groups
from edge_gemma.kernels.operations import Kernel, Regime
from edge_gemma.kernels.threads.pool import KERNELS, ThreadPool
from edge_gemma.kernels.tuning.choices import tuned_choices
from edge_gemma.kernels.tuning.tuner import Matrix, tune_once
from edge_gemma.memory import memory_for, require_memory
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.progress import Progress

HEAD_STEP = 32
"""The kernels rotate and cache heads in steps of so many dimensions."""

Logits = NDArray[np.float32]


def require_head_step(file: GgufFile, config: Config) -> None:
    """Raise ModelFormatError for heads that the kernels do not take."""
    for state in config.states:
        if state.head_dim % HEAD_STEP:
            key = f"{config.architecture}.attention.key_length"
            raise ModelFormatError(f"{state.head_dim} is no multiple of {HEAD_STEP}", field=key, path=str(file.path))


def warn_of_missing_layers(file: GgufFile, config: Config) -> None:
    """Of an encoder whose file was made without its dense layers."""
    if config.embedding is not None and not config.embedding.dense:
        warnings.warn(
            f"{file.path}: has no dense layers behind the pooling, which the model was published with: its embeddings "
            "are not those of other programs; convert it from the original folder",
            stacklevel=4,
        )


def product_matrices(weights: Weights) -> list[Matrix]:
    """The quantized matrices of a model, for the tuner."""
    return [Matrix(t.format.name, t.row_bytes, t.nbytes) for t in weights.tensors() if not t.format.is_float]


class Runner:
    """Runs steps whose rows may belong to several sequences. One thread at a time, but for `cancel` and `close`.

    file, config, weights: what was opened; threads: that take part at most; chunk: most rows of a step; context: most
    positions of a sequence; kv_type: the cache's elements; plan: the memory of all that; pool: of the cache's pages.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int | None = None,
        threads: int | None = None,
        chunk: int | None = None,
        kv_type: KvType = "f16",
        load: Literal["map", "copy"] = "map",
        sequences: int = 1,
        cache_limit: int | None = None,
        default_context: int = DEFAULT_CONTEXT,
        observe: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Open the model at `path`.

        context: by default what the model was trained for, at most `default_context`. sequences: so many of the whole
        context are planned for, and must fit the memory there is. cache_limit: bytes of pages in use; by default what
        is planned. observe: have each step write `activation_stats`; there are no logits then.
        `progress(done, total, name)` reports kernels being compiled, on the first run on a machine.

        Raises ModelFormatError, ContextOverflowError, MemoryBudgetError, ThreadError, OSError.
        """
        self.file = GgufFile.open(path, load=load)
        try:
            self.config = read_config(self.file)
            self.weights = Weights.bind(self.file, self.config)
            require_head_step(self.file, self.config)
            warn_of_missing_layers(self.file, self.config)
            self.context = context or usual_context(self.config, default_context)
            self.threads, self.chunk = threads or default_threads(), chunk or default_chunk(self.config, self.context)
            if self.config.embedding is not None:
                self.chunk, sequences = max(self.chunk, self.context), sequences_of_texts(self.context)
            self.kv_type = kv_type
            self.plan = require_budget(
                self.config,
                self.weights,
                self.context,
                available_memory(),
                chunk=self.chunk,
                kv_type=kv_type,
                threads=self.threads,
                sequences=sequences,
            )
            limit = self.plan.kv_cache if cache_limit is None else cache_limit
            self.pool = PagePool(self.config.states, kv_type, limit)
            tune_once(product_matrices(self.weights), self.threads, self._planned(), progress)
            self._logits = self.new_logits(0 if self.config.embedding else sequences)
            self._start(observe, progress)
        except BaseException:
            self.file.close()
            raise

    def _planned(self) -> Iterator[Kernel]:
        """The kernels that are needed anyway. They are recorded only if somebody asks, 15 ms."""
        for recording in self._record(lambda _tensor: 0, allocate=False):
            yield from recording.program.kernels()
        yield from (*KERNELS, TOUCH)

    def _record(self, address_of: Callable[[Tensor], int], **options: Any) -> list[Recording]:
        """Of each regime that there are steps of."""
        model, options = (self.config, self.weights, self.context), options | {"choices": tuned_choices()}
        regimes = Regime.up_to(self.chunk)
        return [Recording(regime, self.chunk, address_of, self.kv_type, *model, **options) for regime in regimes]

    def _start(self, observe: bool, progress: Progress | None) -> None:
        """Programs, step and threads."""
        recordings = self._record(lambda tensor: self.file.data(tensor).ctypes.data, observe=observe)
        kernels = {kernel for recording in recordings for kernel in recording.program.kernels()}
        addresses = shared().load([*kernels, *KERNELS, TOUCH], progress)
        self._first_touch = FirstTouch(addresses[TOUCH])
        for recording in recordings:
            recording.link(addresses)
        self._observing = observe
        self._recordings = {recording.program.regime: recording for recording in recordings}
        self._latest = recordings[-1]
        ropes = recordings[-1].program.ropes
        self._step = Step(ropes, self.chunk, self.threads, scratch_bytes(self.config, self.chunk))
        self.maxima = np.empty((0, logit_groups(self.config.vocab_size)), np.float32)
        """Of each LOGIT_GROUP neighbours of the last step's logits, float32 (wanted, groups), for samplers."""
        self._threads = ThreadPool(self.threads)

    @property
    def activation_stats(self) -> dict[str, NDArray[np.float32]]:
        """Of each matrix, by name: the sum of squares of each of its input's columns, over the rows of the last step.

        Float32 (columns,), written by every step; only with `observe`.
        """
        return self._latest.program.activation_stats

    @property
    def expert_activation_stats(self) -> dict[str, ExpertActivationStats]:
        """The same of the tensors of experts, of each expert. Written by every step; only with `observe`."""
        return self._latest.program.expert_activation_stats

    def recording(self, rows: int) -> Recording:
        """What is run in a step of so many rows, at most `chunk`."""
        return self._recordings[Regime.of(rows)]

    def new_table(self) -> PageTable:
        """A sequence that begins, of `context` positions at most."""
        return self.pool.new_table(self.context)

    def close(self) -> None:
        """End the threads, when a step that runs has ended, and let go of file and cache. Idempotent."""
        self._threads.close()
        self.pool.close()
        self.file.close()

    # ---- steps ---------------------------------------------------------------------------------------------------

    def run(self, batch: Sequence[SequenceRows], out: Logits | None = None) -> Logits:
        """One step of all rows of `batch`, at most `chunk`, each table once. Their tables are that much longer then.

        Logits, float32 (sum of `wanted`, V), in the order of the batch, are written to `out`, or to memory that the
        next step uses again.

        Raises ValueError and ContextOverflowError for what is wrong with the batch, MemoryBudgetError where there are
        no pages or no room for the logits, and Cancelled: then the tables keep their length. ModelChangedError where
        the file was changed; ForkError in a forked child; EdgeGemmaError where the runner is closed.
        """
        rows = self._check(batch)
        wanted = sum(part.wanted for part in batch)
        logits = self._room_for(wanted) if out is None else self._checked_out(out, wanted)
        self.file.check_unchanged()
        self.maxima = self._room_for_maxima(wanted)
        self.pool.reserve([(part.table, part.table.length + len(part.tokens)) for part in batch])
        self._step.prepare(batch)
        self._run(rows, wanted, logits)
        for part in batch:
            part.table.advance(part.table.length + len(part.tokens))
        return logits

    def last_rows(self, count: int) -> NDArray[np.float32]:
        """The last layer's output of the first `count` rows of the last step, (count, D), until the next step."""
        return self._latest.program.values(self._latest.x, count)

    def run_dense(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pooled rows, contiguous and aligned (texts, D), through an encoder's dense layers: (texts, width)."""
        assert self.config.embedding is not None
        out, head = np.empty((len(pooled), self.config.embedding.width), np.float32), self.recording(len(pooled))
        head.point_head(pooled.ctypes.data, out.ctypes.data)
        self._step.words[ops.STEP_ROWS] = len(pooled)
        self._execute_part(head.head, head.recorded_head)
        return out

    def cancel(self) -> None:
        """End the running step at its next barrier, or the next step before it begins: `run` raises Cancelled. From
        any thread, and from a signal's handler.

        No cancel is lost: it stays until a step has raised Cancelled, or until `ready`. So what a caller no longer
        wants is noted first, and looked at after Cancelled, and after `ready`; a step that is still wanted is then
        run again.
        """
        self._step.cancelled = True

    def ready(self) -> None:
        """Forget earlier cancels."""
        self._step.cancelled = False

    def _run(self, rows: int, wanted: int, logits: Logits) -> None:
        """Body and head, in one go where all logits are wanted."""
        self._latest = body = self.recording(rows)
        if wanted < rows:
            self._execute_part(body.body, body.recorded_body)
        if not wanted:
            return
        head = self.recording(wanted)
        last = body.x.address + (rows - wanted) * body.x.stride
        head.point_head(last, logits.ctypes.data, self.maxima.ctypes.data)
        if wanted == rows:
            self._execute_part(head.table, head.recorded)
        else:
            self._step.words[ops.STEP_ROWS] = wanted
            self._execute_part(head.head, head.recorded_head)

    def _execute_part(self, table: NDArray[np.int64], recorded: Sequence[Recorded]) -> None:
        """Run a table; its matrices are mapped meanwhile if they have not been read yet."""
        with_touches = self._first_touch.added_to(table, recorded)
        self._execute(with_touches)
        if with_touches is not table:
            self._first_touch.note(table, recorded)

    def _execute(self, table: NDArray[np.int64]) -> None:
        try:
            done = self._threads.run(table, self._step.words)
        except BaseException:
            self.ready()  # so the pool ends a program that an exception broke into
            raise
        if not done:
            self.ready()
            raise Cancelled

    # ---- checks --------------------------------------------------------------------------------------------------

    def check_tokens(self, tokens: Sequence[int] | NDArray[np.int64], name: str = "tokens") -> NDArray[np.int64]:
        """The ids as an array, int64 (T,). Raises ValueError."""
        ids = np.asarray(tokens)
        if not len(ids) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"{name}: there must be at least one token, and all must be integers")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"{name}: ids must be in 0..{self.config.vocab_size - 1}")
        return ids.astype(np.int64, copy=False)

    def check_context(self, count: int, name: str = "tokens") -> None:
        """Raise ContextOverflowError where a sequence of `count` positions is too long."""
        if count > self.context:
            raise ContextOverflowError(
                f"{name}: {count} tokens do not fit the context of {self.context}; open with a larger one"
            )

    def check_continues(self) -> None:
        """Raise ValueError for a model that makes embeddings."""
        if self.config.embedding is not None:
            raise ValueError(f"{self.config.architecture} is an embedding model, which continues no text: use embed")

    def _check(self, batch: Sequence[SequenceRows]) -> int:
        """The number of rows. Raises ValueError, ContextOverflowError."""
        for part in batch:
            self.check_tokens(part.tokens)
            if part.table.pool is not self.pool or part.table.released:
                raise ValueError("a table is of another model, or was released")
            if part.wanted:
                self.check_continues()
            most = 0 if self._observing else len(part.tokens)
            if not 0 <= part.wanted <= most:
                raise ValueError(f"wanted: {part.wanted} is outside 0..{most}, the tokens that there are logits after")
            self.check_context(part.table.length + len(part.tokens))
        rows = sum(len(part.tokens) for part in batch)
        if not 1 <= rows <= self.chunk:
            raise ValueError(f"a step of {rows} rows is outside 1..{self.chunk}, the model's chunk")
        if len({id(part.table) for part in batch}) < len(batch):
            raise ValueError("a table is twice in a step")
        return rows

    def _room_for(self, rows: int) -> Logits:
        """Memory for logits of `rows` positions, which steps share."""
        if rows > len(self._logits):
            self._logits = self.new_logits(rows)
        return self._logits[:rows]

    def _room_for_maxima(self, rows: int) -> Logits:
        groups = self.maxima.shape[1]
        with memory_for(
            f"maxima of the logits for {rows} positions", 4 * rows * groups, "close other programs or models"
        ):
            return np.empty((rows, groups), np.float32)

    def _checked_out(self, out: Logits, rows: int) -> Logits:
        shape = rows, self.config.vocab_size
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out: must be contiguous float32 of shape {shape}, got {out.dtype} {out.shape}")
        return out

    def new_logits(self, rows: int) -> Logits:
        """Memory for logits of `rows` positions, (rows, V), for `run`. Raises MemoryBudgetError."""
        what, size = f"logits for {rows} positions", 4 * rows * self.config.vocab_size
        advice = "ask for fewer at a time (logits_chunks)" if rows > 1 else "close other programs or models"
        require_memory(what, size, advice)
        with memory_for(what, size, advice):
            return np.empty((rows, self.config.vocab_size), np.float32)
