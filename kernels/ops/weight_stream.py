"""How the threads of a pool go through weights tile by tile, each tile read once: decoding products. Knows no format.

A tile is LANES neighbouring rows. A thread stays in one stretch of the weights for most of its way, and asks for a tile
some way ahead of the one it reads, linearly.

    | thread 0's own | thread 1's own | ... | claim | claim | ... |        tiles of one operation's weights
         t ..... asked                          ^ asked, when it has come to the end of a thread's own

What the caller owes: at least LANES rows, readable to their ends; a counter that is 0 when the operation begins; and
each of threads 0 .. STEP_THREADS - 1 once, as what is a thread's own is read by nobody else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..operations import MATMUL, NEXT, STEP_THREADS
from ..simd.atomics import claim, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES
from ..tuning.strategies import Prefetch

_W, _ROW_BYTES, _ROWS, *_ = MATMUL.slots
_NEXT_W, _NEXT_ROW_BYTES, _NEXT_ROWS = NEXT

OWN = 3, 4
"""The part of a matrix that is dealt out beforehand, a stretch to each thread. Reading stretches of several MB is 5-8%
faster than reading 64 KB by turns; the rest evens out cores down to 0.6 of the others' speed."""

GRAIN_BYTES = 1 << 16
"""Weights of the rest claimed at a time."""


@inlined
def dealt(tiles: Any, threads: Any) -> Any:
    """Tiles of so many that each thread has as its own: an even number."""
    return tiles * OWN[0] // (2 * OWN[1] * threads) * 2


@inlined
def tiles_of(rows: Any) -> Any:
    """Tiles of a matrix."""
    return (rows + LANES - 1) // LANES


@inlined
def tile_at(weights: Any, row_bytes: Any, rows: Any, tile: Any) -> Any:
    """Address of a tile; the last one may overlap the one before."""
    return weights + min(LANES * tile, rows - LANES) * row_bytes


class Tiles(NamedTuple):
    """What a stream goes through, tiles 0, 1, ... of an operation's weights; all inlined."""

    count: Any
    """count(op)"""
    at: Any
    """at(op, tile): its address."""
    beyond: Any
    """beyond(op, step, thread, n): address of the n-th tile that the thread will read after the last of these."""


@inlined
def _count(op: Any) -> Any:
    return tiles_of(word(op, _ROWS))


@inlined
def _at(op: Any, tile: Any) -> Any:
    return tile_at(word(op, _W), word(op, _ROW_BYTES), word(op, _ROWS), tile)


@inlined
def next_stretch(op: Any, step: Any, thread: Any, tile: Any) -> Any:
    """A tile of the thread's stretch in the next product's matrix; somewhere harmless if there is none."""
    if word(op, _NEXT_ROWS) == 0:
        return word(op, _W)
    tile += thread * dealt(tiles_of(word(op, _NEXT_ROWS)), word(step, STEP_THREADS))
    return tile_at(word(op, _NEXT_W), word(op, _NEXT_ROW_BYTES), word(op, _NEXT_ROWS), tile)


MATRIX = Tiles(_count, _at, next_stretch)


def make_stream(tile: Any, prefetch: Prefetch | None, tiles_at_once: int = 1, through: Tiles = MATRIX) -> Any:
    """The loop over tiles: a thread's own stretch, then claims, each made when its first tile is to be asked for.

    t..end, asked..asked_end = the thread's own tiles, and those from `lead` tiles on
    for each t:
        if asked = asked_end: claim tiles; asked..asked_end = these
        ahead = address of tile `asked`; behind the last one, of what the thread will read of the next product's weights
        tile(t), which asks for what is ahead meanwhile
        t, asked = the next ones
        if t = end: t..end = the tiles claimed

    Hardware prefetchers follow a few streams; LANES rows at once are too many, and a row ends where nobody expects it.
    The next matrix is asked for as what lies between two products takes microseconds, and leaves it in the cache. Too
    few tiles to deal out are all claimed.

    tile(op, step, thread, number of the first tile of `tiles_at_once`, address of what to ask for)
    """
    N, LEAD = tiles_at_once, prefetch.lead if prefetch else 0
    count, at, beyond_at = through

    def stream(op: Any, step: Any, thread: Any) -> None:
        tiles, threads, turn = count(op), word(step, STEP_THREADS), N * LANES * word(op, _ROW_BYTES)
        own = dealt(tiles, threads)
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
                ahead = at(op, asked)
            else:
                ahead = beyond_at(op, step, thread, beyond)
                beyond += N
            tile(op, step, thread, t, ahead)
            t, asked = t + N, asked + N
            if t == end:
                t, end = asked - lead, asked_end

    return stream
