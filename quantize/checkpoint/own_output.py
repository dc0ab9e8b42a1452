"""Whether a checkpoint's `lm_head` is its embedding again or a matrix of its own. The values decide, not config.json.

PEFT leaves a trained `lm_head` in models whose config.json still ties the two; others save the one matrix twice, or the
wrong one of the two names. transformers 5 unties where both are there and differ. Knows no file and no GGUF key.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_gemma.models.architecture import Architecture
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT

from .hf_config import HfModel
from .stored_tensor import StoredTensor

SLAB_VALUES = 1 << 21

Stored = dict[str, StoredTensor]


def settle_output(stored: Stored, model: HfModel, rows: int) -> tuple[Stored, HfModel, list[str]]:
    """The tensors without an `lm_head` that is the embedding in its first `rows` rows; `model.tied` as they are.

    `stored`: tensors by their names without prefix. The last value is what to tell. Reads both matrices.
    """
    if HF_OUTPUT not in stored:
        return stored, model, []
    if HF_EMBEDDING not in stored:
        return _embedding_from_output(stored, model)
    if same_rows(stored[HF_EMBEDDING], stored[HF_OUTPUT], rows):
        notices = [] if model.tied else [f"{HF_OUTPUT} is the embedding again: stored once"]
        return _without_output(stored), replace(model, tied=True), notices
    notices = [f"{HF_OUTPUT} is not the embedding, though config.json ties the two: kept as a matrix of its own"]
    return stored, replace(model, tied=False), notices if model.tied else []


def _embedding_from_output(stored: Stored, model: HfModel) -> tuple[Stored, HfModel, list[str]]:
    """Of tied weights some tools save one name only, and this may be it."""
    if not model.tied:
        return stored, model, []
    notices = [f"{HF_EMBEDDING} is not there: {HF_OUTPUT} is taken, to which config.json ties it"]
    return _without_output(stored) | {HF_EMBEDDING: stored[HF_OUTPUT]}, model, notices


def _without_output(stored: Stored) -> Stored:
    return {name: tensor for name, tensor in stored.items() if name != HF_OUTPUT}


def same_rows(a: StoredTensor, b: StoredTensor, rows: int) -> bool:
    """Whether two matrices have the same values in their first `rows` rows, in whatever formats."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[1] or min(a.shape[0], b.shape[0]) < rows:
        return False
    step = max(1, SLAB_VALUES // a.shape[1])
    return all(_same_slab(a, b, start, min(start + step, rows)) for start in range(0, rows, step))


def _same_slab(a: StoredTensor, b: StoredTensor, start: int, stop: int) -> bool:
    if a.format == b.format and np.array_equal(a.raw_rows(start, stop), b.raw_rows(start, stop)):
        return True
    return np.array_equal(a.rows(start, stop), b.rows(start, stop))


def own_output_notices(architecture: Architecture) -> list[str]:
    """What to tell of a file with an output matrix of its own."""
    if architecture.own_output_in_llama_cpp or not architecture.in_llama_cpp:
        return []
    return [f"output matrix of its own: llama.cpp does not load that for {architecture.name}"]
