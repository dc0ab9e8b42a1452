"""What a layer keeps of a sequence, and how positions enter it, as a model says it. Knows no memory and no kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv:2104.09864).

    Dimensions j and j + dims / 2 of a head are a pair, or neighbours are: dimensions 2j and 2j + 1. Pair j turns by the
    angle position * base**(-2j / dims) / (scale * factors[j]). factors: of each pair; None: all 1.
    """

    dims: int
    base: float
    scale: float = 1.0
    factors: tuple[float, ...] | None = None
    neighbours: bool = False


@dataclass(frozen=True)
class AttentionState:
    """Keys and values of a layer: `kv_heads` heads of `head_dim` float values each a position.

    window: a key is visible where query position - key position < window; None: all are.
    """

    kv_heads: int
    head_dim: int
    window: int | None = None
