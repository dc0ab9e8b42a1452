"""Y = X W^T for several rows of activations: prefill. Knows no format but through its traits.

A thread takes PANEL tiles of LANES rows of W, unpacks a stretch of their columns into a panel in its cache, and uses
the panel for all rows of X, in register tiles of TOKENS x PANEL vectors. The unpacking is paid once per panel, the
sums are added block after block in `matvec`'s order, and partial sums rest in scratch memory between stretches.
Of two matrices whose products become act(x W^T) * (x U^T), panels alternate, and only the result leaves the thread.

What the caller owes, until all threads are done with the operation: W has at least LANES rows, readable to their ends,
of whole blocks of the file, and nobody writes there: loads of weights say that they are constant. X has STEP_ROWS rows
of lines, `columns` / 32 each; y has room for `rows` float32 in each, or q for `rows` / 32 lines; a thread's scratch
memory is as long as `layout.matmul_scratch` says. No address need be aligned; lines that begin cache lines are read
faster. Prefetches may lead anywhere. The last tile may overlap the one before: then two threads may write the same bits
to the same place.

The panel's entry of one 32-block and one tile of rows (V = LANES x 4 bytes):

    | 8 V weights, as `formats.weights` gives them | V scale | 2 V subscales, if any | 1 or 2 V minima, if any |
"""

from __future__ import annotations

from typing import Any

from ..layout import GATED_TILES, LINE, PANEL, PANELS, S0, S1, STRETCH, VECTOR, Z0, Z1, D, S, Z
from ..operations import GATED, STEP_ROWS, STEP_SCRATCH, STEP_SCRATCH_BYTES
from ..simd.atomics import claim, word
from ..simd.decorators import inlined
from ..simd.transcendental import activated
from ..simd.vocabulary import (
    ISA,
    LANES,
    broadcast_rows,
    load,
    load_int,
    load_tile,
    outer_dots,
    outer_fma,
    outer_scale,
    prefetch_far,
    splat,
    store,
    store_int,
    store_tile,
    tile_mul_add,
    zeros,
    zeros_int,
)
from . import formats
from .activations import quantize_row
from .formats import INT_FORMATS, IntFormat

_W, _ROW_BYTES, _ROWS, _COLUMNS, _X, _X_STRIDE, _Y, _Y_STRIDE, _UP, _ACTIVATION, _Q, _Q_STRIDE, _ZERO = GATED.slots

TOKENS = {"vpdpbusd.512": 4, "vpmaddubsw": 3, "sdot": 4}.get(ISA.dot, 2)
"""Rows of X in a register tile: TOKENS x PANEL int32 and as many float32 accumulators fit the registers.

A weight loaded serves TOKENS products, an activation PANEL. Where an instruction does a product, 2 x 2 accumulators of
each kind leave some of 16 registers for inputs. On AVX2 it takes two, and 3 x 2 are worth that some accumulators rest
on the stack.
"""
BLOCKS_OF_STRETCH = STRETCH // 32
CLAIM = PANEL * PANELS
PANEL_ROWS = PANEL * LANES


class Entry:
    """Where things are in the panel's entry of one 32-block, in bytes. Plain numbers for the makers below."""

    def __init__(self, fmt: IntFormat) -> None:
        self.subscales = 9 * VECTOR
        self.minima = self.subscales + (2 * VECTOR if fmt.subs == 2 else 0)
        self.size = self.minima + (fmt.subs * VECTOR if fmt.mins else 0)
        self.tile = self.size * BLOCKS_OF_STRETCH  # from one tile of rows to the next


def make_unpack(fmt: IntFormat) -> Any:
    """File blocks to entries of a panel.

    for each tile of the panel:
        for each 32-block of the stretch:
            its weights, scale, subscales and minima of LANES rows, lane = row, to the block's entry

    It is paid once for all rows of X, so nothing here is worth more code. The product finds one vector after the other.
    """
    BLOCKS, SUBS, MINS, NBYTES = fmt.blocks, fmt.subs, fmt.mins, fmt.layout.nbytes
    entry_layout = Entry(fmt)
    SUBSCALES, MINIMA, ENTRY, TILE = (
        entry_layout.subscales,
        entry_layout.minima,
        entry_layout.size,
        entry_layout.tile,
    )

    @inlined
    def unpack_block(at: Any, stride: Any, i: Any, entry: Any) -> None:
        """One entry from 32-block i of the file block at `at`."""
        w = formats.weights(fmt, at, stride, i)
        for k in range(8):
            store_int(entry + k * VECTOR, w[k])
        store(entry + 8 * VECTOR, formats.scale(fmt, at, stride, i))
        if SUBS == 2:
            s = formats.subscales(fmt, at, stride, i)
            store_int(entry + SUBSCALES, s[0])
            store_int(entry + SUBSCALES + VECTOR, s[1])
        if MINS:
            m = formats.minimum(fmt, at, stride, i)
            store(entry + MINIMA, m[0])
            if SUBS == 2:
                store(entry + MINIMA + VECTOR, m[1])

    @inlined
    def unpack(weights: Any, row_bytes: Any, rows: Any, tile: Any, first: Any, blocks: Any, panel: Any) -> None:
        """Blocks first..first + blocks of PANEL tiles of rows, from tile `tile` on."""
        for p in range(PANEL):
            row = min(LANES * (tile + p), rows - LANES)  # the last tile may overlap the one before
            for b in range(blocks):
                at = weights + row * row_bytes + (first + b) // BLOCKS * NBYTES
                unpack_block(at, row_bytes, (first + b) % BLOCKS, panel + p * TILE + b * ENTRY)

    return unpack


def make_product(fmt: IntFormat, tokens: int) -> Any:
    """A panel times `tokens` rows of X, in a register tile of (tokens, PANEL) vectors; lane = row of W:

    tile = the sums so far
    for each 32-block of the stretch:
        integers = -zero * sum(q) of each row of X, in all lanes        so that weights may stay unsigned
        for each of 8 vectors of the entry:
            integers += 4 weights of each lane * 4 bytes of q of each row of X        exact, in any order
        tile = fma(integers, scale of each lane * d of each row of X, tile)
        tile = fma(minimum of each lane, d * sum(q) of each row of X, tile)        if there are minima
    sums = tile

    With subscales the integers of each half are multiplied by them, and added, before they become floats.
    """
    SUBS, MINS, SIZE = fmt.subs, fmt.mins, tokens * PANEL
    layout = Entry(fmt)
    SUBSCALES, MINIMA, ENTRY, TILE = layout.subscales, layout.minima, layout.size, layout.tile
    dots = outer_dots(fmt.top)

    @inlined
    def words(at: Any) -> Any:
        return load_int(at), load_int(at + TILE)

    @inlined
    def floats(at: Any) -> Any:
        return load(at), load(at + TILE)

    @inlined
    def begin(z: Any, stride: Any, like: Any) -> Any:
        return broadcast_rows(z, stride, zeros_int(SIZE), like)

    @inlined
    def integers(entry: Any, line: Any, stride: Any) -> Any:
        """The exact sums of one 32-block, begun at what the lines have for the weights' zero."""
        if SUBS == 1:
            return dots(begin(line + Z, stride, words(entry)), line, stride, entry, TILE, PANEL, 8)
        s = entry + SUBSCALES
        first = dots(begin(line + Z0, stride, words(entry)), line, stride, entry, TILE, PANEL, 4)
        second = dots(begin(line + Z1, stride, words(entry)), line + 16, stride, entry + 4 * VECTOR, TILE, PANEL, 4)
        return tile_mul_add(tile_mul_add(zeros_int(SIZE), first, words(s)), second, words(s + VECTOR))

    @inlined
    def product(panel: Any, blocks: Any, x: Any, stride: Any, sums: Any) -> None:
        """Add the first `blocks` blocks' products with the rows at x to the partial sums."""
        y = load_tile(zeros(SIZE), sums, PANEL * VECTOR, PANEL)
        for b in range(blocks):
            entry, line = panel + b * ENTRY, x + b * LINE
            y = outer_scale(y, integers(entry, line, stride), line + D, stride, floats(entry + 8 * VECTOR))
            if MINS and SUBS == 1:
                y = outer_fma(y, line + S, stride, floats(entry + MINIMA))
            if MINS and SUBS == 2:
                y = outer_fma(y, line + S0, stride, floats(entry + MINIMA))
                y = outer_fma(y, line + S1, stride, floats(entry + MINIMA + VECTOR))
        store_tile(y, sums, PANEL * VECTOR, PANEL)

    return product


@inlined
def _panel(op: Any, tile: Any, p: Any) -> Any:
    """Matrix and first tile of panel p of what is claimed from `tile` on."""
    if word(op, _UP) == 0:
        return word(op, _W), tile + p * PANEL
    return word(op, _UP if p & 1 else _W), tile + p // 2 * PANEL


@inlined
def write_panel(op: Any, y: Any, sums: Any, tokens: Any, tile: Any) -> None:
    """The sums of a panel's rows, from tile `tile` on, into `tokens` rows of results from y on."""
    rows, y_stride = word(op, _ROWS), word(op, _Y_STRIDE)
    for p in range(PANEL):
        row = LANES * (tile + p)
        if row < rows:
            row = min(row, rows - LANES)
            for t in range(tokens):
                store(y + t * y_stride + 4 * row, load(sums + (t * PANEL + p) * VECTOR))


@inlined
def _write_gated(op: Any, sums: Any, sums_bytes: Any, tokens: Any, tile: Any, rest: Any) -> None:
    """activation(gate) * up of the claimed tiles as int8 blocks, and as floats: to `rest` if nobody wants them."""
    for t in range(tokens):
        y = rest
        if word(op, _Y) != 0:
            y = word(op, _Y) + t * word(op, _Y_STRIDE) + VECTOR * tile
        for i in range(GATED_TILES):
            gate = sums + i // PANEL * 2 * sums_bytes + (t * PANEL + i % PANEL) * VECTOR
            store(y + i * VECTOR, activated(load(gate), word(op, _ACTIVATION)) * load(gate + sums_bytes))
        line = word(op, _Q) + t * word(op, _Q_STRIDE) + LANES * tile // 32 * LINE
        quantize_row(y, GATED_TILES * LANES, word(op, _ZERO), line)


@inlined
def _write(op: Any, sums: Any, sums_bytes: Any, tokens: Any, tile: Any, panels: Any) -> None:
    """The sums of all panels claimed."""
    if word(op, _UP) != 0:
        _write_gated(op, sums, sums_bytes, tokens, tile, sums + panels * sums_bytes)
    else:
        for p in range(panels):
            write_panel(op, word(op, _Y), sums + p * sums_bytes, tokens, tile + p * PANEL)


def panel_bytes(fmt: IntFormat) -> int:
    """A panel of a stretch of columns."""
    return PANEL * Entry(fmt).tile


def make_stretch(fmt: IntFormat) -> Any:
    """stretch(panel, blocks, x, stride, tokens, sums, ahead, row_bytes): add a panel's products with all rows of X.

    for each TOKENS rows of X:
        prefetch their share of the next panel's rows, which begin at `ahead`
        sums of these rows of X += the panel * them
    for each row of X that is left:
        its sums += the panel * it

    What is unpacked next comes from memory, and this is the time in which memory is idle. All lines at once would be
    more than a core has buffers for, and loads would wait behind them. They go into the second-level cache: the first
    is the panel's.
    """
    STRETCH_BYTES = BLOCKS_OF_STRETCH // fmt.blocks * fmt.layout.nbytes
    product, product_one = make_product(fmt, TOKENS), make_product(fmt, 1)

    @inlined
    def prefetch(ahead: Any, row_bytes: Any, first: Any, end: Any) -> None:
        """Prefetch rows first..end of the next panel's stretch."""
        for row in range(first, end):
            for line in range(0, STRETCH_BYTES + 63, 64):
                prefetch_far(ahead + row * row_bytes + line)

    @inlined
    def stretch(
        panel: Any, blocks: Any, x: Any, stride: Any, tokens: Any, sums: Any, ahead: Any, row_bytes: Any
    ) -> None:
        t = 0
        while t + TOKENS <= tokens:
            prefetch(ahead, row_bytes, t * PANEL_ROWS // tokens, (t + TOKENS) * PANEL_ROWS // tokens)
            product(panel, blocks, x + t * stride, stride, sums + t * PANEL * VECTOR)
            t += TOKENS
        while t < tokens:
            product_one(panel, blocks, x + t * stride, stride, sums + t * PANEL * VECTOR)
            t += 1

    return stretch


def make_matmul(fmt: IntFormat) -> Any:
    """The kernel of one format; MATMUL's row has zeros where GATED's has more.

    for each claim of some tiles of W, or of W and U:
        sums of all its panels and all rows of X = 0
        for each stretch of columns:
            for each panel of the claim:
                unpack the stretch of the panel
                sums of the panel += the panel * this stretch of X, while what is unpacked next is asked for
        write the sums, or what is made of them

    A stretch is so short that a panel of it and the lines of TOKENS rows of X stay in the first-level cache; panels of
    a claim share the stretch of all rows of X in the second. Sums rest in scratch memory between stretches: float32 as
    in the registers, so a result is one chain over its blocks, however columns are cut. Claims are made one ahead, so
    that what comes after the last panel is known.
    """
    SUMS, NBYTES, BLOCKS = panel_bytes(fmt), fmt.layout.nbytes, fmt.blocks
    unpack, stretch = make_unpack(fmt), make_stretch(fmt)

    def matmul(op: Any, step: Any, thread: Any) -> None:
        rows, row_bytes, blocks = word(op, _ROWS), word(op, _ROW_BYTES), word(op, _COLUMNS) // 32
        tokens, x, x_stride = word(step, STEP_ROWS), word(op, _X), word(op, _X_STRIDE)
        panel = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
        sums, sums_bytes = panel + SUMS, tokens * PANEL * VECTOR
        grain, matrices = (CLAIM, 1) if word(op, _UP) == 0 else (GATED_TILES, 2)
        tile, following = claim(op, grain), claim(op, grain)
        while LANES * tile < rows:
            panels = (min(grain, (rows + LANES - 1) // LANES - tile) + PANEL - 1) // PANEL * matrices
            for at in range(sums, sums + panels * sums_bytes, VECTOR):
                store(at, splat(0.0))
            steps = panels * ((blocks + BLOCKS_OF_STRETCH - 1) // BLOCKS_OF_STRETCH)
            for k in range(steps):
                p, first = k % panels, k // panels * BLOCKS_OF_STRETCH
                count = min(BLOCKS_OF_STRETCH, blocks - first)
                weights, first_tile = _panel(op, tile, p)
                unpack(weights, row_bytes, rows, first_tile, first, count, panel)
                weights, next_tile = _panel(op, tile, (k + 1) % panels) if k + 1 < steps else _panel(op, following, 0)
                next_first = (k + 1) // panels * BLOCKS_OF_STRETCH if k + 1 < steps else 0
                ahead = weights + min(LANES * next_tile, rows - LANES) * row_bytes + next_first // BLOCKS * NBYTES
                partial = sums + p * sums_bytes
                stretch(panel, count, x + first * LINE, x_stride, tokens, partial, ahead, row_bytes)
            _write(op, sums, sums_bytes, tokens, tile, panels)
            tile, following = following, claim(op, grain)

    return matmul


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {name: make_matmul(fmt) for name, fmt in INT_FORMATS.items()}
