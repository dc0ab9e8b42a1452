"""Texts to embeddings, several in a step: the rows of a text, pooled, through the dense layers, to length 1.

Knows no text, only token ids. A text is read in one step, as its tokens see those behind them; what comes of it does
not depend on the others in the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.memory_plan import MOST_TEXTS
from edge_gemma.engine.runner import Runner
from edge_gemma.graph.buffers import aligned_bytes
from edge_gemma.graph.step import SequenceRows
from edge_gemma.models.embedding import Embedding

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def steps(lengths: Sequence[int], most_rows: int) -> Iterator[range]:
    """Neighbouring texts that are read together: at most MOST_TEXTS, of at most `most_rows` tokens."""
    start = rows = 0
    for i, length in enumerate(lengths):
        if rows + length > most_rows or i - start == MOST_TEXTS:
            yield range(start, i)
            start, rows = i, 0
        rows += length
    if start < len(lengths):
        yield range(start, len(lengths))


def embed(runner: Runner, texts: Sequence[Ids]) -> Floats:
    """The embeddings of texts that fit a step, float32 (texts, width), each of length 1.

    Raises what `Runner.run` raises.
    """
    embedding = runner.config.embedding
    assert embedding is not None
    batch = [SequenceRows(runner.new_table(), ids) for ids in texts]
    try:
        runner.run(batch)
        pooled = _pooled(runner.last_rows(sum(map(len, texts))), list(map(len, texts)), embedding)
    finally:
        for rows in batch:
            rows.table.release()
    out = runner.run_dense(pooled) if embedding.dense else pooled
    return of_length_one(out)


def of_length_one(rows: Floats) -> Floats:
    """Each row divided by its length, computed in float64; one of zeros stays."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    out = np.zeros_like(rows)
    np.divide(rows, length, out=out, where=length != 0, casting="same_kind")
    return out


def _pooled(rows: Floats, lengths: list[int], embedding: Embedding) -> Floats:
    """(T, D), text after text, to (texts, D) that lie as kernels want them: row after row, the first aligned."""
    ends = np.cumsum(lengths)
    memory = aligned_bytes(4 * len(lengths) * rows.shape[1]).view(np.float32).reshape(len(lengths), -1)
    for out, end, length in zip(memory, ends.tolist(), lengths, strict=True):
        text = rows[end - length : end]
        out[:] = text.mean(axis=0, dtype=np.float64) if embedding.pooling == "mean" else text[-1]
    return memory
