"""How many positions each layer's key-value cache holds. Knows no attention maths."""

from __future__ import annotations

from edge_gemma.config import GemmaConfig

CAPACITY_STEP = 256


def layer_capacity(config: GemmaConfig, layer: int, context: int, chunk: int) -> int:
    """Positions that layer `layer` keeps for `context` tokens fed at most `chunk` at a time.

    A global layer keeps all of them. A local one keeps a ring: its window, and the chunk being written. Both are
    rounded up to CAPACITY_STEP.
    """
    needed = context
    if config.local_layers[layer] and config.window is not None:
        needed = min(context, config.window + chunk)
    return -(-needed // CAPACITY_STEP) * CAPACITY_STEP
