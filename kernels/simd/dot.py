"""Products of bytes, and table look-ups: where instruction sets differ most. Knows no format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..isa import may_use
from .types import BYTES, I8, I16, ISA, LANES, WORDS, Emit, I, ir_call, ir_const, operation

I1 = ir.IntType(1)
SHORTS = ir.VectorType(I16, 2 * LANES)


def ir_bytes(builder: Any, a: Any) -> Any:
    """A vector of words as one of bytes."""
    return builder.bitcast(a, BYTES)


def _dot4_plain(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    for byte in range(4):
        unsigned = builder.and_(builder.lshr(u, ir_const(8 * byte)), ir_const(0xFF))
        signed = builder.ashr(builder.shl(s, ir_const(24 - 8 * byte)), ir_const(24))
        acc = builder.add(acc, builder.mul(unsigned, signed))
    return acc


def _sdot(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """Signed by signed bytes, which is as good where u is at most 127.

    Not LLVM's general `vector.partial.reduce.add`: which products it adds to which lane is left open.
    """
    return ir_call(
        builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", WORDS, acc, ir_bytes(builder, u), ir_bytes(builder, s)
    )


def _vpdpbusd(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """With words, as the instruction was declared until LLVM 22, which takes bytes and turns the older form into it."""
    return ir_call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", WORDS, acc, u, s)


def _shorts(builder: Any, u: Any, s: Any) -> Any:
    """Sums of two neighbouring products as 16-bit numbers, which must hold them."""
    return ir_call(builder, "llvm.x86.avx2.pmadd.ub.sw", SHORTS, ir_bytes(builder, u), ir_bytes(builder, s))


def _widened(builder: Any, acc: Any, shorts: Any) -> Any:
    ones = ir.Constant(SHORTS, [1] * (2 * LANES))
    return builder.add(acc, ir_call(builder, "llvm.x86.avx2.pmadd.wd", WORDS, shorts, ones))


def _vpmaddubsw(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    return _widened(builder, acc, _shorts(builder, u, s))


_DOT4: dict[str, Emit] = {
    "vpdpbusd.512": _vpdpbusd,
    "vpdpbusd.256": _vpdpbusd,
    "vpmaddubsw": _vpmaddubsw,
    "sdot": _sdot,
    "plain": _dot4_plain,
}


@operation(I, I, I, I)
def dot4(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + the four products of unsigned bytes of u, at most 127, with signed bytes of s, per lane. Exact.

    The bound is AVX2's: `vpmaddubsw` saturates a sum of two products at 2^15 - 1.
    """
    return _DOT4[ISA.dot](builder, acc, u, s)


# ---- many of them, on the vectors of a tile ------------------------------------------------------------------------

Step = Callable[[int], tuple[list[Any], list[Any]]]
"""The vectors of weights and the vectors of inputs that step k multiplies, one of each per vector of the tile."""


def ir_dots(builder: Any, tile: list[Any], step: Step, count: int, top: int, *, crowded: bool) -> list[Any]:
    """tile[j] + the products of all bytes of u[j] with those of s[j], -127..127, for (u, s) of all steps. Exact.

    top: the largest byte of u; 255 stands for weights that need all 8 bits, plus WIDE_ZERO (`layout`).
    crowded: the tile takes most of 16 registers, so that no step's operands may be loaded before the last one's end.
    """
    settle = in_order if crowded and ISA.machine == "x86" and ISA.registers < 32 else lambda _builder, values: values
    if ISA.dot == "vpmaddubsw":
        return _dots_of_shorts(builder, tile, step, count, top, settle)
    for k in range(count):
        tile = settle(builder, [_DOT4[ISA.dot](builder, *each) for each in zip(tile, *step(k), strict=True)])
    return tile


def _dots_of_shorts(builder: Any, tile: list[Any], step: Step, count: int, top: int, settle: Any) -> list[Any]:
    """Products of small weights are added up as 16-bit numbers while these can hold them, and only then widened."""
    product = _shorts_of_magnitudes if top == 255 else _shorts
    run = min(count, (2**15 - 1) // (2 * 127 * min(top, 128)))
    sums: list[Any] = []
    for k in range(count):
        products = [product(builder, *each) for each in zip(*step(k), strict=True)]
        sums = [builder.add(*each) for each in zip(sums, products, strict=True)] if k % run else products
        if (k + 1) % run == 0 or k + 1 == count:
            tile = settle(builder, [_widened(builder, *each) for each in zip(tile, sums, strict=True)])
        else:
            sums = settle(builder, sums)
    return tile


def _shorts_of_magnitudes(builder: Any, u: Any, s: Any) -> Any:
    """Signed by signed bytes: |u| times s with the sign of u; two products are at most 2 x 128 x 127."""
    magnitude = ir_call(builder, f"llvm.abs.v{4 * LANES}i8", BYTES, ir_bytes(builder, u), ir.Constant(I1, 0))
    signed = ir_call(builder, "llvm.x86.avx2.psign.b", BYTES, ir_bytes(builder, s), ir_bytes(builder, u))
    return _shorts(builder, magnitude, signed)


def in_order(builder: Any, values: list[Any]) -> list[Any]:
    """The same values, of one type; nothing after is loaded or computed before all of them are there."""
    one, count = values[0].type, len(values)
    function_type = ir.FunctionType(ir.LiteralStructType([one] * count), [one] * count)
    constraints = ["=x"] * count + [str(i) for i in range(count)] + ["~{memory}"]
    done = builder.call(ir.InlineAsm(function_type, "", ",".join(constraints), side_effect=True), values)
    return [builder.extract_value(done, i) for i in range(count)]


# ---- table lookup --------------------------------------------------------------------------------------------------


def _lookup_plain(builder: Any, table: list[int], indices: Any) -> Any:
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
    return ir_call(builder, "llvm.aarch64.neon.tbl1.v16i8", BYTES, ir.Constant(BYTES, table), indices)


_LOOKUP: Emit = {
    "vpdpbusd.512": _lookup_shuffle("llvm.x86.avx512.pshuf.b.512"),
    "vpdpbusd.256": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "vpmaddubsw": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "sdot": _lookup_tbl,
}.get(ISA.dot, _lookup_plain)


def byte_table(name: str, table: list[int]) -> Any:
    """Declare an operation I -> I that replaces each byte, which must be 0..15, by its entry of `table` (0..255)."""

    def emit(builder: Any, indices: Any) -> Any:
        return builder.bitcast(_LOOKUP(builder, table, ir_bytes(builder, indices)), WORDS)

    emit.__name__ = name
    return operation(I, I)(emit)


# ---- bits to bytes -------------------------------------------------------------------------------------------------


def _spread_by_product(builder: Any, bits: Any) -> Any:
    """The product puts bit i at 8i."""
    low = builder.and_(bits, ir_const(0xF))
    at_0 = builder.and_(builder.mul(low, ir_const(0x00204081)), ir_const(0x01010101))
    return builder.shl(at_0, ir_const(4))


def _spread_by_lookup(builder: Any, bits: Any) -> Any:
    """A table of 16 words is one register, and its look-up needs no mask: half the instructions."""
    table = [sum((i >> bit & 1) << 8 * bit + 4 for bit in range(4)) for i in range(16)]
    return ir_call(builder, "llvm.x86.avx512.permvar.si.512", WORDS, ir.Constant(WORDS, table), bits)


_SPREAD: Emit = _spread_by_lookup if ISA.dot == "vpdpbusd.512" else _spread_by_product


@operation(I, I)
def spread_bits(builder: Any, bits: Any) -> Any:
    """Bits 0..3 of each lane as bit 4 of its four bytes; all others 0."""
    return _SPREAD(builder, bits)


# ---- nibbles -------------------------------------------------------------------------------------------------------


def _high_nibbles_by_shift(builder: Any, words: Any) -> Any:
    return builder.and_(builder.lshr(words, ir_const(4)), ir_const(0x0F0F0F0F))


def _high_nibbles_by_matrix(builder: Any, words: Any) -> Any:
    """One instruction instead of two, on other ports than shuffles: a matrix of bits, of which byte 7 - b says which
    bits of a byte make up bit b of the result, for all bytes."""
    matrix = [1 << 7 - row + 4 if row >= 4 else 0 for row in range(8)]
    rows = ir.Constant(BYTES, matrix * (LANES // 2))
    name = f"llvm.x86.vgf2p8affineqb.{32 * LANES}"
    return builder.bitcast(ir_call(builder, name, BYTES, ir_bytes(builder, words), rows, ir.Constant(I8, 0)), WORDS)


_HIGH_NIBBLES: Emit = _high_nibbles_by_matrix if LANES >= 8 and may_use("gfni") else _high_nibbles_by_shift


@operation(I, I)
def high_nibbles(builder: Any, words: Any) -> Any:
    """Bits 4..7 of every byte as bits 0..3; all others 0."""
    return _HIGH_NIBBLES(builder, words)
