"""What goes into each matrix while a model reads a text: sums of squares per column. Knows no file but the model's."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.runner import Runner
from edge_gemma.errors import NumericalError
from edge_gemma.graph.step import SequenceRows
from edge_gemma.progress import Progress
from edge_gemma.text.tokenizer import Tokenizer

Sums = dict[str, NDArray[np.float64]]


class ActivationStats:
    """Reads windows of tokens with a model and adds up the squares of its matrices' inputs. Close it, or use `with`.

    `sums`: tensor name -> sum over all rows read of the square of each input column, float64 (columns,);
    `rows`: how many rows. `expert_sums` and `expert_rows`: of the tensors of experts, float64 (experts, columns) and
    (experts,), of the rows that a router gave to each. The same bits for any number of threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Open `path` for windows of at most `context` tokens; arguments and errors as for `Gemma`."""
        self._runner = Runner(path, context=context, threads=threads, kv_type="f32", observe=True, progress=progress)
        try:
            self.tokenizer = Tokenizer.from_gguf(self._runner.file)
        except BaseException:
            self._runner.close()
            raise
        self.config = self._runner.config
        self.sums: Sums = {name: np.zeros(len(sums)) for name, sums in self._runner.activation_stats.items()}
        self.rows = 0
        experts = self._runner.expert_activation_stats
        self.expert_sums: Sums = {name: np.zeros(stats.sums.shape) for name, stats in experts.items()}
        self.expert_rows: Sums = {name: np.zeros(stats.rows.shape) for name, stats in experts.items()}

    def add(self, window: Sequence[int]) -> None:
        """Read a window, from an empty cache. Raises NumericalError where the model overflows."""
        ids, chunk, table = np.asarray(window, np.int64), self._runner.chunk, self._runner.new_table()
        for start in range(0, len(ids), chunk):
            self._runner.run([SequenceRows(table, ids[start : start + chunk])])
            for name, sums in self._runner.activation_stats.items():
                self.sums[name] += sums
            for name, stats in self._runner.expert_activation_stats.items():
                self.expert_sums[name] += stats.sums
                self.expert_rows[name] += stats.rows
        table.release()
        for name, total in (*self.sums.items(), *self.expert_sums.items()):
            if not np.isfinite(total).all():
                raise NumericalError(f"the input of {name} is not finite")
        self.rows += len(ids)

    def close(self) -> None:
        """End the threads and let go of the file."""
        self._runner.close()

    def __enter__(self) -> ActivationStats:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
