"""Eight neighbouring 32-blocks that are a float16 scale and words each, read together. Knows no format but that.

Such a block is 18, 22 or 34 bytes, so its scale has to be fetched by itself, 2 bytes for each row. Eight blocks are a
whole number of 16 bytes, and are read 32 bytes of a row at a time, scales and all. With n bytes a block:

    blocks of the file   | d | 2 B | 4 B | ... | 2 B | d | 4 B | 4 B | ...
    words in registers   | d , 2 B | 4 B | ... | 2 B , d | 4 B | 4 B | ...

Odd blocks' words are words of the file; those of even blocks are put together from two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_gemma.kernels.formats import IntFormat
from edge_gemma.kernels.jit import inlined
from edge_gemma.kernels.simd import LANES, half_to_float, rows_16_bytes, rows_32_bytes, splat_int

RUN = 8
"""32-blocks in a run."""


def has_runs(fmt: IntFormat) -> bool:
    """Whether to read runs of a format: with 16 registers they win nothing (measured with AVX2)."""
    return fmt.words is not None and LANES == 16


def make_run(fmt: IntFormat, use: Callable[..., Any]) -> Any:
    """A function (y, at, stride, context) -> y that reads a run of LANES rows at `at` and uses its blocks in order.

    use(y, b, weights, scale, context) -> y gets blocks b = 0..RUN - 1: their weights and scale as `formats` has them.
    None if the format has no runs.
    """
    if not has_runs(fmt):
        return None
    run = _ended
    for b in reversed(range(RUN)):
        run = _with_block(fmt, b, use, run)

    @inlined
    def begin(y: Any, at: Any, stride: Any, context: Any) -> Any:
        return run(y, rows_32_bytes(at, stride), at, stride, context)

    return begin


@inlined
def _ended(y: Any, _words: Any, _at: Any, _stride: Any, _context: Any) -> Any:
    return y


def _with_block(fmt: IntFormat, b: int, use: Callable[..., Any], rest: Callable[..., Any]) -> Any:
    """Block b, and then the rest. `words` begin with the piece of 32 bytes in which block b begins."""
    begin, end = fmt.layout.nbytes * b, fmt.layout.nbytes * (b + 1)
    loaded = 1 if b == 0 else -(-begin // 32)  # pieces that are there already
    last = fmt.layout.nbytes * RUN // 32  # the number of the piece that has 16 bytes only, if there is one
    extend = _extended(tuple(range(loaded, -(-end // 32))), last)
    FIRST, DROP, UPPER = begin % 32 // 4, 8 * (end // 32 - begin // 32), begin % 4 != 0
    words_of = (_after if UPPER else _straddling)(FIRST, (fmt.layout.nbytes - 2) // 4)
    weights_of: Any = fmt.words

    @inlined
    def block(y: Any, words: Any, at: Any, stride: Any, context: Any) -> Any:
        words = extend(words, at, stride)
        scale = half_to_float(words[FIRST] >> 16 if UPPER else words[FIRST] & splat_int(0xFFFF))
        y = use(y, b, weights_of(words_of(words)), scale, context)
        return rest(y, words[DROP:], at, stride, context)

    return block


def _extended(pieces: tuple[int, ...], last: int) -> Any:
    """Words with those of up to two more pieces."""
    if not pieces:
        return inlined(lambda words, at, stride: words)
    piece, more = pieces[0], _extended(pieces[1:], last)
    load = rows_16_bytes if piece == last else rows_32_bytes

    @inlined
    def extended(words: Any, at: Any, stride: Any) -> Any:
        return more(words + load(at + 32 * piece, stride), at, stride)

    return extended


def _after(first: int, count: int) -> Any:
    """`count` words where the scale is the upper half of word `first`: those after it."""
    BEGIN, END = first + 1, first + 1 + count
    return inlined(lambda words: words[BEGIN:END])


def _straddling(first: int, count: int) -> Any:
    """`count` words where the scale is the lower half of word `first`: upper halves and the next words' lower ones."""
    if count == 0:
        return inlined(lambda words: ())
    others, NEXT = _straddling(first + 1, count - 1), first + 1

    @inlined
    def words_of(words: Any) -> Any:
        return ((words[first] >> 16) | (words[NEXT] << 16), *others(words))

    return words_of
