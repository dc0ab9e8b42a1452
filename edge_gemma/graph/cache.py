"""The key-value cache: how many positions each layer keeps, and the memory for them. Knows no attention maths."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.states import AttentionState
from edge_gemma.memory import memory_for

CAPACITY_STEP = 256
ELEMENT_BYTES = {"f16": 2, "f32": 4}


def layer_capacity(state: AttentionState, context: int, chunk: int) -> int:
    """Positions that a layer keeps for `context` tokens fed at most `chunk` at a time.

    A global layer keeps all of them. A local one keeps a ring: its window, and the chunk being written. Both are
    rounded up to CAPACITY_STEP.
    """
    needed = context if state.window is None else min(context, state.window + chunk)
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
    keys: int = 0
    values: int = 0

    @property
    def head_bytes(self) -> int:
        """From one head to the next."""
        return self.capacity * self.head_dim * self.element_bytes

    @property
    def sequence_bytes(self) -> int:
        """From one sequence to the next."""
        return self.heads * self.head_bytes


def plan_layers(states: Sequence[AttentionState], context: int, chunk: int, kv_type: str) -> list[LayerCache]:
    """The cache of each layer, without memory."""
    return [
        LayerCache(
            name=f"cache of layer {i}",
            capacity=layer_capacity(state, context, chunk),
            heads=state.kv_heads,
            head_dim=state.head_dim,
            element_bytes=ELEMENT_BYTES[kv_type],
        )
        for i, state in enumerate(states)
    ]


def zeroed(size: int) -> NDArray[np.uint8]:
    """Memory that becomes resident as it is written, a small page at a time.

    With huge pages, as NumPy asks for, the first token would make nearly all of it resident: it writes a little for
    each head. Reading is as fast without them, since attention asks for what it reads next.
    """
    if sys.platform != "linux":
        return np.zeros(size, np.uint8)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages knows no such advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


class KVCache:
    """A `LayerCache` for each layer, with memory for `sequences`: zeroed, and not resident until it is written."""

    def __init__(
        self, states: Sequence[AttentionState], context: int, chunk: int, kv_type: str, sequences: int = 1
    ) -> None:
        """Raises MemoryBudgetError."""
        self._memory: list[NDArray[np.uint8]] = []
        layers = plan_layers(states, context, chunk, kv_type)
        what = f"the {kv_type} key-value cache of a context of {context}"
        advice = "open with a smaller context" + (' or kv_type="f16"' if kv_type == "f32" else "")
        with memory_for(what, sequences * sum(2 * layer.sequence_bytes for layer in layers), advice):
            self.layers = [self._with_memory(layer, sequences * layer.sequence_bytes) for layer in layers]

    def _with_memory(self, layer: LayerCache, size: int) -> LayerCache:
        return replace(layer, keys=self._allocate(size), values=self._allocate(size))

    def _allocate(self, size: int) -> int:
        self._memory.append(zeroed(size))
        return self._memory[-1].ctypes.data
