"""From the logits of one position to the next token id.

Knows no model, no text and no stop rule. The chain is llama.cpp's: penalties, top-k, top-p, min-p, temperature, draw.
Each step is a pure function; the only state is the counter of the random stream. Ties go to the lower id, everywhere.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Philox  # here, not at the first token: it takes a while
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.errors import NumericalError

Logits = NDArray[np.float32]

# Widest change the API accepts; OpenAI's range for both additive penalties.
ADDITIVE_LIMIT = 2.0
SEED_BITS = 64
# Groups whose maxima bound the k-th largest logit from below: more groups bound it tighter, fewer cost less to search.
GROUPS_PER_K = 32
# float32 has smaller normal numbers, but a logit difference over this is already infinite or zero.
COLDEST = 1e-30


@dataclass(frozen=True)
class SamplingParams:
    """What to do with the logits. The defaults are llama.cpp's.

    temperature: 0 picks the largest logit, whatever the other values are.
    top_k: keep the k largest; 0 keeps all. top_p: keep the smallest set of that probability; 1 keeps all.
    min_p: keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    repetition_penalty: divides positive and multiplies other logits of tokens in the history; 1 does nothing.
    presence_penalty, frequency_penalty: subtracted once, and once per occurrence.
    penalty_last_n: how much of the history counts, in tokens; 0 none, -1 all.
    seed: of the random stream, 0 included; None draws one from the operating system.

    Raises ValueError naming field, value and range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        self._number("temperature", 0.0, 100.0)
        self._whole("top_k", 0, 2**31 - 1)
        self._number("top_p", 0.0, 1.0)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.01, 100.0)
        self._number("presence_penalty", -ADDITIVE_LIMIT, ADDITIVE_LIMIT)
        self._number("frequency_penalty", -ADDITIVE_LIMIT, ADDITIVE_LIMIT)
        self._whole("penalty_last_n", -1, 2**31 - 1)
        if self.seed is not None:
            self._whole("seed", 0, 2**SEED_BITS - 1)

    def _number(self, name: str, low: float, high: float) -> None:
        """Check a field, and make it a plain float: NumPy makes objects of fractions."""
        value = getattr(self, name)
        number = arguments.real(value)
        if number is None or not low <= number <= high:
            raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {arguments.shown(value)}")
        object.__setattr__(self, name, number)

    def _whole(self, name: str, low: int, high: int) -> None:
        """Check a field, and make it a plain integer: NumPy's narrow ones overflow."""
        value = getattr(self, name)
        number = arguments.whole(value)
        if number is None or not low <= number <= high:
            raise ValueError(f"{name} must be an integer from {low} to {high}, got {arguments.shown(value)}")
        object.__setattr__(self, name, number)

    @property
    def penalizes(self) -> bool:
        """Whether any penalty changes a logit."""
        changes = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return changes and self.penalty_last_n != 0


class Candidates(NamedTuple):
    """Tokens that can still be drawn.

    ids: (n,), the logit falling, then the id rising; logits: (n,) float64; total: the sum of exp(logit - logits[0])
    over the tokens that the steps so far kept, which is more than these n where the rest is known not to matter.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]
    total: float


class Sampler:
    """Draws token ids by `params`. `seed` is the one in use: the same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed: int = secrets.randbits(32) if params.seed is None else params.seed
        self._bits = Philox(key=self.seed)

    def sample(self, logits: Logits, history: Sequence[int] = ()) -> int:
        """The id of the next token; `logits` (vocab,) float32 are not changed, `history` is the text so far as ids.

        Raises NumericalError where a logit is NaN or +inf or all are -inf, ValueError for a wrong shape, type or id.
        """
        _check_logits(logits)
        params = self.params
        if params.penalizes:
            logits = penalize(logits, history, params)
        if params.temperature == 0:
            return greedy(logits)
        if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
            return draw_from_all(logits, params.temperature, self._uniform())
        kept = min_p(top_p(_select(logits, params), params.top_p), params.min_p)
        return draw(kept, params.temperature, self._uniform())

    def _uniform(self) -> float:
        """The stream's next number in [0, 1), 53 bits. Raw Philox output is the same in every NumPy version."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53


def _check_logits(logits: Logits) -> None:
    if logits.ndim != 1 or logits.size == 0 or logits.dtype != np.float32:
        raise ValueError(f"logits must be float32 of shape (vocab,), got {logits.dtype} {logits.shape}")


def _finite(largest: float) -> float:
    """`largest`, the maximum of all logits: NumPy's maximum passes NaN on, so this one value tells of all."""
    if not math.isfinite(largest):
        raise NumericalError(f"cannot choose a token: the largest logit is {largest}")
    return largest


def penalize(logits: Logits, history: Sequence[int], params: SamplingParams) -> Logits:
    """A copy of `logits` with the three penalties applied to the tokens of the end of `history`."""
    recent = history if params.penalty_last_n < 0 else history[-params.penalty_last_n :]
    ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    if ids.size and not 0 <= ids[0] <= ids[-1] < logits.size:
        raise ValueError(f"history has a token id outside 0..{logits.size - 1}: {ids[0] if ids[0] < 0 else ids[-1]}")
    seen = logits[ids].astype(np.float64)
    seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    seen -= counts * params.frequency_penalty + params.presence_penalty
    changed = logits.copy()
    changed[ids] = seen
    return changed


def greedy(logits: Logits) -> int:
    """The id of the largest logit."""
    best = int(logits.argmax())
    _finite(float(logits[best]))
    return best


def _select(logits: Logits, params: SamplingParams) -> Candidates:
    """The candidates in order, cut as far as top-k, or where that is off what the later steps allow."""
    if params.top_k:
        return top_k(logits, params.top_k)
    if params.min_p > 0:
        return _likely(logits, params.min_p)
    return _nucleus(logits, params.top_p)


def top_k(logits: Logits, k: int) -> Candidates:
    """The k largest logits (fewer where fewer are above -inf)."""
    kept = _sorted(logits, _at_least_kth(logits, k))
    ids, values = kept.ids[:k], kept.logits[:k]
    return Candidates(ids, values, float(np.exp(values - values[0]).sum()))


def _at_least_kth(logits: Logits, k: int) -> float:
    """A lower bound of the k-th largest logit: the k-th largest of the maxima of disjoint groups of logits."""
    per_group = logits.size // (GROUPS_PER_K * k)
    if per_group < 2:
        largest = float(logits.max())
        bound = float(np.partition(logits, -k)[-k]) if k < logits.size else -math.inf
    else:
        groups = logits.size // per_group
        maxima = logits[: per_group * groups].reshape(per_group, groups).max(axis=0)
        rest = logits[per_group * groups :]
        largest = float(np.concatenate((maxima, rest)).max())  # not Python's max, which loses a NaN
        bound = float(np.partition(maxima, -k)[-k])
    _finite(largest)
    return bound


def _sorted(logits: Logits, bound: float, total: float = math.nan) -> Candidates:
    """All tokens whose logit is at least `bound` and above -inf, in the order of `Candidates`."""
    ids = np.flatnonzero(logits >= max(bound, float(np.finfo(np.float32).min)))
    order = np.argsort(-logits[ids], kind="stable")
    ids = ids[order]
    return Candidates(ids, logits[ids].astype(np.float64), total)


def _likely(logits: Logits, p: float) -> Candidates:
    """The tokens min-p will keep. Cutting before top-p is the same as after it: both keep a beginning of one order."""
    largest = _finite(float(logits.max()))
    # One float32 step lower, for `logits >= bound` is decided in float32 and `min_p` decides exactly.
    bound = float(np.nextafter(np.float32(largest + math.log(p)), np.float32(-np.inf)))
    return _sorted(logits, bound, _total(logits, largest))


def _nucleus(logits: Logits, p: float) -> Candidates:
    """As many of the largest logits as hold the probability p; sorting all 262,144 takes 28 ms."""
    largest = _finite(float(logits.max()))
    total = _total(logits, largest)
    k = 1024
    while True:
        kept = top_k(logits, k)
        if kept.total >= p * total or k >= logits.size:
            return kept._replace(total=total)
        k *= 8


def _weights(logits: Logits, largest: float, temperature: float = 1.0) -> Logits:
    """exp((logit - largest) / temperature), in one temporary: the allocator gives a second one back to the system each
    time, and touching fresh pages again costs six times the arithmetic."""
    weights = logits - np.float32(largest)
    with np.errstate(over="ignore"):
        weights /= np.float32(max(temperature, COLDEST))
    np.exp(weights, out=weights)
    return weights


def _total(logits: Logits, largest: float) -> float:
    return float(_weights(logits, largest).sum(dtype=np.float64))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The shortest beginning whose probability is at least p, one token at least."""
    if p >= 1:
        return candidates
    reached = np.cumsum(np.exp(candidates.logits - candidates.logits[0])) >= p * candidates.total
    count = int(reached.argmax()) + 1 if reached.any() else reached.size
    return _first(candidates, count)


def min_p(candidates: Candidates, p: float) -> Candidates:
    """The tokens at least p times as probable as the first."""
    if p == 0:
        return candidates
    return _first(candidates, int(np.count_nonzero(candidates.logits >= candidates.logits[0] + math.log(p))))


def _first(candidates: Candidates, count: int) -> Candidates:
    values = candidates.logits[:count]
    return Candidates(candidates.ids[:count], values, float(np.exp(values - values[0]).sum()))


def draw(candidates: Candidates, temperature: float, uniform: float) -> int:
    """One candidate, in proportion to exp(logit / temperature), by a number in [0, 1)."""
    with np.errstate(over="ignore"):
        weights = np.exp((candidates.logits - candidates.logits[0]) / temperature)
    return int(candidates.ids[_pick(weights, uniform)])


def draw_from_all(logits: Logits, temperature: float, uniform: float) -> int:
    """`draw` over the whole vocabulary, in two levels: rows of tokens, then one row; one long running sum is slow."""
    weights = _weights(logits, _finite(float(logits.max())), temperature)
    starts = np.arange(0, weights.size, 512)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * float(sums[-1])
    row = int(np.searchsorted(sums, target, side="right"))
    before = float(sums[row - 1]) if row else 0.0
    start = int(starts[row])
    return start + _pick(
        weights[start : start + 512].astype(np.float64), (target - before) / (float(sums[row]) - before)
    )


def _pick(weights: NDArray[np.float64], uniform: float) -> int:
    """The index whose share of the running sum holds `uniform` of the whole; never one of weight zero."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform * float(sums[-1]), side="right"))
    return min(index, int(np.searchsorted(sums, sums[-1])))  # rounding may point just past the end
