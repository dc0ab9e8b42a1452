"""What goes into each matrix while a model reads a text: sums of squares per column. Knows no file but the model's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.cores import available_memory, default_threads
from edge_gemma.engine.memory_plan import default_chunk, require_budget, scratch_bytes
from edge_gemma.engine.runner import require_head_step
from edge_gemma.errors import EdgeGemmaError, NumericalError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.cache import KVCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.step import Step
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.threads.pool import KERNELS, ThreadPool
from edge_gemma.kernels.tuning.choices import tuned_choices
from edge_gemma.models.config import GemmaConfig
from edge_gemma.models.gemma import record
from edge_gemma.models.weights import Weights
from edge_gemma.text.tokenizer import Tokenizer

Sums = dict[str, NDArray[np.float64]]


class Observer:
    """Reads windows of tokens with a model and adds up the squares of its matrices' inputs. Close it, or use `with`.

    `sums`: tensor name -> sum over all rows read of the square of each input column, float64 (columns,);
    `rows`: how many rows. The same bits for any number of threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int,
        threads: int | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Open `path` for windows of at most `context` tokens; arguments and errors as for `Gemma`."""
        self._file = GgufFile.open(path)
        try:
            self.config = GemmaConfig.from_gguf(self._file)
            weights = Weights.bind(self._file, self.config)
            self.tokenizer = Tokenizer.from_gguf(self._file)
            self._chunk = default_chunk(self.config)
            self._check(weights, context, threads or default_threads())
            self._record(weights, context, threads or default_threads(), progress)
        except BaseException:
            self._file.close()
            raise
        self.sums: Sums = {name: np.zeros(len(sums)) for name, sums in self._program.squares.items()}
        self.rows = 0

    def add(self, window: Sequence[int]) -> None:
        """Read a window, from an empty cache. Raises NumericalError where the model overflows."""
        ids = np.asarray(window, np.int64)
        self._file.check_unchanged()
        for start in range(0, len(ids), self._chunk):
            part = ids[start : start + self._chunk]
            self._step.prepare(part, start)
            if not self._pool.run(self._table, self._step.words):
                raise EdgeGemmaError("cancelled")
            for name, sums in self._program.squares.items():
                self.sums[name] += sums
        for name, total in self.sums.items():
            if not np.isfinite(total).all():
                raise NumericalError(f"the input of {name} is not finite")
        self.rows += len(ids)

    def close(self) -> None:
        """End the threads and let go of the file."""
        self._pool.close()
        self._file.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _check(self, weights: Weights, context: int, threads: int) -> None:
        require_head_step(self._file, self.config)
        budget = available_memory()
        require_budget(self.config, weights, context, budget, chunk=self._chunk, kv_type="f32", threads=threads)

    def _record(
        self, weights: Weights, context: int, threads: int, progress: Callable[[int, int, str], None] | None
    ) -> None:
        """The model without its product with the vocabulary, whose input is observed all the same."""
        config, file = self.config, self._file
        self._cache = KVCache(config.states, context, self._chunk, "f32")
        program = Program(
            self._chunk, lambda tensor: file.data(tensor).ctypes.data, "f32", choices=tuned_choices(), observe=True
        )
        x = record(program, config, weights, self._cache.layers)
        h = program.rms_norm(x, weights.output_norm, config.rms_eps, out="h", takers=(weights.output,))
        program.observe(h, weights.output)
        self._program = program
        self._table = program.table(shared().load([*program.kernels(), *KERNELS], progress))
        self._step = Step(program.ropes, self._chunk, threads, scratch_bytes(config, self._chunk))
        self._pool = ThreadPool(threads)
