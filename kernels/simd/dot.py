"""Products of bytes: where instruction sets differ most. Knows no format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .types import BYTES, I16, ISA, LANES, WORDS, Emit, I, ir_call, ir_const, operation

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
