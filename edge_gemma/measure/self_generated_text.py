"""Texts that a model writes by itself, several side by side. Knows no file but the model's, and not what they are for.

What a model writes uses its columns as other text does: an importance matrix of it is nearly as good as one of the
text that the model will see (`docs/quality.md`), and there is always some to be had.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count as numbers

import numpy as np

from edge_gemma.engine.runner import Runner
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels.operations import FEW_ROWS
from edge_gemma.progress import Progress, TokenProgress
from edge_gemma.text.tokenizer import Tokenizer

BATCH = FEW_ROWS
"""Texts at a time: with 2B in Q8_0 a step of so many rows takes 1.3 times as long as one of one row."""
TOKENS = 2048
"""What an importance matrix wants: with eight times as many, the four types tried diverged the same within 4%."""
LENGTH = 256
"""Most tokens of a text, with BOS."""
VARIED = SamplingParams(temperature=1.0, top_k=64, top_p=1.0, min_p=0.0)
"""Nothing but what is most unlikely is left out, so that the texts are as different as texts are."""

Text = list[int]


def self_generated_texts(
    path: str | os.PathLike[str],
    tokens: int = TOKENS,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: TokenProgress | None = None,
    kernel_progress: Progress | None = None,
) -> list[Text]:
    """Texts of `tokens` tokens together, as ids: BOS and what the model at `path` continues it with.

    Each ends where the model ends it, after LENGTH tokens, or when there are enough. The same seed gives the same
    texts, whatever the threads. Raises ModelFormatError, MemoryBudgetError, NumericalError, OSError.
    """
    if tokens < 1:
        raise ValueError(f"tokens: {tokens} is not at least 1")
    with BatchGenerator(path, min(BATCH, tokens), threads, kernel_progress) as generator:
        return generator.generate(tokens, seed, progress)


def described(seed: int) -> str:
    """What an importance matrix calls these texts."""
    return f"text of the model itself, seed {seed}"


class BatchGenerator:
    """`count` sequences of one model, each a token longer with every step. Close it, or use `with`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        count: int,
        threads: int | None = None,
        kernel_progress: Progress | None = None,
    ) -> None:
        """Arguments and errors as for `self_generated_texts`."""
        self._runner = Runner(
            path, threads=threads, chunk=count, sequences=count, default_context=LENGTH, progress=kernel_progress
        )
        try:
            self._tokenizer = Tokenizer.from_gguf(self._runner.file)
        except BaseException:
            self._runner.close()
            raise
        self._tables = [self._runner.new_table() for _ in range(count)]

    def generate(self, tokens: int, seed: int, progress: TokenProgress | None = None) -> list[Text]:
        """See `self_generated_texts`. `progress(done, tokens)` follows every step."""
        samplers_to_come = (Sampler(replace(VARIED, seed=seed), choice) for choice in numbers())
        samplers = [next(samplers_to_come) for _ in self._tables]
        texts, ended = [[self._tokenizer.bos_id] for _ in samplers], []
        for done in range(0, tokens, len(samplers)):
            if progress:
                progress(done, tokens)
            last = (np.array(text[-1:], np.int64) for text in texts)
            batch = [SequenceRows(table, ids, 1) for table, ids in zip(self._tables, last, strict=True)]
            logits = self._runner.run(batch)
            for i, (text, sampler) in enumerate(zip(texts, samplers, strict=True)):
                text.append(sampler.sample(logits[i], self._runner.maxima[i], text, len(text)))
                if text[-1] in self._tokenizer.eog_ids or len(text) > self._runner.context:
                    ended.append(text[: self._runner.context])
                    texts[i], samplers[i] = [self._tokenizer.bos_id], next(samplers_to_come)
                    self._tables[i].truncate(0)
        if progress:
            progress(tokens, tokens)
        return [*ended, *(text for text in texts if len(text) > 1)]

    def close(self) -> None:
        """End the threads and let go of the file."""
        self._runner.close()

    def __enter__(self) -> BatchGenerator:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
