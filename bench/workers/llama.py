"""llama.cpp as a worker, through llama-cpp-python's low-level interface.

Its settings are its own defaults (flash attention as it chooses, repacked weights, a physical batch of 512); only the
context, the threads and a logical batch of 2048, llama-bench's, are given. Run by an interpreter that has it.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import llama_cpp
import serve

BATCH, PHYSICAL_BATCH = 2048, 512


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per tensor otherwise."""


class Llama(serve.Engine):
    """One model and one context."""

    def describe(self) -> str:
        return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    def has_avx512(self) -> bool:
        """Whether this build uses it."""
        return b"AVX512 = 1" in llama_cpp.llama_print_system_info()

    def open(self, model: str, context: int, threads: int, repack: bool = True) -> None:
        """`repack` False: without llama.cpp's second copy of the weights."""
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(context, PHYSICAL_BATCH)
        params.n_batch, params.n_ubatch = BATCH, PHYSICAL_BATCH
        params.n_outputs_max_per_seq = PHYSICAL_BATCH
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no room for a context of {context}")
        self._position = 0

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self._position = 0

    def work(self, ids: list[int], *, every: bool = False) -> serve.Work:
        if every:
            return partial(self._decode, self._batch(ids), len(ids))
        batches = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
        parts = [(llama_cpp.llama_token * len(batch))(*batch) for batch in batches]
        return lambda: [self._decode(llama_cpp.llama_batch_get_one(part, len(part)), len(part)) for part in parts]

    def _batch(self, ids: list[int]) -> Any:
        """Of one sequence, with the logits of every row. Not freed: a few hundred bytes a step."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self._position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        return batch

    def _decode(self, batch: Any, tokens: int) -> None:
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot decode")
        llama_cpp.llama_synchronize(self.context)
        self._position += tokens


if __name__ == "__main__":
    serve.serve(Llama())
