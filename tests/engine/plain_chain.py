"""The sampler's chain over a whole row, every token sorted: slow, plain, and the definition of what is drawn.

Knows no groups. The numbers are made by the same formulas as the sampler's, so that equal means equal, not close.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.sampler import SamplingParams

Floats = NDArray[np.float32]


def sample(logits: Floats, history: Sequence[int], params: SamplingParams, uniform: float) -> int:
    """The token that the number `uniform` draws; logits must be finite or -inf, one of them finite."""
    logits = penalized(logits, history, params)
    ids = np.lexsort((np.arange(logits.size), -logits))
    ids = ids[logits[ids] > -np.inf]
    if params.temperature == 0:
        return int(ids[0])
    if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
        return _drawn(np.arange(logits.size), _shares(logits, params.temperature), uniform)
    if params.top_k:
        ids = ids[: params.top_k]
    values = logits[ids].astype(np.float64)
    if params.top_p < 1:
        shares = np.exp(values - values[0])
        total = float(shares.sum() if params.top_k else _shares(logits, 1.0).sum(dtype=np.float64))
        below = int(np.count_nonzero(np.cumsum(shares) < params.top_p * total))
        ids = ids[: below + 1]
    if params.min_p:
        ids = ids[values[: ids.size] >= values[0] + math.log(params.min_p)]
    with np.errstate(over="ignore"):
        weights = np.exp((values[: ids.size] - values[0]) / params.temperature)
    return _drawn(ids, weights, uniform)


def penalized(logits: Floats, history: Sequence[int], params: SamplingParams) -> Floats:
    """A copy with the penalties of the tokens at the end of `history`."""
    changed, n = logits.copy(), params.penalty_last_n
    recent = history if n < 0 else history[len(history) - min(n, len(history)) :]
    for token, count in Counter(recent).items():
        value = float(logits[token])
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        changed[token] = value - (count * params.frequency_penalty + params.presence_penalty)
    return changed


def _shares(logits: Floats, temperature: float) -> Floats:
    with np.errstate(over="ignore"):
        shares: Floats = np.exp((logits - logits.max()) / np.float32(max(temperature, 1e-30)))
    return shares


def _drawn(ids: NDArray[np.int64], weights: NDArray[np.floating], uniform: float) -> int:
    sums = np.cumsum(weights, dtype=np.float64)
    return int(ids[np.flatnonzero((sums > uniform * sums[-1]) & (weights > 0))[0]])
