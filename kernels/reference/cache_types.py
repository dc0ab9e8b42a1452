"""Pages of the key-value cache in NumPy: what their elements mean. The slow twin of `ops.cache_types`.

Knows no attention. Pages of floats are arrays (P, 2, K, SPAN * D) of their type; those of q8_0 are bytes, (P, 2, K, n).

    P pages   K key-value heads   D head's size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layout import CACHE_BLOCK, CACHE_BLOCK_BYTES, LANES, SPAN
from .formats import Bytes, Floats, f32

Pages = NDArray[np.float16] | Floats | Bytes
"""Keys and values of a span each, all heads of one layer, as drawn in `ops.attention`."""
Blocks = NDArray[np.void]


@dataclass(frozen=True)
class Part:
    """Keys or values of a page: `q` (K, SPAN, D), of which `d` (K, SPAN, n) has the scales of D / n neighbours."""

    q: Floats
    d: Floats

    def repeated(self, count: int) -> Part:
        """Each head so many times."""
        return Part(self.q.repeat(count, axis=0), self.d.repeat(count, axis=0))


_KEYS = np.dtype([("q", np.int8, (CACHE_BLOCK, LANES)), ("d", np.float16, (LANES,))])


def head_dim(pages: Pages) -> int:
    """Of pages' heads."""
    width: int = pages.shape[-1] // SPAN
    return width // CACHE_BLOCK_BYTES["q8_0"] * CACHE_BLOCK if pages.dtype == np.uint8 else width


def float_views(pages: Pages) -> tuple[Pages, Pages]:
    """Views of pages of floats: keys (P, K, SPAN / LANES, D, LANES), values (P, K, SPAN, D)."""
    size, keys, values = head_dim(pages), pages[:, 0], pages[:, 1]
    return keys.reshape(*keys.shape[:2], -1, size, LANES), values.reshape(*values.shape[:2], SPAN, size)


def q8_0_views(pages: Pages) -> tuple[Blocks, Blocks]:
    """Views of pages of q8_0, of fields q and d: keys (P, K, SPAN / LANES, D / 32), values (P, K, SPAN / LANES)."""
    size = head_dim(pages)
    halves: NDArray[Any] = pages
    fields = [("q", np.int8, (LANES, size)), ("d", np.float16, (size // CACHE_BLOCK, LANES))]
    keys = halves[:, 0].view(_KEYS)
    return keys.reshape(*keys.shape[:2], SPAN // LANES, -1), halves[:, 1].view(np.dtype(fields))


def read(page: Pages) -> tuple[Part, Part]:
    """Keys and values of one page of pages, (1, 2, K, n)."""
    if page.dtype != np.uint8:
        keys, values = (a[0].astype(f32) for a in float_views(page))
        one = np.ones((*values.shape[:2], 1), f32)
        return Part(keys.swapaxes(2, 3).reshape(values.shape), one), Part(values, one)
    blocks_of_keys, blocks_of_values = (a[0] for a in q8_0_views(page))
    shape = page.shape[2], SPAN, head_dim(page)
    q = blocks_of_keys["q"].astype(f32)  # (K, SPAN / LANES, D / 32, 32, LANES)
    k = Part(np.moveaxis(q, 4, 2).reshape(shape), _by_position(blocks_of_keys["d"]))
    return k, Part(blocks_of_values["q"].astype(f32).reshape(shape), _by_position(blocks_of_values["d"]))


def _by_position(d: NDArray[np.float16]) -> Floats:
    """(K, SPAN / LANES, D / 32, LANES) to (K, SPAN, D / 32)."""
    return d.astype(f32).swapaxes(2, 3).reshape(len(d), SPAN, -1)


def write(pages: Pages, page: int, slot: int, k: Floats, v: Floats) -> None:
    """The keys and values (K, D) of a position."""
    group, lane = divmod(slot, LANES)
    if pages.dtype != np.uint8:
        keys, values = float_views(pages)
        keys[page, :, group, :, lane] = k
        values[page, :, slot] = v
        return
    blocks_of_keys, blocks_of_values = q8_0_views(pages)
    q, d = quantize(k)
    blocks_of_keys["q"][page, :, group, :, :, lane] = q
    blocks_of_keys["d"][page, :, group, :, lane] = d
    q, d = quantize(v)
    blocks_of_values["q"][page, :, group, lane] = q.reshape(v.shape)
    blocks_of_values["d"][page, :, group, :, lane] = d


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
