"""Look-ups of groups of 4 or 8 small numbers, in tables of 256 to 2048 groups. Knows no format.

A vector has 4 indices a lane, so a look-up of them all is 4 x LANES groups. Where bytes can be permuted between two
registers (VBMI), the table is some registers, of 128 groups' bytes each, and a look-up is one permutation for each and
a choice between them: 14 instructions for 64 groups of 512. Elsewhere it is two loads for each group, of an index and
of a word that is moved into the vector. Not the CPU's gathers: on AMD's they are many more operations than that, and
on Intel's the microcode against Downfall (CVE-2022-40982) made them several times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from ..isa import may_use
from .dot import in_order
from .memory import ir_constant, ir_rows
from .types import (
    BYTES,
    I8,
    I16,
    I32,
    I64,
    ISA,
    LANES,
    Emit,
    I,
    ir_call,
    ir_const,
    ir_shuffle,
    operation,
)

Grid = NDArray[np.uint8]
"""(groups, 4 or 8): numbers of 3 bits where there are 4, of 2 bits where there are 8."""

_REGISTER = 128
"""Groups whose bytes one permutation of two registers looks up."""


def by_permutations(grid: Grid) -> Emit:
    """The table as bytes: each has a group's 2 or 4 neighbouring numbers."""
    groups, size = grid.shape
    bits = 16 // size
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = (grid.reshape(groups, 2, -1) << shifts).sum(axis=2)  # numbers of the first half, of the second
    first, second = ([part[i : i + 64].tolist() for i in range(0, groups, 64)] for part in packed.T)

    def emit(builder: Any, low: Any, high: Any) -> Any:
        choices = _choices(builder, low, high, groups)
        halves = [_permuted(builder, table, builder.bitcast(low, BYTES), choices) for table in (first, second)]
        if size == 8:
            spread = [_spread(builder, half, 8 * j, bits) for j in range(4) for half in halves]
        else:
            pairs = [_pairs(builder, halves[0], halves[1], j) for j in (0, 2)]
            spread = [_spread(builder, pairs[j // 2], 16 * (j % 2), bits) for j in range(4)]
        return cgutils.pack_array(builder, spread)

    return emit


def _choices(builder: Any, low: Any, high: Any, groups: int) -> list[Any]:
    """For each bit of the indices above the lowest seven, in which bytes it is set."""
    zero = ir.Constant(BYTES, None)
    choices = [builder.icmp_signed("<", builder.bitcast(low, BYTES), zero)]
    for bit in range((groups // 256).bit_length() - 1):
        one = builder.and_(builder.bitcast(high, BYTES), ir.Constant(BYTES, [1 << bit] * (4 * LANES)))
        choices.append(builder.icmp_unsigned("!=", one, zero))
    return choices


def _permuted(builder: Any, table: list[list[int]], indices: Any, choices: list[Any]) -> Any:
    """The entry of each index: one of each part of the table, and those of the lower or upper half of the parts."""
    constants = [ir.Constant(BYTES, part) for part in table]
    found = [
        ir_call(builder, "llvm.x86.avx512.vpermi2var.qi.512", BYTES, a, indices, b)
        for a, b in zip(constants[::2], constants[1::2], strict=True)
    ]
    for choice in choices:
        found = [builder.select(choice, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    return found[0]


def _pairs(builder: Any, a: Any, b: Any, j: int) -> Any:
    """In each lane a's byte j, b's byte j, a's byte j + 1, b's byte j + 1."""
    lanes = range(0, 4 * LANES, 4)
    return ir_shuffle(builder, a, b, [i + j + k + part for i in lanes for k in (0, 1) for part in (0, 4 * LANES)])


def _spread(builder: Any, data: Any, first: int, bits: int) -> Any:
    """In byte b of each lane the bits of that lane from `first` + b `bits` on; the upper ones are anything."""
    control = [32 * lane + first + bits * b for lane in range(2) for b in range(4)] * (LANES // 2)
    name = "llvm.x86.avx512.pmultishift.qb.512"
    return builder.bitcast(ir_call(builder, name, BYTES, ir.Constant(BYTES, control), data), I.llvm)


def by_loads(grid: Grid) -> Emit:
    """The table as words in memory: number b of a group is in byte b, number 4 + b in the upper half of that byte."""
    (groups, size), words = grid.shape, _words(grid)

    def emit(builder: Any, low: Any, high: Any) -> Any:
        index_of = _bytes(builder, low) if groups == 256 else _shorts(builder, low, high, groups // 256 - 1)
        return _by_loads(builder, words, size, index_of)

    return emit


def _words(grid: Grid) -> list[int]:
    groups, size = grid.shape
    numbers = grid.astype(np.uint32).reshape(groups, -1, 4) << np.arange(0, 32, 8, dtype=np.uint32)
    halves = numbers.sum(axis=2, dtype=np.uint32) << np.arange(0, size, 4, dtype=np.uint32)
    words: list[int] = halves.sum(axis=1).tolist()
    return words


def _by_loads(builder: Any, words: list[int], size: int, index_of: Callable[[int, int], Any]) -> Any:
    """The groups of index_of(0, lane), .. 3. The words are in the kernel's own read-only memory."""
    table = cgutils.global_constant(builder, "grid", ir.Constant(ir.ArrayType(I32, len(words)), words))
    found = _settled(builder, [_loaded(builder, table, partial(index_of, j)) for j in range(4)])
    if size == 8:
        found = [part for v in found for part in (v, builder.lshr(v, ir_const(4)))]
    return cgutils.pack_array(builder, found)


def _bytes(builder: Any, low: Any) -> Callable[[int, int], Any]:
    indices = builder.bitcast(low, BYTES)
    return lambda j, lane: builder.extract_element(indices, ir.Constant(I32, 4 * lane + j))


def _shorts(builder: Any, low: Any, high: Any, mask: int) -> Callable[[int, int], Any]:
    """Indices of more than a byte, `mask` being the bits of their upper one that count."""
    low_bytes, upper = ir_const(0x00FF00FF), ir_const(0x01000100 * mask)
    high_words = [builder.and_(builder.shl(high, ir_const(8)), upper), builder.and_(high, upper)]
    low_words = [builder.and_(low, low_bytes), builder.and_(builder.lshr(low, ir_const(8)), low_bytes)]
    shorts = [
        builder.bitcast(builder.or_(a, b), ir.VectorType(I16, 2 * LANES))
        for a, b in zip(low_words, high_words, strict=True)
    ]
    return lambda j, lane: builder.extract_element(shorts[j % 2], ir.Constant(I32, 2 * lane + j // 2))


def _loaded(builder: Any, table: Any, index_of: Callable[[int], Any]) -> Any:
    vector = ir.Constant(I.llvm, ir.Undefined)
    for lane in range(LANES):
        at = builder.gep(table, [ir.Constant(I32, 0), builder.zext(index_of(lane), I32)], inbounds=True)
        vector = builder.insert_element(vector, builder.load(at), ir.Constant(I32, lane))
    return vector


def _settled(builder: Any, vectors: list[Any]) -> list[Any]:
    """LLVM would load the indices of several look-ups first, and put them aside on the stack."""
    return in_order(builder, vectors) if ISA.machine == "x86" else vectors


_PERMUTES = ISA.dot == "vpdpbusd.512" and may_use("avx512vbmi")
MOST_PERMUTED = 1024
"""Groups of the largest table that is looked up by permutations. Of 2048 its registers are 4 KB to be read each time:
then loads are 25% faster on Zen 4, of 1024 they are 25% slower."""
FROM_MEMORY = not _PERMUTES
"""Whether all look-ups are by loads: `grid_lookup_rows` is better then where indices are as they are in a row."""


def _usual(grid: Grid) -> Emit:
    return by_permutations(grid) if _PERMUTES and len(grid) <= MOST_PERMUTED else by_loads(grid)


def grid_lookup(name: str, grid: Grid, how: Callable[[Grid], Emit] = _usual) -> Any:
    """Declare an operation of two I, whose bytes are the low and the high bytes of indices of `grid`, 4 a lane.

    Gives 4 or 8 x I: byte b of vector k has number 4k + b of the lane's four groups, one after another, in its lowest 3
    or 2 bits. Bits above, and bits of high bytes that no index needs, may be anything; `by_loads` leaves bits 3 and 7
    zero.
    """
    emit = how(grid)
    emit.__name__ = name
    return operation(types.UniTuple(I, grid.shape[1]), I, I)(emit)


def grid_lookup_rows(name: str, grid: Grid) -> Any:
    """Declare the same operation for indices that are 4 neighbouring bytes at address + r * stride, for each row r.

    Of more than 256 groups they are 16-bit numbers, whose lowest bits count. By loads: an index takes one instruction,
    or two, where moving it out of a vector takes three.
    """
    words, (groups, size) = _words(grid), grid.shape
    element = I8 if groups == 256 else I16

    def emit(builder: Any, address: Any, stride: Any) -> Any:
        rows = ir_rows(builder, address, stride)

        def index_of(j: int, lane: int) -> Any:
            at = builder.add(rows[lane], ir.Constant(I64, j * element.width // 8))
            return builder.and_(ir_constant(builder, at, element), ir.Constant(element, groups - 1))

        return _by_loads(builder, words, size, index_of)

    emit.__name__ = name
    return operation(types.UniTuple(I, size), types.intp, types.intp)(emit)
