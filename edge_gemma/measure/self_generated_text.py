"""Texts that a model writes by itself, several side by side. Knows no file but the model's, and not what they are for.

What a model writes uses its columns as other text does: an importance matrix of it is nearly as good as one of the
text that the model will see (`docs/quality.md`), and there is always some to be had.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edge_gemma.cores import available_memory, default_threads
from edge_gemma.engine.memory_plan import require_budget, scratch_bytes
from edge_gemma.engine.runner import require_head_step
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.errors import EdgeGemmaError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.cache import KVCache
from edge_gemma.graph.program import Program, words_of
from edge_gemma.graph.step import Step
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.operations import FEW_ROWS
from edge_gemma.kernels.threads.pool import KERNELS, ThreadPool
from edge_gemma.kernels.tuning.choices import tuned_choices
from edge_gemma.models.config import GemmaConfig
from edge_gemma.models.gemma import record, record_logits
from edge_gemma.models.weights import Weights
from edge_gemma.text.tokenizer import Tokenizer

WRITERS = FEW_ROWS
"""Texts at a time: with 2B in Q8_0 a step of so many rows takes 1.3 times as long as one of one row."""
TOKENS = 2048
"""What an importance matrix wants: with eight times as many, the four types tried diverged the same within 4%."""
LENGTH = 256
"""Most tokens of a text, with BOS."""
VARIED = SamplingParams(temperature=1.0, top_k=64, top_p=1.0, min_p=0.0)
"""Nothing but what is most unlikely is left out, so that the texts are as different as texts are."""

Text = list[int]


def own_texts(
    path: str | os.PathLike[str],
    tokens: int = TOKENS,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    kernel_progress: Callable[[int, int, str], None] | None = None,
) -> list[Text]:
    """Texts of `tokens` tokens together, as ids: BOS and what the model at `path` continues it with.

    Each ends where the model ends it, after LENGTH tokens, or when there are enough. The same seed gives the same
    texts, whatever the threads. Raises ModelFormatError, MemoryBudgetError, NumericalError, OSError.
    """
    if tokens < 1:
        raise ValueError(f"tokens: {tokens} is not at least 1")
    with Writers(path, min(WRITERS, tokens), threads, kernel_progress) as writers:
        return writers.write(tokens, seed, progress)


def described(seed: int) -> str:
    """What an importance matrix calls these texts."""
    return f"text of the model itself, seed {seed}"


class Writers:
    """`count` sequences of one model, each a token longer with every step. Close it, or use `with`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        count: int,
        threads: int | None = None,
        kernel_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Arguments and errors as for `own_texts`."""
        self._file = GgufFile.open(path)
        try:
            config = GemmaConfig.from_gguf(self._file)
            weights = Weights.bind(self._file, config)
            require_head_step(self._file, config)
            self._tokenizer = Tokenizer.from_gguf(self._file)
            self._length, threads = min(LENGTH, config.context_length), threads or default_threads()
            budget = available_memory()
            require_budget(config, weights, self._length, budget, chunk=count, threads=threads, sequences=count)
            self._record(config, weights, count, threads, kernel_progress)
        except BaseException:
            self._file.close()
            raise

    def write(self, tokens: int, seed: int, progress: Callable[[int, int], None] | None = None) -> list[Text]:
        """See `own_texts`. `progress(done, tokens)` follows every step."""
        samplers = [Sampler(replace(VARIED, seed=seed + i)) for i in range(len(self._logits))]
        texts, ended = [[self._tokenizer.bos_id] for _ in samplers], []
        for done in range(0, tokens, len(samplers)):
            if progress:
                progress(done, tokens)
            self._run(texts)
            for i, (text, sampler) in enumerate(zip(texts, samplers, strict=True)):
                text.append(sampler.sample(self._logits[i]))
                if text[-1] in self._tokenizer.eog_ids or len(text) > self._length:
                    ended.append(text[: self._length])
                    texts[i] = [self._tokenizer.bos_id]
        if progress:
            progress(tokens, tokens)
        return [*ended, *(text for text in texts if len(text) > 1)]

    def close(self) -> None:
        """End the threads and let go of the file."""
        self._pool.close()
        self._file.close()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _run(self, texts: list[Text]) -> None:
        """The last token of each text into the cache; the logits after it."""
        self._file.check_unchanged()
        last, positions = [text[-1] for text in texts], [len(text) - 1 for text in texts]
        self._step.prepare_each(np.array(last, np.int64), np.array(positions, np.int64))
        if not self._pool.run(self._table, self._step.words):
            raise EdgeGemmaError("cancelled")

    def _record(
        self,
        config: GemmaConfig,
        weights: Weights,
        count: int,
        threads: int,
        kernel_progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._cache = KVCache(config.states, self._length, count, "f16", count)
        program = Program(count, lambda tensor: self._file.data(tensor).ctypes.data, "f16", choices=tuned_choices())
        x = record(program, config, weights, self._cache.layers)
        logits = program.outside("logits", config.vocab_size, 4 * config.vocab_size)
        record_logits(program, config, weights, x, logits)
        self._program = program
        self._table = program.table(shared().load([*program.kernels(), *KERNELS], kernel_progress))
        self._logits = np.zeros((count, config.vocab_size), np.float32)
        self._table[words_of(self._table, logits)] = self._logits.ctypes.data
        self._step = Step(program.ropes, count, threads, scratch_bytes(config, count))
        self._pool = ThreadPool(threads)
