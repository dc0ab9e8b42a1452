"""Products of bytes, and table look-ups: where instruction sets differ most. Knows no format."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edge_gemma.kernels.simd_types import BYTES, I16, I32, ISA, LANES, WORDS, Emit, I, ir_call, ir_const, operation


def ir_bytes(builder: Any, a: Any) -> Any:
    """A vector of words as one of bytes."""
    return builder.bitcast(a, BYTES)


def _dot4_plain(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    for byte in range(4):
        unsigned = builder.and_(builder.lshr(u, ir_const(8 * byte)), ir_const(0xFF))
        signed = builder.ashr(builder.shl(s, ir_const(24 - 8 * byte)), ir_const(24))
        acc = builder.add(acc, builder.mul(unsigned, signed))
    return acc


def _dot4_partial_reduce(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """LLVM turns this into `usdot`, or `sdot` and a correction, on AArch64."""
    wide = ir.VectorType(I32, 4 * LANES)
    product = builder.mul(builder.zext(ir_bytes(builder, u), wide), builder.sext(ir_bytes(builder, s), wide))
    return ir_call(builder, f"llvm.vector.partial.reduce.add.v{LANES}i32.v{4 * LANES}i32", WORDS, acc, product)


def _vpdpbusd(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """With words, as the instruction was declared until LLVM 22, which takes bytes and turns the older form into it."""
    return ir_call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", WORDS, acc, u, s)


def _vpmaddubsw(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    shorts = ir.VectorType(I16, 2 * LANES)
    pairs = ir_call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, ir_bytes(builder, u), ir_bytes(builder, s))
    ones = ir.Constant(shorts, [1] * (2 * LANES))
    return builder.add(acc, ir_call(builder, "llvm.x86.avx2.pmadd.wd", WORDS, pairs, ones))


def _vpmaddwd(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """Even and odd bytes as 16-bit numbers: exact over the whole range of u, at three times the cost."""
    shorts = ir.VectorType(I16, 2 * LANES)
    eight = ir.Constant(shorts, [8] * (2 * LANES))
    u16, s16 = builder.bitcast(u, shorts), builder.bitcast(s, shorts)
    even = builder.and_(u16, ir.Constant(shorts, [0xFF] * (2 * LANES))), builder.ashr(builder.shl(s16, eight), eight)
    odd = builder.lshr(u16, eight), builder.ashr(s16, eight)
    for pair in (even, odd):
        acc = builder.add(acc, ir_call(builder, "llvm.x86.avx2.pmadd.wd", WORDS, *pair))
    return acc


DOT4 = {
    "vpdpbusd.512": (_vpdpbusd, _vpdpbusd),
    "vpdpbusd.256": (_vpdpbusd, _vpdpbusd),
    "vpmaddubsw": (_vpmaddubsw, _vpmaddwd),
    "partial.reduce": (_dot4_partial_reduce, _dot4_partial_reduce),
    "plain": (_dot4_plain, _dot4_plain),
}[ISA.dot]


@operation(I, I, I, I)
def dot4(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + the four products of unsigned bytes of u, at most 127, with signed bytes of s, per lane. Exact.

    The bound is AVX2's: `vpmaddubsw` saturates a sum of two products at 2^15 - 1.
    """
    return DOT4[0](builder, acc, u, s)


@operation(I, I, I, I)
def dot4_wide(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    """As `dot4`, with u up to 255."""
    return DOT4[1](builder, acc, u, s)


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


_LOOKUP: Emit = {
    "vpdpbusd.512": _lookup_shuffle("llvm.x86.avx512.pshuf.b.512"),
    "vpdpbusd.256": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
    "vpmaddubsw": _lookup_shuffle("llvm.x86.avx2.pshuf.b"),
}.get(ISA.dot, _lookup_plain)


def byte_table(name: str, table: list[int]) -> Any:
    """Declare an operation I -> I that replaces each byte, which must be 0..15, by its entry of `table` (0..255)."""

    def emit(builder: Any, indices: Any) -> Any:
        return builder.bitcast(_LOOKUP(builder, table, ir_bytes(builder, indices)), WORDS)

    emit.__name__ = name
    return operation(I, I)(emit)
