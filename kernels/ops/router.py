"""Which experts a row goes to, which rows an expert gets, and the sum of what they made of a row.

    route:     of E router logits l, the k largest:  share[j] = e[j] / (e[0] + ... + e[k-1]) * scale[expert j]
               with e[j] = exp((l[j] - l[0]) * factor), l[0] the largest: what is left of a softmax over all E
    dispatch:  the pairs (row, choice), grouped by expert; a counting sort, by one thread
    combine:   y = share[0] x[0] + ... + share[k-1] x[k-1], one fma after the other in the order of rank

A row's choices and its sum depend on no other row. A logit that is not finite makes all shares of its row NaN; the
experts are k different ones whatever the logits are. Knows no expert and no format.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..operations import COMBINE, DISPATCH, ROUTE, STEP_ROWS
from ..simd.atomics import real, set_word, word
from ..simd.decorators import inlined
from ..simd.transcendental import exp
from ..simd.vocabulary import (
    LANES,
    broadcast,
    broadcast_int,
    first_lane,
    first_lane_int,
    fma,
    load,
    load_scalar,
    splat,
    store,
    store_scalar,
)
from .elementwise import parallel_for_columns
from .work_sharing import parallel_for

_ROUTE, _DISPATCH, _COMBINE = ROUTE.slots, DISPATCH.slots, COMBINE.slots
_VECTOR = 4 * LANES
_EXPONENT = np.int64(0x7F800000)
"""All these bits of a float32 are set where it is not finite."""


# ---- route -------------------------------------------------------------------------------------------------------


@inlined
def _bits(x: Any, e: Any) -> Any:
    return np.int64(first_lane_int(broadcast_int(x + 4 * e)))


@inlined
def _key(x: Any, e: Any) -> Any:
    """What orders the logits at x: a float's bits as an integer that rises with it, then smaller numbers first."""
    bits = _bits(x, e)
    return ((bits ^ ((bits >> 63) & 0x7FFFFFFF)) << 32) + (2**31 - e)


@inlined
def _following(x: Any, columns: Any, key: Any) -> Any:
    """The number whose key is the largest below `key`."""
    best, found = np.int64(-(2**63)), 0
    for e in range(columns):
        this = _key(x, e)
        if best < this < key:
            best, found = this, e
    return found


@inlined
def _zero_if_finite(x: Any, columns: Any) -> Any:
    """0 where all are, else NaN."""
    result = np.float32(0.0)
    for e in range(columns):
        if _bits(x, e) & _EXPONENT == _EXPONENT:
            result = np.float32(np.nan)
    return result


@inlined
def _choose(x: Any, columns: Any, choices: Any, experts: Any) -> None:
    key = np.int64(2**63 - 1)
    for j in range(choices):
        e = _following(x, columns, key)
        set_word(experts, j, e)
        key = _key(x, e)


@inlined
def route(op: Any, step: Any, _thread: Any, row: Any) -> None:
    """A row's choices by rank. There are at least as many columns as choices."""
    X, X_STRIDE, COLUMNS, CHOICES, FACTOR, SCALES, EXPERTS, SHARES = _ROUTE
    columns, choices, x = word(op, COLUMNS), word(op, CHOICES), word(op, X) + row * word(op, X_STRIDE)
    experts, shares = word(op, EXPERTS) + 8 * row * choices, word(op, SHARES) + 4 * row * choices
    _choose(x, columns, choices, experts)
    largest, total = load_scalar(x + 4 * word(experts, 0)), _zero_if_finite(x, columns)
    for j in range(choices):
        share = first_lane(exp(splat((load_scalar(x + 4 * word(experts, j)) - largest) * real(op, FACTOR))))
        total += share
        store_scalar(shares + 4 * j, share)
    for j in range(choices):
        share = load_scalar(shares + 4 * j) / total
        if word(op, SCALES) != 0:
            share *= load_scalar(word(op, SCALES) + 4 * word(experts, j))
        store_scalar(shares + 4 * j, share)


@inlined
def _rows(_op: Any, step: Any) -> Any:
    return word(step, STEP_ROWS)


# ---- dispatch ----------------------------------------------------------------------------------------------------


@inlined
def _count(experts: Any, pairs: Any, counts: Any, columns: Any) -> None:
    for e in range(columns):
        set_word(counts, e, 0)
    for p in range(pairs):
        set_word(counts, word(experts, p), word(counts, word(experts, p)) + 1)


@inlined
def _make_groups(groups: Any, counts: Any, columns: Any) -> None:
    """Counts become the number of each expert's first pair."""
    chosen, first = 0, 0
    for e in range(columns):
        count = word(counts, e)
        set_word(counts, e, first)
        if count != 0:
            set_word(groups, 1 + 2 * chosen, e)
            set_word(groups, 2 + 2 * chosen, first)
            chosen, first = chosen + 1, first + count
    set_word(groups, 2 + 2 * chosen, first)
    set_word(groups, 0, chosen)


@inlined
def dispatch(op: Any, step: Any, _thread: Any, _item: Any) -> None:
    """All pairs of the step."""
    EXPERTS, COLUMNS, CHOICES, GROUPS, ROWS, PLACES = _DISPATCH
    experts, columns, choices, groups = word(op, EXPERTS), word(op, COLUMNS), word(op, CHOICES), word(op, GROUPS)
    counts, pairs = groups + 8 * (1 + 2 * (columns + 1)), word(step, STEP_ROWS) * choices
    _count(experts, pairs, counts, columns)
    _make_groups(groups, counts, columns)
    for p in range(pairs):
        e = word(experts, p)
        place = word(counts, e)
        set_word(counts, e, place + 1)
        set_word(word(op, ROWS), place, p // choices)
        set_word(word(op, PLACES), p, place)


@inlined
def _one(_op: Any, _step: Any) -> Any:
    return 1


# ---- combine -----------------------------------------------------------------------------------------------------


@inlined
def combine(op: Any, _step: Any, _thread: Any, row: Any, first: Any, end: Any) -> None:
    """Columns first..end-1 of a row's sum."""
    X, X_STRIDE, CHOICES, SHARES, PLACES, Y, Y_STRIDE, _ = _COMBINE
    choices, y = word(op, CHOICES), word(op, Y) + row * word(op, Y_STRIDE)
    for c in range(4 * first, 4 * end, _VECTOR):
        store(y + c, splat(0.0))
    for j in range(choices):
        share = broadcast(word(op, SHARES) + 4 * (row * choices + j))
        x = word(op, X) + word(word(op, PLACES), row * choices + j) * word(op, X_STRIDE)
        for c in range(4 * first, 4 * end, _VECTOR):
            store(y + c, fma(share, load(x + c), load(y + c)))


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {
        "route": parallel_for(_rows, route),
        "dispatch": parallel_for(_one, dispatch),
        "combine": parallel_for_columns(_COMBINE[7], combine),
    }
