"""Register tiles: operations on m x n vectors at a time. Know no format.

A tile is a tuple of m x n vectors, n neighbours of one row after another; m and n follow from the tuples' lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .arithmetic import ir_fma, ir_fold
from .decorators import intrinsic, intrinsic_of_constants
from .dot import ir_dots
from .types import F32, FLOATS, I32, I64, LANES, WORDS, F, I, VectorType, ir_load, ir_row, ir_splat, ir_store, ir_words


def _elements(builder: Any, value: Any, count: int) -> list[Any]:
    return [builder.extract_value(value, i) for i in range(count)]


def _outer(builder: Any, tile: Any, b: Any, sizes: tuple[int, int], each: Callable[[int, Any, Any], Any]) -> Any:
    m, n = sizes
    acc, vectors = _elements(builder, tile, m * n), _elements(builder, b, n)
    return cgutils.pack_array(builder, [each(i, acc[i * n + j], vectors[j]) for i in range(m) for j in range(n)])


def _sizes(tile: Any, b: Any) -> tuple[int, int]:
    return tile.count // b.count, b.count


def outer_dots(top: int) -> Any:
    """Declare an operation: tile[i][j] + the products of `steps` vectors of bytes with 4 bytes each of row i.

    Vector k for column j lies at weights + 4 LANES k + apart * j, its 4 bytes of row i at inputs + stride * i + 4 k.
    top: the largest byte of the vectors, as `dot.ir_dots` has it. apart, n and steps are constants.
    """

    def dots(_typing: Any, tile: Any, inputs: Any, stride: Any, weights: Any, apart: Any, n: Any, steps: Any) -> Any:
        if not all(isinstance(c, types.IntegerLiteral) for c in (apart, n, steps)):
            return None
        rows, columns = range(tile.count // n.literal_value), range(n.literal_value)

        def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            acc, x, x_stride, w = arguments[:4]
            words = [ir_words(builder, ir_row(builder, x, x_stride, i), steps.literal_value) for i in rows]

            def step(k: int) -> tuple[list[Any], list[Any]]:
                at = builder.add(w, ir.Constant(I64, 4 * LANES * k))
                u = [
                    ir_load(builder, ir_row(builder, at, ir.Constant(I64, apart.literal_value), j), WORDS)
                    for j in columns
                ]
                s = [word(k) for word in words]
                return u * len(rows), [v for v in s for _ in columns]

            start = _elements(builder, acc, tile.count)
            return cgutils.pack_array(
                builder, ir_dots(builder, start, step, steps.literal_value, top, crowded=tile.count > 1)
            )

        return tile(tile, types.intp, types.intp, types.intp, apart, n, steps), codegen

    return intrinsic_of_constants(dots)


def dots(top: int) -> Any:
    """Declare an operation: total + the products of all bytes of u[k] with the 4 bytes at address + 4 k, for all k."""

    def dots(_typing: Any, total: Any, u: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            acc, vectors, x = arguments
            weights, word = _elements(builder, vectors, u.count), ir_words(builder, x, u.count)

            def step(k: int) -> tuple[list[Any], list[Any]]:
                return [weights[k]], [word(k)]

            return ir_dots(builder, [acc], step, u.count, top, crowded=False)[0]

        return I(total, u, types.intp), codegen

    return intrinsic(dots)


@intrinsic
def outer_fma(_typing: Any, tile: Any, address: Any, stride: Any, b: Any) -> Any:
    """fma(the float32 at address + i * stride, b[j], tile[i][j])."""
    sizes = _sizes(tile, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, vectors = arguments
        inputs = [ir_splat(builder, ir_load(builder, ir_row(builder, base, step, i), F32)) for i in range(sizes[0])]
        return _outer(builder, acc, vectors, sizes, lambda i, c, w: ir_fma(builder, inputs[i], w, c))

    return tile(tile, types.intp, types.intp, b), codegen


@intrinsic
def halves_fma(_typing: Any, tile: Any, left: Any, right: Any, stride: Any, b: Any) -> Any:
    """`outer_fma` with the floats at left for the first half of the columns, and those at right for the second."""
    m, n = _sizes(tile, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, *bases, step, vectors = arguments
        tiles, columns = _elements(builder, acc, m * n), _elements(builder, vectors, n)

        def each(i: int, j: int) -> Any:
            at = ir_row(builder, bases[2 * j // n], step, i)
            return ir_fma(builder, ir_splat(builder, ir_load(builder, at, F32)), columns[j], tiles[i * n + j])

        return cgutils.pack_array(builder, [each(i, j) for i in range(m) for j in range(n)])

    return tile(tile, types.intp, types.intp, types.intp, b), codegen


@intrinsic
def tile_scale(_typing: Any, tile: Any, a: Any, scale: Any) -> Any:
    """fma(a[i][j], scale[j], tile[i][j])."""
    sizes = _sizes(tile, scale)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, factors, vectors = arguments
        values = _elements(builder, factors, tile.count)
        return _outer(builder, acc, vectors, sizes, lambda _i, c, w: ir_fma(builder, values.pop(0), w, c))

    return tile(tile, a, scale), codegen


@intrinsic
def broadcast_rows(_typing: Any, address: Any, stride: Any, like: Any, b: Any) -> Any:
    """A tile of int32 shaped as `like`: tile[i][j] is the int32 at address + i * stride in every lane."""
    m, n = _sizes(like, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        base, step, _, _ = arguments
        inputs = [ir_splat(builder, ir_load(builder, ir_row(builder, base, step, i), I32)) for i in range(m)]
        return cgutils.pack_array(builder, [inputs[i] for i in range(m) for _ in range(n)])

    return types.UniTuple(I, m * n)(types.intp, types.intp, like, b), codegen


@intrinsic
def outer_scale(_typing: Any, tile: Any, total: Any, address: Any, stride: Any, scale: Any) -> Any:
    """fma(float(total[i][j]), scale[j] * the float32 at address + i * stride, tile[i][j])."""
    sizes = _sizes(tile, scale)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, totals, base, step, vectors = arguments
        inputs = [ir_splat(builder, ir_load(builder, ir_row(builder, base, step, i), F32)) for i in range(sizes[0])]
        floats = [builder.sitofp(v, FLOATS) for v in _elements(builder, totals, tile.count)]

        def each(i: int, c: Any, w: Any) -> Any:
            return ir_fma(builder, floats.pop(0), builder.fmul(w, inputs[i]), c)

        return _outer(builder, acc, vectors, sizes, each)

    return tile(tile, total, types.intp, types.intp, scale), codegen


@intrinsic
def tile_mul_add(_typing: Any, tile: Any, total: Any, factor: Any) -> Any:
    """tile[i][j] + total[i][j] * factor[j], in int32."""
    sizes = _sizes(tile, factor)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, totals, vectors = arguments
        values = _elements(builder, totals, tile.count)
        each = lambda _i, c, w: builder.add(c, builder.mul(values.pop(0), w))  # noqa: E731
        return _outer(builder, acc, vectors, sizes, each)

    return tile(tile, total, factor), codegen


@intrinsic
def tile_fma(_typing: Any, tile: Any, a: Any, b: Any) -> Any:
    """fma(a[i], b[j], tile[i][j])."""
    sizes = _sizes(tile, b)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, left, right = arguments
        rows = _elements(builder, left, sizes[0])
        return _outer(builder, acc, right, sizes, lambda i, c, w: ir_fma(builder, rows[i], w, c))

    return tile(tile, a, b), codegen


@intrinsic_of_constants
def store_sums(_typing: Any, tile: Any, address: Any, stride: Any, n: Any) -> Any:
    """The sum of lanes of tile[i][j], rows of n, as float32 to address + i * stride + 4 * j."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    columns = n.literal_value

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, _ = arguments
        for k in range(tile.count):
            i, j = divmod(k, columns)
            at = builder.add(ir_row(builder, base, step, i), ir.Constant(I64, 4 * j))
            ir_store(builder, at, ir_fold(builder, builder.extract_value(acc, k), builder.fadd))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, n), codegen


def _tile_of(count: Any, vector: VectorType, zero: ir.Constant) -> Any:
    size = count.literal_value

    def codegen(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        return cgutils.pack_array(builder, [zero] * size)

    return types.UniTuple(vector, size)(count), codegen


@intrinsic_of_constants
def zeros(_typing: Any, count: Any) -> Any:
    """A tuple of `count` zero F vectors; count is a constant."""
    return _tile_of(count, F, ir.Constant(FLOATS, None)) if isinstance(count, types.IntegerLiteral) else None


@intrinsic_of_constants
def zeros_int(_typing: Any, count: Any) -> Any:
    """A tuple of `count` zero I vectors; count is a constant."""
    return _tile_of(count, I, ir.Constant(WORDS, None)) if isinstance(count, types.IntegerLiteral) else None


def _tile_memory(tile: Any, address: Any, stride: Any, n: Any, *, write: bool) -> Any:
    columns = n.literal_value

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        acc, base, step, _ = arguments
        loaded = []
        for k in range(tile.count):
            i, j = divmod(k, columns)
            at = builder.add(ir_row(builder, base, step, i), ir.Constant(I64, 4 * LANES * j))
            if write:
                ir_store(builder, at, builder.extract_value(acc, k))
            else:
                loaded.append(ir_load(builder, at, FLOATS))
        return context.get_dummy_value() if write else cgutils.pack_array(builder, loaded)

    return (types.void if write else tile)(tile, types.intp, types.intp, n), codegen


@intrinsic_of_constants
def store_tile(_typing: Any, tile: Any, address: Any, stride: Any, n: Any) -> Any:
    """Row i of the tile, n vectors, to address + i * stride."""
    return _tile_memory(tile, address, stride, n, write=True) if isinstance(n, types.IntegerLiteral) else None


@intrinsic_of_constants
def load_tile(_typing: Any, like: Any, address: Any, stride: Any, n: Any) -> Any:
    """A tile shaped as `like` whose row i, n vectors, is read from address + i * stride."""
    return _tile_memory(like, address, stride, n, write=False) if isinstance(n, types.IntegerLiteral) else None
