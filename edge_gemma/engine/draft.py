"""A draft model beside a model that runs. Knows no proposals: see `speculation`."""

from __future__ import annotations

import os

from edge_gemma.engine.memory_plan import page_limit
from edge_gemma.engine.runner import Runner
from edge_gemma.progress import Progress


def open_draft(path: str | os.PathLike[str], model: Runner, slots: int, progress: Progress | None) -> Runner:
    """The smaller model at `path`, for `slots` answers of `model`.

    Raises ValueError where it has another vocabulary or makes embeddings, and what opening raises.
    """
    draft = Runner(path, default_context=model.context, threads=model.threads, progress=progress)
    ours, theirs = ([*file.metadata.strings("tokenizer.ggml.tokens")] for file in (model.file, draft.file))
    fault = "has another vocabulary than the model" if ours != theirs else ""
    if draft.config.embedding is not None:
        fault = "makes embeddings, and continues no text"
    if fault:
        draft.close()
        raise ValueError(f"draft: {os.fspath(path)} {fault}")
    draft.pool.limit_bytes = page_limit(draft.plan.kv_cache, slots, 0)
    return draft
