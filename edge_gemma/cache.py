"""The key-value cache: how many positions each layer keeps, and the memory for them. Knows no attention maths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.config import GemmaConfig

CAPACITY_STEP = 256
ELEMENT_BYTES = {"f16": 2, "f32": 4}


def layer_capacity(config: GemmaConfig, layer: int, context: int, chunk: int) -> int:
    """Positions that layer `layer` keeps for `context` tokens fed at most `chunk` at a time.

    A global layer keeps all of them. A local one keeps a ring: its window, and the chunk being written. Both are
    rounded up to CAPACITY_STEP.
    """
    needed = context
    if config.local_layers[layer] and config.window is not None:
        needed = min(context, config.window + chunk)
    return -(-needed // CAPACITY_STEP) * CAPACITY_STEP


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, by address; the arrangement inside a head is the attention kernels' business.

    | sequence 0: head 0, head 1, ... | sequence 1 ... |, keys and values apart; position p has slot p mod capacity.
    """

    name: str
    capacity: int
    heads: int
    head_dim: int
    element_bytes: int
    keys: int
    values: int

    @property
    def head_bytes(self) -> int:
        """From one head to the next."""
        return self.capacity * self.head_dim * self.element_bytes

    @property
    def sequence_bytes(self) -> int:
        """From one sequence to the next."""
        return self.heads * self.head_bytes


class KVCache:
    """One `LayerCache` for each layer. Memory is zeroed and not resident until it is written."""

    def __init__(self, config: GemmaConfig, context: int, chunk: int, kv_type: str) -> None:
        self._memory: list[NDArray[np.uint8]] = []
        self.layers = [self._layer(config, i, context, chunk, ELEMENT_BYTES[kv_type]) for i in range(config.n_layers)]

    def _layer(self, config: GemmaConfig, layer: int, context: int, chunk: int, size: int) -> LayerCache:
        capacity = layer_capacity(config, layer, context, chunk)
        keys, values = (np.zeros(capacity * config.n_kv_heads * config.head_dim * size, np.uint8) for _ in range(2))
        self._memory += [keys, values]
        return LayerCache(
            f"cache of layer {layer}",
            capacity,
            config.n_kv_heads,
            config.head_dim,
            size,
            keys.ctypes.data,
            values.ctypes.data,
        )
