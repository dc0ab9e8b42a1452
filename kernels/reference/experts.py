"""Routing to experts and their products in NumPy: the definition of `router` and `experts`, bit for bit.

Knows no Numba, no address and no thread.    T rows   E experts   k choices of a row   N rows of an expert's matrix
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS

from .formats import Bytes, Floats, f32
from .operations import exp, fma, matmul, matmul_float

Ints64 = NDArray[np.int64]


def _order(logits: Floats) -> Ints64:
    """(T, E) to the numbers of the experts, the largest logit first; equal ones by number. -0 is less than 0, and what
    is no number is placed by its bits."""
    bits = logits.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return np.argsort(-keys, axis=1, kind="stable")


def route(logits: Floats, k: int, factor: float, scales: Floats | None = None) -> tuple[Ints64, Floats]:
    """(T, E) to the experts of each row by rank, and their shares, both (T, k): a softmax over all E, of which the k
    largest are divided by their sum, times the experts' scales. NaN in a row with a logit that is not finite."""
    experts = _order(logits)[:, :k]
    chosen = np.take_along_axis(logits, experts, axis=1)
    with np.errstate(invalid="ignore"):
        powers = exp((chosen - chosen[:, :1]) * f32(factor))
        total = np.where(np.isfinite(logits).all(axis=1), f32(0), f32(np.nan)).astype(f32)
        for j in range(k):
            total = total + powers[:, j]
        shares = np.asarray(powers / total[:, None], f32)
    return experts, shares if scales is None else shares * scales[experts]


def dispatch(experts: Ints64) -> tuple[list[tuple[int, int]], Ints64, Ints64]:
    """(T, k) to the groups, each an expert and its first pair; and in the order of the groups, the row of each pair
    (T k), and the place of each choice (T, k)."""
    order = np.argsort(experts.ravel(), kind="stable")
    numbers, firsts = np.unique(experts.ravel()[order], return_index=True)
    places = np.empty(experts.size, np.int64)
    places[order] = np.arange(experts.size)
    groups = [(int(e), int(first)) for e, first in zip(numbers, firsts, strict=True)]
    return groups, order // experts.shape[1], places.reshape(experts.shape)


def products(name: str, matrices: Bytes, x: Bytes | Floats, experts: Ints64) -> Floats:
    """(E, N, row bytes) of all experts, and of each result its expert (R,) and its input (R, ...), rows of float32 or
    for a quantized format of int8 blocks: the results (R, N), each as a matrix product has it."""
    multiply = matmul_float if FORMATS[name].is_float else matmul
    return np.concatenate([multiply(name, matrices[e], row[None]) for e, row in zip(experts, x, strict=True)])


def combine(x: Floats, shares: Floats, places: Ints64) -> Floats:
    """(T k, columns) of results to (T, columns): their sum times the shares, in the order of rank."""
    y = np.zeros((len(shares), x.shape[1]), f32)
    for j in range(shares.shape[1]):
        y = fma(shares[:, j, None], x[places[:, j]], y)
    return y
