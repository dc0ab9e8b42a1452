"""From the logits of one position to the next token id.

Knows no model, no text and no stop rule. The chain is llama.cpp's: penalties, top-k, top-p, min-p, temperature, draw.
Each step is a pure function, and there is no state: the random number of a position is a function of the seed, of
which answer to it this is, and of the position. Ties go to the lower id, everywhere.
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
from edge_gemma.engine.grouped_logits import GroupedLogits, Ids, Logits

# Widest change the API accepts; OpenAI's range for both additive penalties.
ADDITIVE_LIMIT = 2.0
SEED_BITS = 64
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
    """Draws token ids by `params`, of which `seed` is the one in use. The same seed, choice, position and logits give
    the same token, whatever was drawn before. `choice` tells apart the answers to one prompt and seed."""

    def __init__(self, params: SamplingParams, choice: int = 0) -> None:
        """Raises ValueError for a choice that is not in 0..2^64 - 1."""
        if not 0 <= choice < 2**SEED_BITS:
            raise ValueError(f"choice must be in 0..2^{SEED_BITS} - 1, got {choice}")
        self.params, self.choice = params, choice
        self.seed: int = secrets.randbits(32) if params.seed is None else params.seed

    def sample(self, logits: Logits, maxima: Logits | None, history: Sequence[int], position: int) -> int:
        """The id of the token at `position` of its sequence, the first being 0.

        logits: (vocab,) float32; the same bits afterwards, though penalties change some meanwhile. maxima: (groups,)
        float32, what GROUP_MAXIMA finds; None has them found here. history: the text so far as ids.
        Raises NumericalError where a logit is NaN or +inf or all are -inf, ValueError for a wrong shape, type or id.
        """
        if position < 0:
            raise ValueError(f"position must not be negative, got {position}")
        row = GroupedLogits(logits, maxima)
        if not self.params.penalizes:
            return self._choose(row, position)
        with row.changed(*penalties(logits, history, self.params)) as changed:
            return self._choose(changed, position)

    def _choose(self, row: GroupedLogits, position: int) -> int:
        params = self.params
        if params.temperature == 0:
            return row.first_largest()
        if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
            return draw_from_all(row, params.temperature, self._uniform(position))
        kept = min_p(top_p(_select(row, params), params.top_p), params.min_p)
        if kept.ids.size == 1:
            return int(kept.ids[0])
        return draw(kept, params.temperature, self._uniform(position))

    def _uniform(self, position: int) -> float:
        return uniform(self.seed, self.choice, position)


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1), 53 bits, of a position, by Philox 4x64 (doi:10.1145/2063384.2063405).

    Raw Philox output is the same in every NumPy version. Making a generator takes 7 us; in plain Python the ten rounds
    take 4.
    """
    key, counter = np.array([seed, choice], np.uint64), np.array([position, 0, 0, 0], np.uint64)
    return (int(Philox(key=key, counter=counter).random_raw()) >> 11) * 2.0**-53


def penalties(logits: Logits, history: Sequence[int], params: SamplingParams) -> tuple[Ids, Logits]:
    """The tokens of the end of `history`, their ids rising, and their logits with the three penalties applied."""
    recent = history if params.penalty_last_n < 0 else history[-params.penalty_last_n :]
    ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    if ids.size and not 0 <= ids[0] <= ids[-1] < logits.size:
        raise ValueError(f"history has a token id outside 0..{logits.size - 1}: {ids[0] if ids[0] < 0 else ids[-1]}")
    seen = logits[ids].astype(np.float64)
    seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    seen -= counts * params.frequency_penalty + params.presence_penalty
    with np.errstate(over="ignore"):  # to an infinity, which `GroupedLogits` tells of if it is the largest
        return ids, seen.astype(np.float32)


def _select(row: GroupedLogits, params: SamplingParams) -> Candidates:
    """The candidates in order, cut as far as top-k, or where that is off what the later steps allow."""
    if params.top_k:
        return top_k(row, params.top_k)
    if params.min_p > 0:
        return _likely(row, params)
    return _nucleus(row, params.top_p)


def top_k(row: GroupedLogits, k: int) -> Candidates:
    """The k largest logits (fewer where fewer are above -inf)."""
    row.largest()
    kept = _sorted(row, row.bound_of(k))
    ids, values = kept.ids[:k], kept.logits[:k]
    return Candidates(ids, values, float(np.exp(values - values[0]).sum()))


def _sorted(row: GroupedLogits, bound: float, total: float = math.nan) -> Candidates:
    """All tokens whose logit is at least `bound` and above -inf, in the order of `Candidates`."""
    ids, values = row.at_least(bound)
    order = np.argsort(-values, kind="stable")
    return Candidates(ids[order], values[order].astype(np.float64), total)


def _likely(row: GroupedLogits, params: SamplingParams) -> Candidates:
    """The tokens min-p will keep. Cutting before top-p is the same as after it: both keep a beginning of one order."""
    largest = row.largest()
    # One float32 step lower, for `logits >= bound` is decided in float32 and `min_p` decides exactly.
    bound = float(np.nextafter(np.float32(largest + math.log(params.min_p)), np.float32(-np.inf)))
    return _sorted(row, bound, _total(row.logits, largest) if params.top_p < 1 else math.nan)


def _nucleus(row: GroupedLogits, p: float) -> Candidates:
    """As many of the largest logits as hold the probability p; sorting all 262,144 takes 28 ms."""
    total = _total(row.logits, row.largest())
    k = 1024
    while True:
        kept = top_k(row, k)
        if kept.total >= p * total or k >= row.logits.size:
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


def draw_from_all(row: GroupedLogits, temperature: float, uniform: float) -> int:
    """`draw` over the whole vocabulary, in two levels: runs of tokens, then one run; one long running sum is slow."""
    weights = _weights(row.logits, row.largest(), temperature)
    starts = np.arange(0, weights.size, 512)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * float(sums[-1])
    run = int(np.searchsorted(sums, target, side="right"))
    before = float(sums[run - 1]) if run else 0.0
    start = int(starts[run])
    return start + _pick(
        weights[start : start + 512].astype(np.float64), (target - before) / (float(sums[run]) - before)
    )


def _pick(weights: NDArray[np.float64], uniform: float) -> int:
    """The index whose share of the running sum holds `uniform` of the whole; never one of weight zero."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform * float(sums[-1]), side="right"))
    return min(index, int(np.searchsorted(sums, sums[-1])))  # rounding may point just past the end
