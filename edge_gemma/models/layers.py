"""What may differ from layer to layer, and in which order kinds of layers come. Knows no file and no architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_gemma.graph.states import Rope


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer."""

    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope: Rope
    window: int | None = None
    """A key is visible where query position - key position < window. None: the layer is global, all are."""
    shared_with: int | None = None
    """The earlier layer whose keys and values it attends to, having none of its own."""
    keys_are_values: bool = False
    """Values are made of the same product as keys."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts beside the feed-forward part: `used` of `count`, each `d_ff` wide."""

    count: int
    used: int
    d_ff: int


def periodic(period: int, n_layers: int) -> tuple[bool, ...]:
    """Which layers are local where every `period`-th one is global."""
    return tuple(i % period < period - 1 for i in range(n_layers))


def alike_but_for_windows(
    layer: LayerConfig, windows: tuple[int | None, ...], local_rope: Rope
) -> tuple[tuple[LayerConfig, ...], Rope | None]:
    """`layers` and `unused_rope` of a `Config`: `layer` again for each window, local ones with their own rotation."""
    layers = (layer if window is None else replace(layer, window=window, rope=local_rope) for window in windows)
    unused = local_rope if not any(windows) else layer.rope if all(windows) else None
    return tuple(layers), unused
