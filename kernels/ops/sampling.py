"""What samplers want of all rows of logits at once: tokens forbidden by masks, and the maxima of groups of neighbours.

    mask:          x[t] = x[t] - inf                            for each token t whose bit is 0
    group_maxima:  y[g] = max(x[g G], ..., x[g G + G - 1])      G = LOGIT_GROUP; the last group may be shorter

Subtracting leaves NaN what is NaN and makes NaN of +inf, so a mask hides no broken logit, and a maximum is NaN where
a logit is. The order of a maximum does not matter but for the sign of zeros. Rows need not be aligned, nor fill
vectors. Knows no sampler.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..layout import LOGIT_GROUP, SUMS
from ..operations import GROUP_MAXIMA, MASK, STEP_MASKS, STEP_ROWS
from ..simd.atomics import word
from ..simd.decorators import inlined
from ..simd.vocabulary import (
    LANES,
    bits_as_float,
    broadcast_int,
    first_lane_int,
    lane_numbers,
    load,
    load_scalar,
    max_lanes,
    maximum,
    replace_first,
    splat,
    splat_int,
    store,
    store_scalar,
    sum_of_16,
    to_int,
    where_less,
    zeros,
)
from .work_sharing import parallel_for

_MASK, _GROUP_MAXIMA = MASK.slots, GROUP_MAXIMA.slots
ITEM_LOGITS = 4096
"""Logits of a work item, whole groups and whole words of a mask: 16 KB, of which the maxima fill 4 cache lines."""
_WORD = 32
_FORBIDDEN = np.float32(-np.inf)


@inlined
def _items(columns: Any) -> Any:
    """Work items of a row."""
    return (columns + ITEM_LOGITS - 1) // ITEM_LOGITS


# ---- masks -------------------------------------------------------------------------------------------------------


@inlined
def _lane_bits() -> Any:
    """Lane l: 1 << l, by way of a float's exponent."""
    return to_int(bits_as_float((lane_numbers() + splat_int(127)) << 23))


@inlined
def _mask_word(x: Any, allowed: Any) -> None:
    """The logits of one word of a mask, from the address x on."""
    for first in range(0, _WORD, LANES):
        v = load(x + 4 * first)
        here = (splat_int(allowed) >> first) & _lane_bits()
        store(x + 4 * first, where_less(splat_int(0), here, v, v + splat(_FORBIDDEN)))


@inlined
def _mask_last(x: Any, allowed: Any, count: Any) -> None:
    """The `count` logits of a word that is not full."""
    for bit in range(count):
        if (allowed >> bit) & 1 == 0:
            store_scalar(x + 4 * bit, load_scalar(x + 4 * bit) + _FORBIDDEN)


@inlined
def _masked(op: Any, step: Any) -> Any:
    """Work items of `mask`; none if no row has a mask."""
    _, _, COLUMNS = _MASK
    return word(step, STEP_ROWS) * _items(word(op, COLUMNS)) if word(step, STEP_MASKS) != 0 else 0


@inlined
def mask(op: Any, step: Any, _thread: Any, item: Any) -> None:
    """A work item's logits in place. Words that allow all are passed over: their logits are not even read."""
    X, X_STRIDE, COLUMNS = _MASK
    columns = word(op, COLUMNS)
    row, first = item // _items(columns), item % _items(columns) * ITEM_LOGITS
    bits = word(word(step, STEP_MASKS), row)
    if bits == 0:
        return
    x = word(op, X) + row * word(op, X_STRIDE)
    for c in range(first, min(first + ITEM_LOGITS, columns), _WORD):
        allowed = first_lane_int(broadcast_int(bits + c // 8))
        if c + _WORD > columns:
            _mask_last(x + 4 * c, allowed, columns - c)
        elif allowed != -1:
            _mask_word(x + 4 * c, allowed)


# ---- maxima ------------------------------------------------------------------------------------------------------
# Of a group at x, full vectors:
#
#     largest = max of its vectors, lane by lane         4 vectors of 16 lanes
#     total   = sum of its vectors, lane by lane         NaN in a lane that has one
#     y[g]    = the largest lane
#
# A vector's maximum loses NaN, and keeping it costs three times as much as adding up all that is read. So where the
# sum of a work item is NaN its maxima are found again, one logit after the other. A sum may be NaN without a NaN, of
# infinities: that costs time alone.


@inlined
def _careful_maximum(x: Any, count: Any) -> Any:
    """The largest of `count` logits at the address x, NaN if one is."""
    largest = _FORBIDDEN
    for c in range(count):
        v = load_scalar(x + 4 * c)
        if v > largest or math.isnan(v):
            largest = v
    return largest


@inlined
def _careful_maxima(x: Any, first: Any, end: Any, y: Any) -> None:
    """Those of the groups that begin in first..end-1, and end there."""
    for c in range(first, end, LOGIT_GROUP):
        store_scalar(y + 4 * (c // LOGIT_GROUP), _careful_maximum(x + 4 * c, min(LOGIT_GROUP, end - c)))


@inlined
def _full_maxima(x: Any, first: Any, end: Any, y: Any) -> Any:
    """The same of full groups without NaN. Returns something that is NaN if there was one."""
    totals = zeros(SUMS)
    for c in range(first, end, LOGIT_GROUP):
        largest = total = load(x + 4 * c)
        for v in range(LANES, LOGIT_GROUP, LANES):
            one = load(x + 4 * c + 4 * v)
            largest, total = maximum(one, largest), total + one
        totals = replace_first(totals, totals[0] + total)
        store_scalar(y + 4 * (c // LOGIT_GROUP), max_lanes(largest))
    return sum_of_16(totals)


@inlined
def _grouped(op: Any, step: Any) -> Any:
    """Work items of `group_maxima`."""
    _, _, COLUMNS, _, _ = _GROUP_MAXIMA
    return word(step, STEP_ROWS) * _items(word(op, COLUMNS))


@inlined
def group_maxima(op: Any, _step: Any, _thread: Any, item: Any) -> None:
    """The maxima of a work item's groups."""
    X, X_STRIDE, COLUMNS, Y, Y_STRIDE = _GROUP_MAXIMA
    columns = word(op, COLUMNS)
    row, first = item // _items(columns), item % _items(columns) * ITEM_LOGITS
    x, y = word(op, X) + row * word(op, X_STRIDE), word(op, Y) + row * word(op, Y_STRIDE)
    end = min(first + ITEM_LOGITS, columns)
    full = end // LOGIT_GROUP * LOGIT_GROUP
    total = _full_maxima(x, first, full, y)
    _careful_maxima(x, first if math.isnan(total) else full, end, y)


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {"mask": parallel_for(_masked, mask), "group_maxima": parallel_for(_grouped, group_maxima)}
