"""Bits, nibbles and bytes inside words: tables, spreading, picking. Knows no format."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import may_use
from .dot import ir_bytes
from .types import BYTES, I8, ISA, LANES, WORDS, Emit, I, ir_call, ir_const, ir_shuffle, operation

# ---- table lookup --------------------------------------------------------------------------------------------------


def _low_nibbles(builder: Any, indices: Any) -> Any:
    return builder.and_(indices, ir.Constant(BYTES, [0x0F] * (4 * LANES)))


def _lookup_plain(builder: Any, table: list[int], indices: Any) -> Any:
    indices = _low_nibbles(builder, indices)
    result = ir.Constant(BYTES, [table[0]] * (4 * LANES))
    for index, value in enumerate(table[1:], start=1):
        hit = builder.icmp_unsigned("==", indices, ir.Constant(BYTES, [index] * (4 * LANES)))
        result = builder.select(hit, ir.Constant(BYTES, [value] * (4 * LANES)), result)
    return result


def _lookup_shuffle(name: str) -> Emit:
    def emit(builder: Any, table: list[int], indices: Any) -> Any:
        return ir_call(builder, name, BYTES, ir.Constant(BYTES, table * (LANES // 4)), indices)

    return emit


def _lookup_tbl(builder: Any, table: list[int], indices: Any) -> Any:
    indices = _low_nibbles(builder, indices)
    return ir_call(builder, "llvm.aarch64.neon.tbl1.v16i8", BYTES, ir.Constant(BYTES, table), indices)


_LOOKUP: Emit = {
    "vpdpbusd.512": _lookup_shuffle("llvm.x86.avx512.pshuf.b.512"),
    "vpdpbusd.256": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "vpmaddubsw": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "sdot": _lookup_tbl,
}.get(ISA.dot, _lookup_plain)


def byte_table(name: str, table: list[int]) -> Any:
    """Declare an operation I -> I that replaces each byte by the entry of `table` (0..255) that its lower half says.

    Bit 7 of the bytes must be 0; bits 4..6 may be anything.
    """

    def emit(builder: Any, indices: Any) -> Any:
        return builder.bitcast(_LOOKUP(builder, table, ir_bytes(builder, indices)), WORDS)

    emit.__name__ = name
    return operation(I, I)(emit)


# ---- bits to bytes -------------------------------------------------------------------------------------------------


def _spread_by_product(builder: Any, bits: Any, to: int) -> Any:
    """The product puts bit i at 8i + to."""
    low = builder.and_(bits, ir_const(0xF))
    return builder.and_(builder.mul(low, ir_const(0x00204081 << to)), ir_const(0x01010101 << to))


def _spread_by_lookup(builder: Any, bits: Any, to: int) -> Any:
    """A table of 16 words is one register, and its look-up needs no mask: half the instructions."""
    table = [sum((i >> bit & 1) << 8 * bit + to for bit in range(4)) for i in range(16)]
    return ir_call(builder, "llvm.x86.avx512.permvar.si.512", WORDS, ir.Constant(WORDS, table), bits)


_SPREAD: Emit = _spread_by_lookup if ISA.dot == "vpdpbusd.512" else _spread_by_product


def bits_to_bytes(to: int) -> Any:
    """Declare an operation I -> I: bits 0..3 of each lane as bit `to` of its four bytes; all others 0."""

    def emit(builder: Any, bits: Any) -> Any:
        return _SPREAD(builder, bits, to)

    emit.__name__ = f"bits_to_bytes_{to}"
    return operation(I, I)(emit)


# ---- nibbles -------------------------------------------------------------------------------------------------------


def _high_nibbles_by_shift(builder: Any, words: Any) -> Any:
    return builder.and_(builder.lshr(words, ir_const(4)), ir_const(0x0F0F0F0F))


def _by_matrix(builder: Any, words: Any, matrix: list[int]) -> Any:
    """Of each byte of the words another: bit b is the parity of the bits that byte 7 - b of the matrix chooses."""
    rows = ir.Constant(BYTES, matrix * (LANES // 2))
    name = f"llvm.x86.vgf2p8affineqb.{32 * LANES}"
    return builder.bitcast(ir_call(builder, name, BYTES, ir_bytes(builder, words), rows, ir.Constant(I8, 0)), WORDS)


def _high_nibbles_by_matrix(builder: Any, words: Any) -> Any:
    """One instruction instead of two, on other ports than shuffles."""
    return _by_matrix(builder, words, [1 << 7 - row + 4 if row >= 4 else 0 for row in range(8)])


_MATRIX = LANES >= 8 and may_use("gfni")
_HIGH_NIBBLES: Emit = _high_nibbles_by_matrix if _MATRIX else _high_nibbles_by_shift


@operation(I, I)
def high_nibbles(builder: Any, words: Any) -> Any:
    """Bits 4..7 of every byte as bits 0..3; all others 0."""
    return _HIGH_NIBBLES(builder, words)


# ---- signs -------------------------------------------------------------------------------------------------------


def _parity_by_shifts(builder: Any, words: Any) -> Any:
    """Halves of each byte onto each other; what comes from its neighbour is above the bit that counts."""
    folded = words
    for shift in (4, 2, 1):
        folded = builder.xor(folded, builder.lshr(folded, ir_const(shift)))
    return builder.or_(words, builder.shl(builder.and_(folded, ir_const(0x01010101)), ir_const(7)))


def _parity_by_matrix(builder: Any, words: Any) -> Any:
    return _by_matrix(builder, words, [0x7F, *(1 << 7 - row for row in range(1, 8))])


_PARITY: Emit = _parity_by_matrix if _MATRIX else _parity_by_shifts


@operation(I, I)
def with_parity(builder: Any, words: Any) -> Any:
    """Bit 7 of every byte, which must be 0, becomes the parity of the others: an even number of bits is set then."""
    return _PARITY(builder, words)


# ---- bytes of shorts ---------------------------------------------------------------------------------------------


def _every_other_byte(builder: Any, a: Any, b: Any, first: int) -> Any:
    lanes = range(first, 4 * LANES, 4)
    indices = [i + k + part for i in lanes for part in (0, 4 * LANES) for k in (0, 2)]
    return builder.bitcast(ir_shuffle(builder, ir_bytes(builder, a), ir_bytes(builder, b), indices), WORDS)


@operation(I, I, I)
def low_bytes(builder: Any, a: Any, b: Any) -> Any:
    """Of each lane the low bytes of the two 16-bit numbers of a, then of b."""
    return _every_other_byte(builder, a, b, 0)


@operation(I, I, I)
def high_bytes(builder: Any, a: Any, b: Any) -> Any:
    """Of each lane the high bytes of the two 16-bit numbers of a, then of b."""
    return _every_other_byte(builder, a, b, 1)
