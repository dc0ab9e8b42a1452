"""Products of rows with the matrices of experts that a router chose for them. Knows no format and no instruction set.

The rows of an expert share one pass over its weights, which lie in the file one expert's matrix after the other; those
of experts that no row chose are not touched. A result has one chain of sums over the blocks of its columns, as in
`matvec` and `matmul`, whose inner loops these are: it does not depend on which loop makes it.

    few rows     a stream over the tiles of all experts chosen, as `weight_stream` has it; two tiles at a time:
                     an expert with one row    `matvec`'s dot of one row
                     with several              `matvec`'s loop over a few
    many rows    threads claim CLAIM tiles of an expert:
                     with at most SMALL rows   as above
                     with more                 panels as in `matmul`, and the rows' stretches put together for them

The caller owes: groups made by `router.dispatch` in this step; matrices of at least LANES rows; scratch memory as
`layout.expert_scratch` counts it.
"""

from __future__ import annotations

from typing import Any

from ..layout import GATHERED, LINE, PANEL, VECTOR
from ..operations import EXPERTS, NEXT, NEXT_EXPERT_BYTES, STEP_THREADS
from ..simd.atomics import claim, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, load, splat, store
from ..tuning.strategies import STRATEGIES, Prefetch
from .expert_groups import (
    chosen,
    expert_of,
    input_of,
    list_inputs,
    listed,
    matrix_of,
    result_at,
    results_of,
    scratch,
)
from .formats import INT_FORMATS, IntFormat
from .matmul import BLOCKS_OF_STRETCH, CLAIM, make_stretch, make_unpack, panel_bytes, write_panel
from .matvec import make_dot, make_dots, tiles_at_once
from .weight_stream import Tiles, dealt, make_stream, next_stretch, tile_at, tiles_of

_ROW_BYTES, _ROWS, _COLUMNS = EXPERTS.slots[1:4]
_X_STRIDE, _Y_STRIDE, _SOURCES = EXPERTS.slots.x_stride, EXPERTS.slots.y_stride, EXPERTS.slots.sources
_NEXT_W, _NEXT_ROW_BYTES, _NEXT_ROWS = NEXT

PAIR = 2
"""Tiles of one expert at a time in a stream."""
SMALL = 32 if LANES >= 16 else 16
"""Rows of an expert up to which panels do not pay: what is unpacked for a few rows stays in registers.

GMAC/s of one thread of Zen 4 with 4, 8, 16 and 32 rows an expert on average (Q4_0, 128 experts of 704 x 2816): without
panels 90, 113, 126 and 119, with panels for more than two rows 42, 60, 93 and 105; with AVX2, 8 to 32 rows, 69, 73 and
69, and with panels for more than eight 66, 72 and 86.
"""


# ---- a stream over all tiles ---------------------------------------------------------------------------------------


@inlined
def _paired(rows: Any) -> Any:
    """Tiles of an expert's matrix in a stream: an even number."""
    return (tiles_of(rows) + PAIR - 1) // PAIR * PAIR


@inlined
def _count(op: Any) -> Any:
    return chosen(op) * _paired(word(op, _ROWS))


@inlined
def _at(op: Any, tile: Any) -> Any:
    each = _paired(word(op, _ROWS))
    return tile_at(matrix_of(op, tile // each), word(op, _ROW_BYTES), word(op, _ROWS), tile % each)


@inlined
def _beyond(op: Any, step: Any, thread: Any, n: Any) -> Any:
    """As `next_stretch`, also where the next product is one of the same experts."""
    if word(op, NEXT_EXPERT_BYTES) == 0:
        return next_stretch(op, step, thread, n)
    rows = word(op, _NEXT_ROWS)
    tiles = chosen(op) * _paired(rows)
    tile = min(n + thread * dealt(tiles, word(step, STEP_THREADS)), tiles - 1)
    group, tile = tile // _paired(rows), tile % _paired(rows)
    weights = word(op, _NEXT_W) + expert_of(op, group) * word(op, NEXT_EXPERT_BYTES)
    return tile_at(weights, word(op, _NEXT_ROW_BYTES), rows, tile)


def make_pair(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """pair(op, group, weights, tile, addresses, sums, ahead, y, y_stride): products of two tiles of an expert's matrix.

    weights: the matrix; y: the row of the group's first result, others `y_stride` bytes apart. Asks for what is at
    `ahead`, as many bytes as two tiles have.
    """
    TILES, dot, dots = tiles_at_once(fmt), make_dot(fmt, prefetch), make_dots(fmt, prefetch, listed)

    @inlined
    def one_row(op: Any, weights: Any, x: Any, tile: Any, ahead: Any, y: Any) -> None:
        rows, stride = word(op, _ROWS), word(op, _ROW_BYTES)
        for n in range(PAIR):
            row = min(LANES * (tile + n), rows - LANES)
            at, further = weights + row * stride, ahead + n * LANES * stride
            store(y + 4 * row, dot(at, stride, word(op, _COLUMNS), x, further))

    @inlined
    def several(
        op: Any, weights: Any, count: Any, tile: Any, addresses: Any, sums: Any, ahead: Any, y: Any, y_stride: Any
    ) -> None:
        rows, stride, columns = word(op, _ROWS), word(op, _ROW_BYTES), word(op, _COLUMNS)
        for n in range(0, PAIR, TILES):
            row, second = min(LANES * (tile + n), rows - LANES), min(LANES * (tile + n + TILES - 1), rows - LANES)
            at, other, further = weights + row * stride, weights + second * stride, ahead + n * LANES * stride
            dots(at, other, stride, columns, addresses, 0, count, sums, further)
            for t in range(count):
                store(y + t * y_stride + 4 * row, load(sums + TILES * t * VECTOR))
                if TILES > 1:
                    store(y + t * y_stride + 4 * second, load(sums + (2 * t + 1) * VECTOR))

    @inlined
    def pair(
        op: Any, group: Any, weights: Any, tile: Any, addresses: Any, sums: Any, ahead: Any, y: Any, y_stride: Any
    ) -> None:
        first, count = results_of(op, group)
        if count == 1:
            one_row(op, weights, input_of(op, first), tile, ahead, y)
        else:
            list_inputs(op, first, count, addresses)
            several(op, weights, count, tile, addresses, sums, ahead, y, y_stride)

    return pair


def make_few(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """The kernel for a row, or a few.

    tiles of the stream: | PAIR tiles at a time of the first group's matrix | of the second group's | ...
    for each PAIR of tiles that the stream hands out:
        the group that they belong to, and its results
        one result: the tiles, one after the other, times its row, in registers
        more: list the addresses of their rows; the tiles times these rows, whose sums rest in scratch memory

    Tiles are counted through the matrices of all experts chosen, so threads share the step's weights evenly, whichever
    they are. A matrix has an even number of tiles here; where it has not, its last one counts twice.
    """
    pair = make_pair(fmt, prefetch)

    @inlined
    def tile(op: Any, step: Any, thread: Any, t: Any, ahead: Any) -> None:
        each = _paired(word(op, _ROWS))
        group, (addresses, sums) = t // each, scratch(step, thread)
        y, y_stride = result_at(op, group), word(op, _Y_STRIDE)
        pair(op, group, matrix_of(op, group), t % each, addresses, sums, ahead, y, y_stride)

    return make_stream(tile, prefetch, PAIR, Tiles(_count, _at, _beyond))


# ---- many rows -----------------------------------------------------------------------------------------------------


@inlined
def _stretches(op: Any, first: Any, count: Any, start: Any, blocks: Any, room: Any) -> Any:
    """Address and stride of lines start..start + blocks of the inputs of `count` results, put together in `room` if
    they are not neighbours."""
    if word(op, _SOURCES) == 0:
        return input_of(op, first) + start * LINE, word(op, _X_STRIDE)
    for t in range(count):
        x, y = input_of(op, first + t) + start * LINE, room + t * GATHERED
        for at in range(0, blocks * LINE, VECTOR):
            store(y + at, load(x + at))
    return room, GATHERED


def make_panels(fmt: IntFormat, place: Any) -> Any:
    """panels(op, group, tile, count, panel, ahead): the sums of `count` panels, for all results of a group.

    sums = 0
    for each stretch of columns:
        put this stretch of the group's rows together, if they are not neighbours
        for each panel:
            unpack the stretch of the panel
            its sums += the panel * the stretch of all rows of the group, while what is unpacked next is asked for

    The loops of `matmul` take rows a fixed number of bytes apart, and those of a group are anywhere in X: a stretch of
    them is copied once for `count` panels.

    place(op, group, tile, p): matrix and first tile of panel p of what is claimed from `tile` on. `panel`: the memory
    of one; behind it the sums are left, and behind these the rows' stretches. Asks at the end for what is at `ahead`.
    Returns where the sums are, and their bytes from one panel to the next.
    """
    SUMS, NBYTES, BLOCKS = panel_bytes(fmt), fmt.layout.nbytes, fmt.blocks
    unpack, stretch = make_unpack(fmt), make_stretch(fmt)

    @inlined
    def begin_of(op: Any, group: Any, tile: Any, p: Any, start: Any) -> Any:
        weights, first = place(op, group, tile, p)
        return tile_at(weights, word(op, _ROW_BYTES), word(op, _ROWS), first) + start // BLOCKS * NBYTES

    @inlined
    def panels(op: Any, group: Any, tile: Any, count: Any, panel: Any, ahead: Any) -> Any:
        rows, row_bytes, all_blocks = word(op, _ROWS), word(op, _ROW_BYTES), word(op, _COLUMNS) // 32
        first, tokens = results_of(op, group)
        sums, sums_bytes = panel + SUMS, tokens * PANEL * VECTOR
        room = sums + count * sums_bytes
        for at in range(sums, room, VECTOR):
            store(at, splat(0.0))
        for start in range(0, all_blocks, BLOCKS_OF_STRETCH):
            blocks = min(BLOCKS_OF_STRETCH, all_blocks - start)
            x, x_stride = _stretches(op, first, tokens, start, blocks, room)
            for p in range(count):
                weights, first_tile = place(op, group, tile, p)
                unpack(weights, row_bytes, rows, first_tile, start, blocks, panel)
                then = ahead
                if p + 1 < count:
                    then = begin_of(op, group, tile, p + 1, start)
                elif start + blocks < all_blocks:
                    then = begin_of(op, group, tile, 0, start + blocks)
                stretch(panel, blocks, x, x_stride, tokens, sums + p * sums_bytes, then, row_bytes)
        return sums, sums_bytes

    return panels


def make_claims(grain: int, small: Any, large: Any) -> Any:
    """The loop over claims of `grain` tiles of an expert, of whose results there are at most SMALL, or more.

    for each claim, counted through the matrices of all experts chosen:
        the group that it belongs to, and where the claim after it begins
        small(...) or large(...), by how many results the group has

    A claim never reaches into another expert's matrix: the last of a matrix may be shorter.

    small(op, step, thread, group, tile, ahead) and large, which takes the same. ahead: where the next claim begins.
    """

    def claims(op: Any, step: Any, thread: Any) -> None:
        rows, row_bytes = word(op, _ROWS), word(op, _ROW_BYTES)
        each = (tiles_of(rows) + grain - 1) // grain
        items = chosen(op) * each
        item, following = claim(op, 1), claim(op, 1)
        while item < items:
            group, tile, then = item // each, item % each * grain, min(following, items - 1)
            ahead = tile_at(matrix_of(op, then // each), row_bytes, rows, then % each * grain)
            _, count = results_of(op, group)
            if count <= SMALL:
                small(op, step, thread, group, tile, ahead)
            else:
                large(op, step, thread, group, tile, ahead)
            item, following = following, claim(op, 1)

    return claims


@inlined
def _place(op: Any, group: Any, tile: Any, p: Any) -> Any:
    return matrix_of(op, group), tile + p * PANEL


def make_many(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """The kernel for many rows.

    for each claim of CLAIM tiles of an expert:
        a small group: for each PAIR of tiles, as in `make_few`
        a large group: the sums of all panels of the claim; then to the group's results

    Which of the two is taken changes no bit, as both add block after block.
    """
    pair, panels = make_pair(fmt, prefetch), make_panels(fmt, _place)

    @inlined
    def small(op: Any, step: Any, thread: Any, group: Any, tile: Any, ahead: Any) -> None:
        addresses, sums = scratch(step, thread)
        weights, y, y_stride = matrix_of(op, group), result_at(op, group), word(op, _Y_STRIDE)
        for t in range(tile, min(tile + CLAIM, tiles_of(word(op, _ROWS))), PAIR):
            further = ahead + (t - tile) * LANES * word(op, _ROW_BYTES)
            pair(op, group, weights, t, addresses, sums, further, y, y_stride)

    @inlined
    def large(op: Any, step: Any, thread: Any, group: Any, tile: Any, ahead: Any) -> None:
        count = (min(CLAIM, tiles_of(word(op, _ROWS)) - tile) + PANEL - 1) // PANEL
        sums, sums_bytes = panels(op, group, tile, count, scratch(step, thread)[1], ahead)
        _, tokens = results_of(op, group)
        for p in range(count):
            write_panel(op, result_at(op, group), sums + p * sums_bytes, tokens, tile + p * PANEL)

    return make_claims(CLAIM, small, large)


def kernels(strategy: str) -> dict[str, Any]:
    """The functions of this module to compile, by name, with a strategy of `strategies.STRATEGIES`."""
    prefetch = STRATEGIES[strategy]
    table = {name: make_many(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
    return table | {f"{name}_few": make_few(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
