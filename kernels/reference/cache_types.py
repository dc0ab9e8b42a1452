"""Pages of the key-value cache in NumPy: what their elements mean. The slow twin of `ops.cache_types`.

Knows no attention. Pages of floats are arrays (P, 2, K, SPAN * D) of their type; those of q8_0 are bytes, (P, 2, K, n).

    P pages   K key-value heads   D head's size
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..layout import CACHE_BLOCK, CACHE_BLOCK_BYTES, LANES, SPAN
from .formats import Bytes, Floats, f32

Pages = NDArray[np.float16] | Floats | Bytes
"""Keys and values of a span each, all heads of one layer, as drawn in `ops.attention`."""
Blocks = NDArray[np.void]

_KEYS = np.dtype([("q", np.int8, (CACHE_BLOCK, LANES)), ("d", np.float16, (LANES,))])


def head_dim(pages: Pages) -> int:
    """Of pages' heads."""
    width = pages.shape[-1] // SPAN
    return width // CACHE_BLOCK_BYTES["q8_0"] * CACHE_BLOCK if pages.dtype == np.uint8 else width


def float_views(pages: Pages) -> tuple[Pages, Pages]:
    """Views of pages of floats: keys (P, K, SPAN / LANES, D, LANES), values (P, K, SPAN, D)."""
    size, keys, values = head_dim(pages), pages[:, 0], pages[:, 1]
    return keys.reshape(*keys.shape[:2], -1, size, LANES), values.reshape(*values.shape[:2], SPAN, size)


def q8_0_views(pages: Bytes) -> tuple[Blocks, Blocks]:
    """Views of pages of q8_0: keys (P, K, SPAN / LANES, D / 32) and values (P, K, SPAN), each of fields q and d."""
    size = head_dim(pages)
    row = np.dtype([("q", np.int8, (size,)), ("d", np.float16, (size // CACHE_BLOCK,))])
    keys = pages[:, 0].view(_KEYS)
    return keys.reshape(*keys.shape[:2], SPAN // LANES, -1), pages[:, 1].view(row)


def read(pages: Pages) -> tuple[Floats, Floats]:
    """Keys and values as float32, (P, K, SPAN, D) each."""
    if pages.dtype != np.uint8:
        keys, values = float_views(pages)
        return keys.swapaxes(3, 4).reshape(values.shape).astype(f32), values.astype(f32)
    keys, values = q8_0_views(pages)
    k = keys["q"].astype(f32) * keys["d"][..., None, :].astype(f32)  # (P, K, SPAN / LANES, D / 32, 32, LANES)
    v = values["q"].astype(f32) * values["d"].astype(f32).repeat(CACHE_BLOCK, axis=-1)
    return np.moveaxis(k, 5, 3).reshape(v.shape), v


def write(pages: Pages, page: int, slot: int, k: Floats, v: Floats) -> None:
    """The keys and values (K, D) of a position."""
    if pages.dtype != np.uint8:
        keys, values = float_views(pages)
        keys[page, :, slot // LANES, :, slot % LANES] = k
        values[page, :, slot] = v
        return
    blocks, rows = q8_0_views(pages)
    q, d = quantize(k)
    blocks["q"][page, :, slot // LANES, :, :, slot % LANES] = q
    blocks["d"][page, :, slot // LANES, :, slot % LANES] = d
    q, d = quantize(v)
    rows["q"][page, :, slot] = q.reshape(v.shape)
    rows["d"][page, :, slot] = d


def quantize(x: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """(K, D) to q (K, D / 32, 32) and d (K, D / 32)."""
    blocks = x.reshape(len(x), -1, CACHE_BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    d = largest / f32(127)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scaled = blocks * np.where(largest >= f32(2.0**-120), f32(1) / d, f32(0))[..., None]
        scaled = np.where(np.isnan(scaled), f32(0), scaled)
        whole = np.trunc(scaled)
        away = np.where(np.abs(scaled - whole) >= f32(0.5), np.copysign(f32(1), scaled), f32(0))
        return (whole + away).astype(np.int8), d.astype(np.float16)
