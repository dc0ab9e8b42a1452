"""How much memory a model takes at a given context, computed before anything is allocated.

Knows shapes and sizes only. All sizes are bytes, in Python integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edge_gemma.cache import ELEMENT_BYTES, layer_capacity
from edge_gemma.config import GemmaConfig
from edge_gemma.errors import ContextOverflowError, MemoryBudgetError
from edge_gemma.weights import Weights

KvType: TypeAlias = Literal["f16", "f32"]

DEFAULT_CHUNK = 256
BUFFER_LIMIT = 40 * 2**20
"""A smaller chunk is taken where the activations of DEFAULT_CHUNK rows would exceed this."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each kind. `weights` are pages of the mapped file, which processes share; the rest is our own."""

    weights: int
    kv_cache: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.buffers


def memory_plan(
    config: GemmaConfig, weights: Weights, context: int, *, chunk: int = DEFAULT_CHUNK, kv_type: KvType = "f16"
) -> MemoryPlan:
    """The plan for `context` positions. Raises ContextOverflowError outside 1..the model's trained context."""
    if not 1 <= context <= config.context_length:
        raise ContextOverflowError(f"a context of {context} is outside 1..{config.context_length}, the model's limit")
    return MemoryPlan(
        weights=sum(tensor.nbytes for tensor in weights.tensors()),
        kv_cache=kv_cache_bytes(config, context, chunk, ELEMENT_BYTES[kv_type]),
        buffers=buffer_bytes(config, chunk),
    )


def kv_cache_bytes(config: GemmaConfig, context: int, chunk: int, element_bytes: int) -> int:
    """Keys and values of all layers."""
    position_bytes = 2 * config.n_kv_heads * config.head_dim * element_bytes
    return position_bytes * sum(layer_capacity(config, i, context, chunk) for i in range(config.n_layers))


def buffer_bytes(config: GemmaConfig, chunk: int) -> int:
    """Activations of `chunk` rows: float32 rows, and 2 bytes a value where they are quantized for a product."""
    q_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    floats = 3 * config.d_model + 2 * q_width + 2 * kv_width + 2 * config.d_ff
    return chunk * (4 * floats + 2 * (config.d_model + q_width + config.d_ff))


def default_chunk(config: GemmaConfig) -> int:
    """Rows of a step where the user does not say: as many as fit BUFFER_LIMIT, at most DEFAULT_CHUNK."""
    chunk = DEFAULT_CHUNK
    while chunk > 32 and buffer_bytes(config, chunk) > BUFFER_LIMIT:
        chunk //= 2
    return chunk


def require_budget(
    config: GemmaConfig,
    weights: Weights,
    context: int,
    budget: int,
    *,
    chunk: int = DEFAULT_CHUNK,
    kv_type: KvType = "f16",
) -> MemoryPlan:
    """The plan, if cache and buffers fit `budget` bytes of our own memory.

    Raises MemoryBudgetError naming the largest context that does fit, before anything is allocated.
    """

    def own(positions: int) -> int:
        return buffer_bytes(config, chunk) + kv_cache_bytes(config, positions, chunk, ELEMENT_BYTES[kv_type])

    plan = memory_plan(config, weights, context, chunk=chunk, kv_type=kv_type)
    if own(context) <= budget:
        return plan
    fits, too_many = 0, context
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if own(middle) <= budget else (fits, middle)
    advice = f"a context of {fits} fits" if fits else "no context fits"
    raise MemoryBudgetError(f"a context of {context} takes {own(context)} bytes, the budget is {budget}; {advice}")
