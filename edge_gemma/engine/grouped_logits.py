"""A row of logits with the maxima of its groups, by which the largest logits are found without reading the others.

Knows no sampling. A group is LOGIT_GROUP neighbours; the k-th largest of the maxima bounds the k-th largest logit from
below, for k groups have a logit at least as large, and only groups that reach a bound can have a logit that does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import NumericalError
from edge_gemma.kernels.layout import LOGIT_GROUP, logit_groups

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

LOWEST = float(np.finfo(np.float32).min)
_OFFSETS = np.arange(LOGIT_GROUP)
_COARSE = 8
"""A bound is looked for in two steps where there are at least so many values for each value of the first step."""
_MANY = 8
"""Where more than one of so many groups is concerned, all are as quick."""


class GroupedLogits:
    """One row: `logits` (vocab,) float32, and `maxima` (groups,) float32, NaN where a logit of the group is."""

    def __init__(self, logits: Logits, maxima: Logits | None = None) -> None:
        """Without `maxima` they are found here, in 0.1 ms. Raises ValueError for a wrong shape or type."""
        if logits.ndim != 1 or logits.size == 0 or logits.dtype != np.float32:
            raise ValueError(f"logits must be float32 of shape (vocab,), got {logits.dtype} {logits.shape}")
        groups = logit_groups(logits.size)
        if maxima is not None and (maxima.shape != (groups,) or maxima.dtype != np.float32):
            raise ValueError(f"maxima must be float32 of shape ({groups},), got {maxima.dtype} {maxima.shape}")
        self.logits = logits
        self.maxima = _maxima_of(logits) if maxima is None else maxima

    def largest(self) -> float:
        """The largest logit. Raises NumericalError where one is NaN or +inf, or all are -inf."""
        largest = float(self.maxima.max())  # NumPy's maximum passes NaN on, so this one value tells of all
        if not math.isfinite(largest):
            raise NumericalError(f"cannot choose a token: the largest logit is {largest}")
        return largest

    def first_largest(self) -> int:
        """The lowest id of those with the largest logit. Raises NumericalError as `largest`."""
        self.largest()
        first = int(self.maxima.argmax()) * LOGIT_GROUP
        return first + int(self.logits[first : first + LOGIT_GROUP].argmax())

    def bound_of(self, k: int) -> float:
        """A number that at least k logits reach, close to the k-th largest; -inf where there are not so many."""
        if k >= self.logits.size:
            return -math.inf
        return kth_largest(self.maxima if k <= self.maxima.size else self.logits, k)

    def at_least(self, bound: float) -> tuple[Ids, Logits]:
        """The ids, rising, and the values of all logits that are at least `bound` and above -inf."""
        bound = max(bound, LOWEST)
        groups = np.flatnonzero(self.maxima >= bound)
        if groups.size > self.maxima.size // _MANY:
            ids = np.flatnonzero(self.logits >= bound)
            return ids, self.logits[ids]
        ids = (groups[:, None] * LOGIT_GROUP + _OFFSETS).ravel()
        ids = ids[: ids.searchsorted(self.logits.size)]  # the last group may be shorter
        values = self.logits[ids]
        reached = np.flatnonzero(values >= bound)
        return ids[reached], values[reached]

    @contextmanager
    def changed(self, ids: Ids, values: Logits) -> Iterator[GroupedLogits]:
        """The row with other `values` at `ids` for as long as the context lasts; then it has the same bits as before.

        The memory itself is changed meanwhile, for copying it would take as long as all the rest; if it is read-only,
        it is copied nevertheless.
        """
        logits = self.logits if self.logits.flags.writeable else self.logits.copy()
        before = logits[ids]
        try:
            logits[ids] = values
            yield GroupedLogits(logits, self._renewed(logits, ids, before))
        finally:
            logits[ids] = before

    def _renewed(self, logits: Logits, ids: Ids, before: Logits) -> Logits:
        """The maxima after the logits at `ids`, `before`, have become what they are now.

        Most were not the largest of their groups, nor are they now.
        """
        groups = ids // LOGIT_GROUP
        were = self.maxima[groups]
        groups = groups[(before >= were) | (logits[ids] > were)]
        if groups.size > self.maxima.size // _MANY:
            return _maxima_of(logits)
        members = np.minimum(groups[:, None] * LOGIT_GROUP + _OFFSETS, logits.size - 1)
        maxima = self.maxima.copy()
        maxima[groups] = logits[members].max(axis=1)
        return maxima


def _maxima_of(logits: Logits) -> Logits:
    maxima: Logits = np.maximum.reduceat(logits, np.arange(0, logits.size, LOGIT_GROUP))
    return maxima


def kth_largest(values: Logits, k: int) -> float:
    """The k-th largest of at least k values without NaN.

    As for logits, the k-th largest maximum of coarser groups leaves few to partition: a third of the time.
    """
    groups = 2 * max(k, LOGIT_GROUP)
    if values.size >= _COARSE * groups:
        each = values.size // groups
        maxima = values[: each * groups].reshape(each, groups).max(axis=0)
        values = values[values >= np.partition(maxima, -k)[-k]]
    return float(np.partition(values, -k)[-k])
