"""llama.cpp as a worker, through llama-cpp-python's low-level interface: no tokenizing, no sampling.

Its settings are its own defaults (flash attention as it chooses, repacked weights, a physical batch of 512); only the
context, the threads and a logical batch of 2048, llama-bench's, are given. Run by an interpreter that has it.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
from serve import serve

BATCH, PHYSICAL_BATCH = 2048, 512


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per tensor otherwise."""


class Llama:
    """One model and one context. Times are seconds."""

    def __init__(self) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._random = random.Random(0)
        self._position = 0

    def describe(self) -> dict[str, Any]:
        system: str = llama_cpp.llama_print_system_info().decode()
        return {"engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", "system": system}

    def open(self, model: str, context: int, threads: int, repack: bool = True) -> None:
        """`repack` False: without llama.cpp's second copy of the weights."""
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(context, PHYSICAL_BATCH)
        params.n_batch, params.n_ubatch = BATCH, PHYSICAL_BATCH
        params.n_outputs_max_per_seq = PHYSICAL_BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for a context of {context}")

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._position = 0

    def prompt(self, tokens: int) -> float:
        """Append so many tokens at once, logits of the last one only."""
        parts = [self._ids(min(BATCH, tokens - done)) for done in range(0, tokens, BATCH)]
        start = time.perf_counter()
        for part in parts:
            self._decode(llama_cpp.llama_batch_get_one(part, len(part)), len(part))
        return time.perf_counter() - start

    def generate(self, tokens: int) -> float:
        """Append so many tokens one by one, logits of each."""
        ids = [self._ids(1) for _ in range(tokens)]
        start = time.perf_counter()
        for one in ids:
            self._decode(llama_cpp.llama_batch_get_one(one, 1), 1)
        return time.perf_counter() - start

    def steps(self, rows: Sequence[int], repeats: int) -> dict[str, float]:
        """Median time of one step of each number of rows, logits of every row."""
        times: dict[str, list[float]] = {str(n): [] for n in rows}
        for _ in range(repeats):
            for n in rows:
                times[str(n)].append(self._step(n))
        return {n: statistics.median(values) for n, values in times.items()}

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _step(self, rows: int) -> float:
        ids = self._ids(rows)
        batch = llama_cpp.llama_batch_init(rows, 0, 1)
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = ids[i], self._position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        start = time.perf_counter()
        self._decode(batch, rows)
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(batch)
        return seconds

    def _decode(self, batch: Any, tokens: int) -> None:
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp cannot decode")
        llama_cpp.llama_synchronize(self._context)
        self._position += tokens

    def _ids(self, count: int) -> Any:
        return (llama_cpp.llama_token * count)(*(self._random.randrange(self._vocab) for _ in range(count)))


if __name__ == "__main__":
    llama = Llama()
    serve(
        {name: getattr(llama, name) for name in ("describe", "open", "clear", "prompt", "generate", "steps", "close")}
    )
