"""Y = X W^T for one row of activations, and for a few: decode. Knows no format and no instruction set.

W's rows lie in the file as blocks; a tile of LANES rows is read block by block, lane = row, and never leaves the
registers. Per 32-block and row, with exact integers in brackets,

    y += d_w d_x * [sum_subs  s * (z_sub + sum_e w_e q_e)]  (+ sum_subs  min_sub * S_sub)

added in float32 block after block: the order `matmul` has too, so a row's result does not depend on its company.
Bytes read per output: the row's bytes, once. A tile some way ahead is prefetched meanwhile, linearly, by a thread that
stays in one stretch of the matrix for most of its way: `_make_asks`, `_make_stream`.
"""

from __future__ import annotations

from typing import Any

from ..layout import LINE, S0, S1, VECTOR, Z0, Z1, D, S, Z
from ..operations import MATMUL, NEXT, STEP_ROWS, STEP_SCRATCH, STEP_SCRATCH_BYTES, STEP_THREADS
from ..simd.atomics import claim, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, broadcast, broadcast_int, dots, fma, load, prefetches, splat, store, to_float
from ..tuning.strategies import STRATEGIES, Prefetch
from . import formats
from .formats import INT_FORMATS, IntFormat

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE = MATMUL.slots
_NEXT_W, _NEXT_ROW_BYTES, _NEXT_ROWS = NEXT

OWN = 3, 4
"""The part of a matrix that is dealt out beforehand, a stretch to each thread. Reading stretches of several MB is 5-8%
faster than reading pieces of 64 KB by turns; the rest evens out cores down to 0.6 of the others' speed."""

GRAIN_BYTES = 1 << 16
"""Weights of the rest claimed at a time."""

BYTES_A_ROW = 128
"""Of each tile and 32-block: where there are fewer for each row of activations, arithmetic is slower than memory."""


def _make_block(fmt: IntFormat) -> tuple[Any, Any]:
    """A 32-block of LANES rows in registers: how it is read, and how its products are added."""
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


@inlined
def _dealt(rows: Any, threads: Any) -> Any:
    """Tiles of a matrix that each thread has as its own: an even number."""
    return (rows + LANES - 1) // LANES * OWN[0] // (2 * OWN[1] * threads) * 2


@inlined
def _tile_at(weights: Any, row_bytes: Any, rows: Any, tile: Any) -> Any:
    """Address of a tile; the last one may overlap the one before."""
    return weights + min(LANES * tile, rows - LANES) * row_bytes


@inlined
def _next_stretch(op: Any, step: Any, thread: Any, tile: Any) -> Any:
    """A tile of the thread's stretch in the next product's matrix; somewhere harmless if there is none."""
    if word(op, _NEXT_ROWS) == 0:
        return word(op, _W)
    tile += thread * _dealt(word(op, _NEXT_ROWS), word(step, STEP_THREADS))
    return _tile_at(word(op, _NEXT_W), word(op, _NEXT_ROW_BYTES), word(op, _NEXT_ROWS), tile)


def _make_stream(tile: Any, prefetch: Prefetch | None, tiles_at_once: int = 1) -> Any:
    """The loop over tiles: a thread's own stretch, then claims, each made when its first tile is to be asked for.

    tile(op, step, thread, tile's first row, second tile's if there are two at once, address of what to ask for)
    """
    N, LEAD = tiles_at_once, prefetch.lead if prefetch else 0

    def stream(op: Any, step: Any, thread: Any) -> None:
        rows, row_bytes, threads = word(op, _ROWS), word(op, _ROW_BYTES), word(step, STEP_THREADS)
        tiles, own, turn = (rows + LANES - 1) // LANES, _dealt(rows, threads), N * LANES * row_bytes
        lead = max(1, (LEAD + turn - 1) // turn) * N
        grain = max(lead, GRAIN_BYTES // turn * N)
        t, end = thread * own, (thread + 1) * own
        if own == 0:
            t = claim(op, grain)
            end = t + grain
        lead = min(lead, end - t)
        asked, asked_end, beyond = t + lead, end, 0
        while t < tiles:
            if asked == asked_end:
                asked = own * threads + claim(op, grain)
                asked_end = asked + grain
            if asked < tiles:
                ahead = _tile_at(word(op, _W), row_bytes, rows, asked)
            else:
                ahead = _next_stretch(op, step, thread, beyond)
                beyond += N
            tile(op, step, thread, min(LANES * t, rows - LANES), min(LANES * (t + N - 1), rows - LANES), ahead)
            t, asked = t + N, asked + N
            if t == end:
                t, end = asked - lead, asked_end

    return stream


def make_matvec(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """y = W x for one row of activations: decode."""
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
    def tile(op: Any, _step: Any, _thread: Any, row: Any, _second: Any, ahead: Any) -> None:
        stride, y = word(op, _ROW_BYTES), splat(0.0)
        at, x = word(op, _W) + row * stride, word(op, _X)
        count = word(op, _COLUMNS) // (32 * BLOCKS)
        paired = count // 2 * 2 if PAIRED else 0  # 1 to 6% faster from memory, though no instruction less
        if PAIRED:
            for b in range(0, paired, 2):
                y = whole(y, at + b * NBYTES, stride, x + b * LINE, ahead + b * LANES * NBYTES)
                y = whole(y, at + (b + 1) * NBYTES, stride, x + (b + 1) * LINE, ahead + (b + 1) * LANES * NBYTES)
        for b in range(paired, count):
            y = whole(y, at + b * NBYTES, stride, x + b * BLOCKS * LINE, ahead + b * LANES * NBYTES)
        store(word(op, _Y) + 4 * row, y)

    return _make_stream(tile, prefetch)


def make_few(fmt: IntFormat, prefetch: Prefetch | None) -> Any:
    """The same for a few rows of activations: a block read once is multiplied with all; the sums rest in scratch.

    Two blocks are read at a time, as many as stay in 32 registers while the rows come and go. Formats whose blocks
    share bytes read two neighbours; others the same block of two tiles, which share each broadcast of activations.
    """
    BLOCKS, NBYTES = fmt.blocks, fmt.layout.nbytes
    NEIGHBOURS, TILES = (2, 1) if fmt.group > 1 else (1, 2 if LANES >= 16 else 1)
    (read, add), (_, ask) = _make_block(fmt), _make_asks(fmt, prefetch)

    @inlined
    def advance(at: Any, second: Any, stride: Any, i: Any, x: Any, step: Any, x_stride: Any, sums: Any) -> None:
        block = read(at, stride, i)
        other = read(second, stride, i + NEIGHBOURS - 1) if NEIGHBOURS * TILES > 1 else block
        for t in range(word(step, STEP_ROWS)):
            line, rest = x + i * LINE + t * x_stride, sums + TILES * t * VECTOR
            y = add(load(rest), block, line)
            if NEIGHBOURS > 1:
                y = add(y, other, line + LINE)
            if TILES > 1:
                z = add(load(rest + VECTOR), other, line)
                store(rest + VECTOR, z)
            store(rest, y)

    @inlined
    def tile(op: Any, step: Any, thread: Any, row: Any, second: Any, ahead: Any) -> None:
        row_bytes, x_stride, tokens = word(op, _ROW_BYTES), word(op, _X_STRIDE), word(step, STEP_ROWS)
        sums = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        for t in range(TILES * tokens):
            store(sums + t * VECTOR, splat(0.0))
        for b in range(word(op, _COLUMNS) // (32 * BLOCKS)):
            at = word(op, _W) + b * NBYTES
            x, next_tile = word(op, _X) + b * BLOCKS * LINE, ahead + b * TILES * LANES * NBYTES
            for i in range(0, BLOCKS, NEIGHBOURS):
                ask(next_tile, TILES * i, tokens)
                if NEIGHBOURS * TILES > 1:
                    ask(next_tile, TILES * i + 1, tokens)
                advance(at + row * row_bytes, at + second * row_bytes, row_bytes, i, x, step, x_stride, sums)
        for t in range(tokens):
            y = word(op, _Y) + t * word(op, _Y_STRIDE)
            store(y + 4 * row, load(sums + TILES * t * VECTOR))
            if TILES > 1:
                store(y + 4 * second, load(sums + (2 * t + 1) * VECTOR))

    return _make_stream(tile, prefetch, TILES)


def kernels(strategy: str) -> dict[str, Any]:
    """The functions of this module to compile, by name, with a strategy of `strategies.STRATEGIES`."""
    prefetch = STRATEGIES[strategy]
    table = {name: make_matvec(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
    return table | {f"{name}_few": make_few(fmt, prefetch) for name, fmt in INT_FORMATS.items()}
