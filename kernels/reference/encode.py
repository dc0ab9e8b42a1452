"""Q4_0 of float32 values in NumPy: the definition of `encode.plain`, bit for bit. Knows no Numba and no address."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .formats import Bytes, Floats, f32

PEAK, GRIDS = -8.0, (4.0, 7.0, 6.0, 5.0)
NEAR, EXACT = f32(5 * 2.0**-9), f32(2.0**-12)


def _inverse(a: Floats) -> Floats:
    """1 / a, and 0 where that is not finite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = f32(1) / a
    return np.where(np.abs(inverse) < f32(3.0e38), inverse, f32(0))


def _on_grid(x: Floats, scale: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Whether values (n, 32) are near to levels, and the scales (n,), better where values were rounded.

    Sums go from the first value to the last.
    """
    u = x * _inverse(scale)[:, None]
    q = np.minimum(np.rint(u), f32(7))
    r = u - q
    rq = qq = np.zeros(len(x), np.float32)
    for i in range(32):
        rq, qq = rq + r[:, i] * q[:, i], qq + q[:, i] * q[:, i]
    ratio = np.divide(rq, qq, out=np.zeros_like(rq), where=qq > 0)
    better = np.where(np.abs(r).max(axis=1) > EXACT, scale + ratio * scale, scale)
    return (np.abs(r) - np.abs(u) * NEAR <= 0).all(axis=1), better


def q4_0_scales(x: Floats) -> Floats:
    """Blocks (n, 32) to their scales (n,), not yet rounded: the reference's, or that of another grid they are on."""
    peak = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
    chosen = peak / f32(PEAK)
    found, _ = _on_grid(x, chosen)
    for grid in GRIDS:
        on_grid, scale = _on_grid(x, peak / f32(grid))
        chosen = np.where(on_grid & ~found, scale, chosen)
        found |= on_grid
    return np.asarray(chosen, f32)


def q4_0(values: Floats) -> Bytes:
    """(rows, columns) to (rows, bytes of a row)."""
    x = values.reshape(-1, 32)
    scale = q4_0_scales(x)
    numbers = np.minimum(x * _inverse(scale)[:, None] + f32(8.5), f32(15)).astype(np.int32).astype(np.uint8)
    halves = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    return np.hstack([halves, numbers[:, :16] | numbers[:, 16:] << 4]).reshape(len(values), -1)
