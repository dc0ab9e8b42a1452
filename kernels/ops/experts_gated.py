"""Gates of experts for many rows: y = gelu(x G^T) * (x U^T) of each pair's expert, as int8 blocks, in one pass.

A thread claims GATED_TILES tiles of a gate's matrix and as many of its partner's, whole 32-blocks of results. The loops
are those of `experts`; the products themselves never leave the thread. Knows no format and no instruction set.
"""

from __future__ import annotations

from typing import Any

from ..layout import GATED_TILES, LINE, PANEL, VECTOR
from ..operations import EXPERTS_GATED
from ..simd.atomics import word
from ..simd.decorators import inlined
from ..simd.transcendental import gelu
from ..simd.vocabulary import LANES, load, store
from ..tuning.strategies import STRATEGIES, Prefetch
from .activations import quantize_row
from .expert_groups import matrix_of, results_of, scratch
from .experts import make_claims, make_pair, make_panels
from .formats import INT_FORMATS, IntFormat
from .matmul import panel_bytes

_ARGUMENTS = EXPERTS_GATED.slots
_W, _ROW_BYTES, _Y, _Y_STRIDE = _ARGUMENTS.weights, _ARGUMENTS.row_bytes, _ARGUMENTS.y, _ARGUMENTS.y_stride
_UP, _Q, _Q_STRIDE, _ZERO = _ARGUMENTS[-4:]
UNITS = GATED_TILES // PANEL
"""Panels of each of both matrices."""


@inlined
def _place(op: Any, group: Any, tile: Any, p: Any) -> Any:
    """Panels of gate and partner by turns."""
    matrix = matrix_of(op, group)
    return matrix + (word(op, _UP) - word(op, _W) if p & 1 else 0), tile + p // 2 * PANEL


@inlined
def _write(op: Any, sums: Any, sums_bytes: Any, group: Any, tile: Any, rest: Any) -> None:
    """What is made of the sums of gate and partner; as floats to `rest` if nobody wants them."""
    first, count = results_of(op, group)
    for t in range(count):
        y = rest
        if word(op, _Y) != 0:
            y = word(op, _Y) + (first + t) * word(op, _Y_STRIDE) + VECTOR * tile
        for i in range(GATED_TILES):
            gate = sums + i // PANEL * 2 * sums_bytes + (t * PANEL + i % PANEL) * VECTOR
            store(y + i * VECTOR, gelu(load(gate)) * load(gate + sums_bytes))
        line = word(op, _Q) + (first + t) * word(op, _Q_STRIDE) + LANES * tile // 32 * LINE
        quantize_row(y, GATED_TILES * LANES, word(op, _ZERO), line)


def make_gated(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """The kernel of one format."""
    SUMS, pair, panels = panel_bytes(fmt), make_pair(fmt, prefetch), make_panels(fmt, _place)

    @inlined
    def small(op: Any, step: Any, thread: Any, group: Any, tile: Any, ahead: Any) -> None:
        """Pairs of tiles, whose products are put where panels leave their sums."""
        _, count = results_of(op, group)
        addresses, room = scratch(step, thread)
        sums, sums_bytes = room + SUMS, count * PANEL * VECTOR
        for p in range(2 * UNITS):
            weights, t = _place(op, group, tile, p)
            further = ahead + (weights - matrix_of(op, group)) + (t - tile) * LANES * word(op, _ROW_BYTES)
            y = sums + p * sums_bytes - VECTOR * t
            pair(op, group, weights, t, addresses, room, further, y, PANEL * VECTOR)
        _write(op, sums, sums_bytes, group, tile, sums + 2 * UNITS * sums_bytes)

    @inlined
    def large(op: Any, step: Any, thread: Any, group: Any, tile: Any, ahead: Any) -> None:
        sums, sums_bytes = panels(op, group, tile, 2 * UNITS, scratch(step, thread)[1], ahead)
        _write(op, sums, sums_bytes, group, tile, sums + 2 * UNITS * sums_bytes)

    return make_claims(GATED_TILES, small, large)


def kernels(strategy: str) -> dict[str, Any]:
    """The functions of this module to compile, by name, with a strategy of `strategies.STRATEGIES`."""
    return {name: make_gated(fmt, STRATEGIES[strategy]) for name, fmt in INT_FORMATS.items()}
