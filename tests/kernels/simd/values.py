"""Operands for the tests of the SIMD vocabulary: the ends of a range, and random ones between."""

from __future__ import annotations

import numpy as np

from tests.kernels.harness import Array

NAN, INF = np.float32(np.nan), np.float32(np.inf)
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan, 3.0],
    np.float32,
)
LEFT, RIGHT = (a.ravel() for a in np.meshgrid(SPECIAL, SPECIAL))
"""Every pair of special values."""


def integers(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count).astype(np.int32)


def floats(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


ENDS = np.array([0, -1, 2**31 - 1, -(2**31)], np.int32)
WORDS, OTHERS = np.concatenate([integers(256, 1), ENDS]), np.concatenate([integers(256, 2), ENDS[::-1]])
