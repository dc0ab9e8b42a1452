"""Y = X W^T for one row of activations, and for a few: decode. Knows no format and no instruction set.

W's rows lie in the file as blocks; a tile of LANES rows is read block by block, lane = row, and never leaves the
registers. Per 32-block and row, with exact integers in brackets,

    y += d_w d_x * [sum_subs  s * (z_sub + sum_e w_e q_e)]  (+ sum_subs  min_sub * S_sub)

added in float32 block after block: the order `matmul` has too, so a row's result does not depend on its company.
Bytes read per output: the row's bytes, once. A tile some way ahead is prefetched meanwhile, see `weight_stream`.

Lane = row: unpacking begins with a transposition of 4-byte words in registers, and for this price the rest is free of
shuffles. A dot instruction adds four neighbouring products of a row into that row's lane, the scales of all rows are
one vector, and at the end the lanes are the outputs. With lane = column each block and row would need a sum across
lanes, since each block has a scale of its own.

What the caller owes, until all threads are done with the operation: W has at least LANES rows, readable to their ends,
of whole blocks of the file, and nobody writes there: loads of weights say that they are constant, as else a store of
sums would have a super-block's header read again for each block. X has a row of lines, `columns` / 32 each, for each
row of the step; y has room for `rows` float32 in each; a thread's scratch memory is as long as `layout.matmul_scratch`
says. No address need be aligned; lines that begin cache lines are read faster. Prefetches may lead anywhere. The last
tile may overlap the one before: then two threads may write the same bits to the same place.
"""

from __future__ import annotations

from typing import Any

from ..layout import LINE, S0, S1, VECTOR, Z0, Z1, D, S, Z
from ..operations import MATMUL, STEP_ROWS, STEP_SCRATCH, STEP_SCRATCH_BYTES
from ..simd.atomics import word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, broadcast, broadcast_int, dots, fma, load, prefetches, splat, store, to_float
from ..tuning.strategies import STRATEGIES, Prefetch
from . import formats
from .formats import INT_FORMATS, IntFormat
from .weight_stream import make_stream

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE = MATMUL.slots

BYTES_A_ROW = 128
"""Of each tile and 32-block: where there are fewer for each row of activations, arithmetic is slower than memory."""


def _make_block(fmt: IntFormat) -> tuple[Any, Any]:
    """A 32-block of LANES rows in registers, lane = row: how it is read, and how its products with a line are added.

    total = -zero * sum(q), which the line has, in all lanes        so that weights may stay unsigned
    for each of 8 vectors of weights:
        total += 4 weights of each lane * 4 bytes of q        exact, in any order
    y = fma(total, scale of each lane * d, y)
    y = fma(minimum of each lane, d * sum(q), y)        if there are minima

    With subscales the totals of each half are multiplied by them, and added, before they become floats.
    """
    SUBS, MINS = fmt.subs, fmt.mins
    products = dots(fmt.top)

    @inlined
    def read(at: Any, stride: Any, i: Any) -> Any:
        """32-block i of the file block at `at`: weights, scale, subscales, minima; what a format lacks is not used."""
        w = formats.weights(fmt, at, stride, i)
        s = formats.subscales(fmt, at, stride, i) if SUBS == 2 else (w[0], w[0])
        scale = formats.scale(fmt, at, stride, i)
        m = formats.minimum(fmt, at, stride, i) if MINS else (scale, scale)
        return w, scale, s, m

    @inlined
    def add(y: Any, block: Any, x: Any) -> Any:
        """y + the products of the block with the line at x."""
        w, scale, s, m = block
        if SUBS == 1:
            total = products(broadcast_int(x + Z), w, x)
        else:
            total = s[0] * products(broadcast_int(x + Z0), w[:4], x)
            total = total + s[1] * products(broadcast_int(x + Z1), w[4:], x + 16)
        y = fma(to_float(total), scale * broadcast(x + D), y)
        if MINS and SUBS == 1:
            y = fma(m[0], broadcast(x + S), y)
        if MINS and SUBS == 2:
            y = fma(m[1], broadcast(x + S1), fma(m[0], broadcast(x + S0), y))
        return y

    return read, add


def _make_asks(fmt: IntFormat, prefetch: Prefetch | None) -> tuple[Any, Any]:
    """Prefetches of what a 32-block of this tile takes, of one ahead: beside one row of activations, beside a few.

    In the pace in which this tile is read; the clock chooses how, see `strategies`. Asking for lines again pays where
    few instructions stand between, and costs where rows of activations are many.
    """
    SHARE = LANES * fmt.layout.nbytes // fmt.blocks
    MOST, LINES = SHARE // BYTES_A_ROW, range(0, SHARE, 64) if prefetch else ()
    level, later = (prefetch.level, prefetch.again) if prefetch else (1, ())
    again = [line - n * SHARE for n in later for line in LINES]
    first, once_more = prefetches(*LINES, level=level), prefetches(*again, level=level)
    both = prefetches(*LINES, *again, level=level)

    @inlined
    def beside_one(ahead: Any, i: Any) -> None:
        both(ahead + i * SHARE)

    @inlined
    def beside_few(ahead: Any, i: Any, tokens: Any) -> None:
        first(ahead + i * SHARE)
        if tokens <= MOST:
            once_more(ahead + i * SHARE)

    return beside_one, beside_few


def make_dot(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """dot(at, stride, columns, x, ahead): the products of a tile of rows at `at`, `stride` bytes apart, with the lines
    at x; asks for what is at `ahead`, as many bytes as the tile has.

    y = 0
    for each block of the file:
        for each 32-block of it:
            prefetch as many lines of what is ahead as this one takes
            y += its products

    In this pace, as a core has only so many buffers for lines: when they are full, its own loads wait. The 32-blocks
    of a file's block become straight code, so what they share is read once, and offsets are part of instructions.

    LANES rows at `at` are readable to their ends, `columns` is whole blocks of the file.
    """
    BLOCKS, GROUP, NBYTES = fmt.blocks, fmt.group, fmt.layout.nbytes
    PAIRED = BLOCKS == 1 and LANES >= 16
    (read, add), (ask, _) = _make_block(fmt), _make_asks(fmt, prefetch)

    @inlined
    def advance(y: Any, at: Any, stride: Any, i: Any, x: Any, ahead: Any) -> Any:
        ask(ahead, i)
        return add(y, read(at, stride, i), x + i * LINE)

    @inlined
    def whole(y: Any, at: Any, stride: Any, x: Any, ahead: Any) -> Any:
        """A block as the file has them."""
        for g in range(0, BLOCKS, GROUP):
            y = advance(y, at, stride, g, x, ahead)
            if GROUP > 1:
                y = advance(y, at, stride, g + 1, x, ahead)
            if GROUP > 2:
                y = advance(y, at, stride, g + 2, x, ahead)
                y = advance(y, at, stride, g + 3, x, ahead)
        return y

    @inlined
    def dot(at: Any, stride: Any, columns: Any, x: Any, ahead: Any) -> Any:
        y = splat(0.0)
        count = columns // (32 * BLOCKS)
        paired = count // 2 * 2 if PAIRED else 0  # 1 to 6% faster from memory, though no instruction less
        if PAIRED:
            for b in range(0, paired, 2):
                y = whole(y, at + b * NBYTES, stride, x + b * LINE, ahead + b * LANES * NBYTES)
                y = whole(y, at + (b + 1) * NBYTES, stride, x + (b + 1) * LINE, ahead + (b + 1) * LANES * NBYTES)
        for b in range(paired, count):
            y = whole(y, at + b * NBYTES, stride, x + b * BLOCKS * LINE, ahead + b * LANES * NBYTES)
        return y

    return dot


def make_matvec(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """y = W x for one row of activations: decode."""
    dot = make_dot(fmt, prefetch)

    @inlined
    def tile(op: Any, _step: Any, _thread: Any, t: Any, ahead: Any) -> None:
        stride, row = word(op, _ROW_BYTES), min(LANES * t, word(op, _ROWS) - LANES)
        y = dot(word(op, _W) + row * stride, stride, word(op, _COLUMNS), word(op, _X), ahead)
        store(word(op, _Y) + 4 * row, y)

    return make_stream(tile, prefetch)


def tiles_at_once(fmt: IntFormat) -> int:
    """Tiles that `make_dots` takes at once."""
    return 1 if fmt.group > 1 or LANES < 16 else 2


def make_dots(fmt: IntFormat, prefetch: Prefetch | None, line_at: Any) -> Any:
    """The same for a few rows of activations: a block read once is multiplied with all; the sums rest in scratch.

    sums = 0
    for each block of the file:
        for each two of its 32-blocks, or one of each of two tiles:
            prefetch as many lines of what is ahead as these take
            read them into registers
            for each row of activations:
                its sums += their products

    Two blocks are read at a time, as many as stay in 32 registers while the rows come and go. Formats whose blocks
    share bytes read two neighbours; others the same block of two tiles, which share each broadcast of activations. The
    sums of a row are one load and one store from the first-level cache a turn; neighbours are added one after the
    other, in the order of one row alone, so the bits are the same.

    dots(at, second, stride, columns, x, x_stride, tokens, sums, ahead) leaves the products of the tile at `at` with row
    t in vector `tiles_at_once` x t of sums, and those of the tile at `second` in the next one, if there are two tiles.
    line_at(x, x_stride, t): address of row t's lines. LANES rows at `at` and at `second` are readable to their ends,
    `columns` is whole blocks of the file, and sums has tokens x `tiles_at_once` vectors, which no other thread touches.
    """
    BLOCKS, NBYTES, TILES = fmt.blocks, fmt.layout.nbytes, tiles_at_once(fmt)
    NEIGHBOURS = 2 if fmt.group > 1 else 1
    (read, add), (_, ask) = _make_block(fmt), _make_asks(fmt, prefetch)

    @inlined
    def advance(
        at: Any, second: Any, stride: Any, i: Any, x: Any, x_stride: Any, column: Any, tokens: Any, sums: Any
    ) -> None:
        block = read(at, stride, i)
        other = read(second, stride, i + NEIGHBOURS - 1) if NEIGHBOURS * TILES > 1 else block
        for t in range(tokens):
            line, rest = line_at(x, x_stride, t) + column + i * LINE, sums + TILES * t * VECTOR
            y = add(load(rest), block, line)
            if NEIGHBOURS > 1:
                y = add(y, other, line + LINE)
            if TILES > 1:
                z = add(load(rest + VECTOR), other, line)
                store(rest + VECTOR, z)
            store(rest, y)

    @inlined
    def dots(
        at: Any, second: Any, stride: Any, columns: Any, x: Any, x_stride: Any, tokens: Any, sums: Any, ahead: Any
    ) -> None:
        for t in range(TILES * tokens):
            store(sums + t * VECTOR, splat(0.0))
        for b in range(columns // (32 * BLOCKS)):
            here, next_tile = b * NBYTES, ahead + b * TILES * LANES * NBYTES
            for i in range(0, BLOCKS, NEIGHBOURS):
                ask(next_tile, TILES * i, tokens)
                if NEIGHBOURS * TILES > 1:
                    ask(next_tile, TILES * i + 1, tokens)
                column = b * BLOCKS * LINE
                advance(at + here, second + here, stride, i, x, x_stride, column, tokens, sums)

    return dots


@inlined
def _line_at(x: Any, x_stride: Any, t: Any) -> Any:
    return x + t * x_stride


def make_few(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """Y = X W^T for a few rows of activations.

    for each tile of W, or each two, as the stream hands them out:
        the sums of all rows of X, in the thread's scratch memory
        to y, a vector for each row of X and tile

    Of two tiles the second may be the last one again, or overlap it: the same bits twice.
    """
    TILES, dots = tiles_at_once(fmt), make_dots(fmt, prefetch, _line_at)

    @inlined
    def tile(op: Any, step: Any, thread: Any, t: Any, ahead: Any) -> None:
        rows, stride, tokens = word(op, _ROWS), word(op, _ROW_BYTES), word(step, STEP_ROWS)
        row, second = min(LANES * t, rows - LANES), min(LANES * (t + TILES - 1), rows - LANES)
        at, x, x_stride = word(op, _W), word(op, _X), word(op, _X_STRIDE)
        sums = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        dots(at + row * stride, at + second * stride, stride, word(op, _COLUMNS), x, x_stride, tokens, sums, ahead)
        for i in range(tokens):
            y = word(op, _Y) + i * word(op, _Y_STRIDE)
            store(y + 4 * row, load(sums + TILES * i * VECTOR))
            if TILES > 1:
                store(y + 4 * second, load(sums + (2 * i + 1) * VECTOR))

    return make_stream(tile, prefetch, TILES)


def kernels(strategy: str) -> dict[str, Any]:
    """The functions of this module to compile, by name, with a strategy of `strategies.STRATEGIES`."""
    prefetch = STRATEGIES[strategy]
    table = {name: make_matvec(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
    return table | {f"{name}_few": make_few(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
