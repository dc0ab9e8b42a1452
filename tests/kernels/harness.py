"""Run kernels as a model does: a program's table, a step, a pool of threads. Knows no kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.jit.library import shared
from edge_gemma.kernels.layout import QUERY_ROWS
from edge_gemma.kernels.operations import Kernel, Operation, Regime
from edge_gemma.kernels.threads.pool import ThreadPool

Array = NDArray[Any]

BRIEF = "EDGE_GEMMA_BRIEF_TESTS" in os.environ
"""Whether to compile fewer kernels: each loop nest, and not each with every format. The formats are tested anyway."""

INT_NAMES = [name for name, fmt in FORMATS.items() if not fmt.is_float]
FLOAT_NAMES = [name for name, fmt in FORMATS.items() if fmt.is_float]
PRODUCT_NAMES = ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K"] if BRIEF else INT_NAMES
CACHE_TYPES = ["f16", "q8_0"] if BRIEF else ["f16", "f32", "q8_0"]


@dataclass
class Row:
    """One operation: its kernel in each regime, and its arguments: arrays, ints or floats."""

    operation: Operation
    kernels: dict[Regime, Kernel]
    arguments: dict[str, Array | int | float]


@dataclass
class Step:
    """What a step says of its rows. Neighbours of one sequence are tiled as the engine does, unless told `tiles`."""

    rows: int = 1
    tokens: Sequence[int] = ()
    positions: Sequence[int] = ()
    sequences: Sequence[int] = ()
    tables: Sequence[Array] = ()  # of each sequence: int64 (layers,), addresses of its pages' addresses
    angles: Array | None = None
    scratch_bytes: int = 1 << 20
    tiles: list[tuple[int, int]] = field(default_factory=list)
    words: dict[int, Array] = field(default_factory=dict)
    """Arrays whose addresses other words of the step have."""

    @property
    def lasts(self) -> list[int]:
        """The last position of each row's sequence."""
        last: dict[int, int] = {}
        for sequence, position in zip(self.sequences, self.positions, strict=False):
            last[sequence] = max(position, last.get(sequence, 0))
        return [last[sequence] for sequence in self.sequences]


_INT8 = ("q", "q_stride", "zero", "q_out", "q_out_stride")


@cache
def pool(threads: int) -> ThreadPool:
    return ThreadPool(threads)


def _kernel(name: str) -> Kernel:
    module, *rest = name.split(".")
    return Kernel(f"ops.{module}", *rest)


def row(
    operation: Operation,
    kernel: str,
    many: str | None = None,
    few: str | None = None,
    **arguments: Array | int | float,
) -> Row:
    """Kernels of `ops` as "module.name"; `many` is `kernel` and `few` is `many` if not said, int8 blocks none."""
    arguments |= {name: 0 for name in operation.arguments if name in _INT8 and name not in arguments}
    assert tuple(arguments) == operation.arguments, f"{operation.name} takes {operation.arguments}"
    names = kernel, few or many or kernel, many or kernel
    return Row(operation, dict(zip(Regime, map(_kernel, names), strict=True)), arguments)


def run(rows: list[Row], step: Step, threads: int = 1) -> None:
    """Execute the rows, a barrier before each."""
    kernels = [r.kernels[Regime.of(step.rows)] for r in rows]
    addresses = shared().load(kernels)
    table = aligned((len(rows), ops.ROW_WORDS), np.int64)
    for words, r, kernel in zip(table, rows, kernels, strict=True):
        words[ops.KERNEL] = addresses[kernel]
        words[ops.BARRIER] = 1
        words[list(r.operation.slots)] = [_word(value) for value in r.arguments.values()]
    words, kept = _step_words(step, threads)
    assert pool(threads).run(table, words)
    assert (kept[ops.STEP_SCRATCH][threads * step.scratch_bytes :] == 0xFF).all(), "written behind the scratch memory"


def _word(value: Array | float) -> int:
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    return value if isinstance(value, int) else int(np.float64(value).view(np.int64))


def _step_words(step: Step, threads: int) -> tuple[Array, dict[int, Array]]:
    """The words, and the arrays that some of them point to."""
    tiles = step.tiles or _tiles(step)
    lists = {
        ops.STEP_TOKENS: np.array(step.tokens, np.int64),
        ops.STEP_POSITIONS: np.array(step.positions, np.int64),
        ops.STEP_LASTS: np.array(step.lasts, np.int64),
        ops.STEP_TABLES: np.array([step.tables[s].ctypes.data for s in step.sequences if step.tables], np.int64),
        ops.STEP_TILES: np.array(tiles, np.int64),
        ops.STEP_SCRATCH: np.full(threads * step.scratch_bytes + 4096, 0xFF, np.uint8),  # NaN if read unwritten
    }
    if step.angles is not None:
        lists[ops.STEP_ANGLES] = step.angles
    words = aligned((ops.STEP_WORDS,), np.int64)
    words[ops.STEP_ROWS], words[ops.STEP_N_TILES] = step.rows, len(tiles)
    words[ops.STEP_SCRATCH_BYTES] = step.scratch_bytes
    for at, array in (lists | step.words).items():
        words[at] = array.ctypes.data
    return words, lists


def _tiles(step: Step) -> list[tuple[int, int]]:
    """Runs of rows of one sequence at neighbouring positions, QUERY_ROWS at most."""
    tiles: list[tuple[int, int]] = []
    for r, (sequence, position) in enumerate(zip(step.sequences, step.positions, strict=True)):
        first, count = tiles[-1] if tiles else (0, 0)
        neighbour = tiles and (sequence, position) == (step.sequences[first], step.positions[first] + count)
        if neighbour and count < QUERY_ROWS:
            tiles[-1] = first, count + 1
        else:
            tiles.append((r, 1))
    return tiles


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that begin on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def random_rows(name: str, rows: int, columns: int, seed: int) -> Array:
    """Bytes (rows, row bytes) of a format: random bits, with scales of moderate size."""
    rng, fmt = np.random.default_rng(seed), FORMATS[name]
    if fmt.is_float:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return {"F32": values, "F16": values.astype(np.float16), "BF16": _bfloat(values)}[name].view(np.uint8)
    blocks = rng.integers(0, 256, (rows, columns // fmt.block, fmt.nbytes), dtype=np.uint8)
    set_scales(name, blocks, lambda shape: rng.standard_normal(shape).astype(np.float16))
    return blocks.reshape(rows, -1)


def set_scales(name: str, blocks: Array, halves: Callable[[tuple[int, ...]], Array]) -> None:
    """Give the blocks, (..., bytes), float16 scales and minima of `halves(shape)`; of IQ1_M 4 bits in each of four
    places, and where there is room for a power of two alone, that below it."""
    for at in scale_offsets(name):
        blocks[..., at : at + 2] = halves((*blocks.shape[:-1], 1)).view(np.uint8)
    if name == "IQ1_M":
        bits = halves(blocks.shape[:-1]).view(np.uint16)
        for i in range(4):
            blocks[..., 49 + 2 * i] = blocks[..., 49 + 2 * i] & 15 | (bits >> 4 * i & 15) << 4
    if name == "MXFP4":
        blocks[..., 0] = np.frexp(halves(blocks.shape[:-1]).astype(np.float32))[1] + 126


def scale_offsets(name: str) -> tuple[int, ...]:
    """Where a block's float16 numbers are."""
    if name in ("IQ1_M", "MXFP4"):
        return ()
    first = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0)
    return (first, first + 2) if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K") else (first,)


def _bfloat(values: Array) -> Array:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def assert_same_bits(got: Array, want: Array) -> None:
    """Equal to the last bit, but for the sign and payload of NaN."""
    assert got.shape == want.shape and got.dtype == want.dtype
    unsigned = {2: np.uint16, 4: np.uint32, 1: np.uint8}[got.dtype.itemsize]
    same = got.view(unsigned) == want.view(unsigned)
    if got.dtype.kind == "f":
        same |= np.isnan(got) & np.isnan(want)
    if not same.all():
        at = tuple(int(i[0]) for i in np.nonzero(~same))
        raise AssertionError(f"{np.sum(~same)} of {same.size} differ, first {at}: {got[at]!r}, expected {want[at]!r}")


def rows_of(tokens: int, columns: int, gap: int = 16) -> Array:
    """Random rows `gap` values further apart than they are long, 9 in between."""
    memory = np.full((tokens, columns + gap), np.float32(9))
    view = memory[:, :columns]
    view[:] = np.random.default_rng(tokens + columns).standard_normal(view.shape) * 3
    return view


def run_checked(operation: Row, step: Step, threads: int, *outputs: Array) -> None:
    """Run, and see that nothing between the rows was touched."""
    run([operation], step, threads)
    for y in outputs:
        if y.base is not None and y.base.ndim == 2:
            assert (y.base[:, y.shape[1] :] == 9).all()
