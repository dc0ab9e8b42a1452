"""What may differ from layer to layer, and in which order kinds of layers come. Knows no file and no architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ahead: int = 0
    """So many later keys of the same text are visible, too."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts beside the feed-forward part: `used` of `count`, each `d_ff` wide.

    fused: one tensor holds gate and up, an expert's rows of gate before its rows of up.
    """

    count: int
    used: int
    d_ff: int
    fused: bool = True


def periodic(period: int, n_layers: int) -> tuple[bool, ...]:
    """Which layers are local where every `period`-th one is global."""
    return tuple(i % period < period - 1 for i in range(n_layers))


@dataclass(frozen=True)
class Ropes:
    """The rotation of global and of local layers."""

    at_global: Rope
    at_local: Rope

    def of(self, windows: tuple[int | None, ...]) -> Iterator[Rope]:
        """The rotation of each layer."""
        return (self.at_global if window is None else self.at_local for window in windows)

    def unused(self, windows: tuple[int | None, ...]) -> Rope | None:
        """The rotation of a kind of layers that there is not."""
        return self.at_local if not any(windows) else self.at_global if all(windows) else None


def sources_of_keys(local: Sequence[bool], n_sharing: int) -> tuple[int | None, ...]:
    """Whose keys and values each layer attends to, where the last `n_sharing` have none: those of the last layer of its
    kind that has; None: its own. Raises ValueError where there is no such layer."""
    first = len(local) - n_sharing
    last = {kind: i for i, kind in enumerate(local[:first])}
    for kind in local[first:]:
        if kind not in last:
            name = "local" if kind else "global"
            raise ValueError(f"the last {n_sharing} layers share keys and values, and no {name} one before has any")
    return (None,) * first + tuple(last[kind] for kind in local[first:])


def unlike_its_source(layers: tuple[LayerConfig, ...]) -> str | None:
    """What is wrong with a layer that attends to keys of other heads than it has itself."""
    for i, layer in enumerate(layers):
        if layer.shared_with is not None and (source := layers[layer.shared_with]).n_kv_heads != layer.n_kv_heads:
            where = f"layer {layer.shared_with}, whose keys layer {i} attends to"
            return f"{layer.n_kv_heads} heads in layer {i}, {source.n_kv_heads} in {where}"
    return None


def alike_but_for_windows(
    layer: LayerConfig, windows: tuple[int | None, ...], local_rope: Rope
) -> tuple[tuple[LayerConfig, ...], Rope | None]:
    """`layers` and `unused_rope` of a `Config`: `layer` again for each window, local ones with their own rotation."""
    layers = (layer if window is None else replace(layer, window=window, rope=local_rope) for window in windows)
    unused = local_rope if not any(windows) else layer.rope if all(windows) else None
    return tuple(layers), unused
