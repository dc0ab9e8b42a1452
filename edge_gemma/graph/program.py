"""Record a forward pass as a table for the kernels. Knows operations and buffers; knows no model and runs nothing.

Each method names one operation on the rows of a step and appends it to the table; the shapes in comments use T for
the rows. Buffers are named by `out` and may be written again under the same name. What an operation reads and writes
decides where there is a barrier.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.buffers import ALIGNMENT, aligned_bytes
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.states import Rope
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import ZEROS, activation_bytes, partial_bytes, whole_head
from edge_gemma.kernels.operations import Kernel, Operation
from edge_gemma.kernels.tuning.strategies import DEFAULTS, Choices


@dataclass(frozen=True)
class Rows:
    """A buffer of float32 rows: (T, columns)."""

    name: str
    columns: int
    address: int
    stride: int


Takers = tuple[Tensor, ...]
"""The weights that a result is multiplied with."""


@dataclass(frozen=True)
class Forms:
    """A result as float32 rows (address 0 if nobody needs them) and as int8 blocks."""

    y: Rows
    q: Rows | None = None
    zero: int = 0

    @property
    def int8(self) -> tuple[int, int, int]:
        """The last three arguments of operations that make int8 blocks."""
        return (self.q.address, self.q.stride, self.zero) if self.q else (0, 0, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """What is written."""
        return (self.y.name, self.q.name) if self.q else (self.y.name,)


@dataclass(frozen=True)
class Recorded:
    """What a row of the table is: the operation, the weights it takes, what it writes first, and its kernels for one
    row, a few and many."""

    operation: Operation
    weights: tuple[Tensor, ...]
    out: str
    kernels: tuple[Kernel, Kernel, Kernel]

    def takes_part(self, rows: int) -> bool:
        """Whether it does something in a step of `rows` rows."""
        return self.kernels[0 if rows == 1 else 1 if rows <= ops.FEW_ROWS else 2] != ops.NOTHING


def words_of(table: NDArray[np.int64], rows: Rows) -> tuple[NDArray[np.intp], ...]:
    """Where a table has the address of an outside buffer: the index to write the address to."""
    return np.nonzero(table == rows.address)


def zero_of(weight: Tensor) -> int:
    """The zero of the unsigned numbers that a quantized matrix is multiplied as."""
    return ZEROS.get(weight.format.name, 0)


class Program:
    """The table of one model: operations in order, with the memory they work in.

    `max_rows` bounds the rows of a step; `address_of` gives the address of a tensor's data. With `allocate` false the
    buffers are only counted, and the table cannot be run. With `observe`, the inputs of all products are observed.
    `choices`: how decoding products ask for weights; see `tuning.tuned_choices`.
    """

    def __init__(
        self,
        max_rows: int,
        address_of: Callable[[Tensor], int],
        kv_type: str,
        *,
        choices: Choices = DEFAULTS,
        allocate: bool = True,
        observe: bool = False,
    ) -> None:
        self.max_rows = max_rows
        self.kv_type = kv_type
        self._address_of = address_of
        self._allocate_memory = allocate
        self._observe_products = observe
        self._choices = choices
        self.squares: dict[str, NDArray[np.float32]] = {}
        """Name of a matrix -> of each input column, the sum of squares over the last step's rows. See `observe`."""
        self.ropes: list[Rope] = []
        """The rotary embeddings it uses; a step has angles for each, in this order."""
        self._sizes: dict[str, int] = {}
        self._memory: dict[str, NDArray[np.uint8]] = {}
        self._outside = 0
        self._rows: list[list[int]] = []
        self.recorded: list[Recorded] = []
        """What each row is."""
        self._read: set[str] = set()
        self._written: set[str] = set()
        self._quantized: dict[tuple[str, int], Rows] = {}
        self._observed: dict[str, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def buffer_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(self._sizes.values())

    def kernels(self) -> set[Kernel]:
        """All kernels the table calls."""
        return {kernel for recorded in self.recorded for kernel in recorded.kernels}

    def table(self, addresses: dict[Kernel, int]) -> NDArray[np.int64]:
        """The table, int64 (operations, ROW_WORDS), with the kernels' addresses filled in."""
        table = np.zeros((len(self._rows), ops.ROW_WORDS), np.int64)
        for row, words, recorded in zip(table, self._rows, self.recorded, strict=True):
            row[ops.BARRIER : ops.BARRIER + len(words)] = words
            row[[ops.ONE, ops.FEW, ops.MANY]] = [addresses[kernel] for kernel in recorded.kernels]
        products = [i for i, recorded in enumerate(self.recorded) if recorded.operation is ops.MATMUL]
        for i, following in pairwise(products):
            table[i, ops.NEXT] = table[following, ops.MATMUL.slots[:3]]
        return table

    def outside(self, name: str, columns: int, stride: int) -> Rows:
        """A buffer whose address is written into the table later (`words_of`); `name` may be of one that it lies in."""
        self._outside += 1
        return Rows(name, columns, -self._outside, stride)

    # ---- operations ----------------------------------------------------------------------------------------------

    def embed(self, table: Tensor, scale: float, *, out: str) -> Rows:
        """out = scale * table[token]."""
        y = self._buffer(out, table.shape[1])
        self._emit(
            ops.EMBED,
            Kernel("ops.elementwise", f"embed_{table.format.name}"),
            (),
            (out,),
            *(self._address_of(table), table.row_bytes, y.columns, y.address, y.stride, _real(scale)),
            weights=(table,),
        )
        return y

    def rms_norm(self, x: Rows, weight: Tensor, epsilon: float, *, out: str, takers: Takers) -> Rows:
        """out = x / rms(x) * weight, in the form that the products with `takers` want."""
        return self._norm(x, weight, epsilon, self._forms(out, x.columns, takers), base=None)

    def add_norm(self, base: Rows, x: Rows, weight: Tensor, epsilon: float) -> Rows:
        """base = base + x / rms(x) * weight."""
        return self._norm(x, weight, epsilon, Forms(base), base=base)

    def _norm(self, x: Rows, weight: Tensor, epsilon: float, out: Forms, base: Rows | None) -> Rows:
        self._emit(
            ops.NORM,
            Kernel("ops.elementwise", "norm"),
            (x.name, base.name) if base else (x.name,),
            out.names,
            *(x.address, x.stride, self._address_of(weight), x.columns, _real(epsilon)),
            *((base.address, base.stride) if base else (0, 0)),
            *(out.y.address, out.y.stride, *out.int8),
            weights=(weight,),
        )
        return self._keep(out)

    def add(self, base: Rows, x: Rows) -> Rows:
        """base = base + x."""
        return self._add(base, x.address, x.stride, (x.name,), ())

    def add_bias(self, base: Rows, bias: Tensor) -> Rows:
        """base = base + bias, in each row."""
        return self._add(base, self._address_of(bias), 0, (), (bias,))

    def _add(self, base: Rows, x: int, x_stride: int, reads: tuple[str, ...], weights: tuple[Tensor, ...]) -> Rows:
        self._emit(
            ops.ADD,
            Kernel("ops.elementwise", "add"),
            (*reads, base.name),
            (base.name,),
            *(x, x_stride, base.address, base.stride, base.columns),
            weights=weights,
        )
        return base

    def matmul(self, x: Rows, weight: Tensor, *, out: str, rows: Rows | None = None) -> Rows:
        """out = x weight^T. Quantized weights take x as int8 blocks, made once for each x. `rows`: where to write."""
        return self._product(x, weight, rows or self._buffer(out, weight.shape[0]))

    def _product(self, x: Rows, weight: Tensor, y: Rows, *, few_only: bool = False) -> Rows:
        if self._observe_products:
            self.observe(x, weight)
        if weight.format.is_float:
            one = few = many = Kernel("ops.matmul_float", weight.format.name)
        else:
            name, strategy = weight.format.name, self._choices.for_matrix(weight.format.name, weight.row_bytes)
            one, few = Kernel("ops.matvec", name, strategy), Kernel("ops.matvec", f"{name}_few", strategy)
            many = Kernel("ops.matmul", name)
            x = self._quantize(x, zero_of(weight))
        self._emit(
            ops.MATMUL,
            one,
            (x.name,),
            (y.name,),
            *(self._address_of(weight), weight.row_bytes, *weight.shape, x.address, x.stride, y.address, y.stride),
            few=few,
            many=ops.NOTHING if few_only else many,
            weights=(weight,),
        )
        return y

    def _quantize(self, x: Rows, zero: int) -> Rows:
        if (x.name, zero) not in self._quantized:
            assert x.address or not self._allocate_memory, f"{x.name} was not recorded for all that take it"
            q = self._int8(x.name, x.columns, zero)
            self._emit(
                ops.QUANTIZE,
                Kernel("ops.activations", "quantize"),
                (x.name,),
                (q.name,),
                *(x.address, x.stride, x.columns, zero, q.address, q.stride),
            )
            self._quantized[x.name, zero] = q
        return self._quantized[x.name, zero]

    def observe(self, x: Rows, weight: Tensor) -> None:
        """Have each step write the sums of squares of x's columns, the input of `weight`, into `squares`."""
        if x.name not in self._observed:
            name = f"squares of {weight.name}'s input"
            address = self._room(name, 4 * x.columns)
            self._emit(
                ops.SQUARES,
                Kernel("ops.statistics", "squares"),
                (x.name,),
                (name,),
                *(x.address, x.stride, x.columns, address),
            )
            self._observed[x.name] = self._memory[name].view(np.float32)
        self.squares[weight.name] = self._observed[x.name]

    def rotate(self, x: Rows, rope: Rope, *, norm: Tensor | None, epsilon: float, scale: float) -> Rows:
        """Heads of x in place: RMS norm if there is one, rotary embedding, scale.

        Heads have `rope.dims` dimensions, or, where neighbours are pairs, `whole_head` of it, of which the last are 0.
        """
        size = whole_head(rope.dims) if rope.neighbours else rope.dims
        assert norm is None or size == rope.dims
        if rope not in self.ropes:
            self.ropes.append(rope)
            assert len(self.ropes) <= ops.MOST_ROPES
        self._emit(
            ops.ROTATE,
            Kernel("ops.elementwise", "rotate_neighbours" if rope.neighbours else "rotate"),
            (x.name,),
            (x.name,),
            *(x.address, x.stride, x.columns // size, size),
            *(self._address_of(norm) if norm else 0, _real(epsilon), _real(scale)),
            ops.STEP_ANGLES + self.ropes.index(rope),
        )
        return x

    def whole_heads(self, x: Rows, head_dim: int) -> Rows:
        """The heads of x, of `head_dim` dimensions, as they are rotated, kept and attended to: see `whole_head`."""
        size = whole_head(head_dim)
        return x if size == head_dim else self._resize_heads(x, head_dim, size, out=f"whole heads of {x.name}")

    def _resize_heads(self, x: Rows, head_dim: int, size: int, *, out: str) -> Rows:
        """out = the heads of x, of `head_dim` dimensions, with so many as `size`: cut off, or zeros behind."""
        heads = x.columns // head_dim
        y = self._buffer(out, heads * size)
        self._emit(
            ops.RESIZE_HEADS,
            Kernel("ops.elementwise", "resize_heads"),
            (x.name,),
            (y.name,),
            *(x.address, x.stride, heads, head_dim, y.address, y.stride, size),
        )
        return y

    def append(self, cache: LayerCache, k: Rows, v: Rows) -> None:
        """Keys and values of the step's rows into the cache, at their positions."""
        self._emit(
            ops.APPEND,
            Kernel("ops.attention", f"append_{self.kv_type}"),
            (k.name, v.name),
            (cache.name,),
            *(k.address, v.address, k.stride, cache.heads, cache.head_dim, cache.layer, cache.head_bytes),
        )

    def attend(
        self,
        cache: LayerCache,
        q: Rows,
        *,
        window: int | None,
        softcap: float | None,
        out: str,
        takers: Takers,
        head_dim: int | None = None,
    ) -> Rows:
        """out = softmax(cap(q K^T)) V over the keys at distance 0..window-1, in the form that `takers` want.

        head_dim: the dimensions of a head that are the model's own, where there are zeros behind them.
        """
        if head_dim is not None and head_dim != cache.head_dim:
            whole = self.attend(cache, q, window=window, softcap=softcap, out=f"whole heads of {out}", takers=())
            return self._resize_heads(whole, cache.head_dim, head_dim, out=out)
        window = window or ops.NO_WINDOW
        a = self._forms(out, q.columns, takers)
        heads, head_dim = q.columns // cache.head_dim, cache.head_dim
        spans = f"results of {cache.spans} spans"
        partial = self._room(spans, partial_bytes(heads, head_dim, cache.spans))
        self._emit(
            ops.ATTEND,
            Kernel("ops.attention", f"attend_one_{self.kv_type}"),
            (q.name, cache.name),
            (*a.names, spans),
            *(q.address, q.stride, a.y.address, a.y.stride, heads, cache.heads, head_dim),
            *(cache.layer, cache.head_bytes, window, _real(softcap or 0.0), partial, cache.spans, *a.int8),
            many=Kernel("ops.attention", f"attend_{self.kv_type}"),
        )
        self._emit(
            ops.MERGE,
            Kernel("ops.attention", "merge"),
            (spans,),
            a.names,
            *(a.y.address, heads, head_dim, window, partial, cache.spans, a.int8[0], a.int8[2]),
            many=ops.NOTHING,
        )
        return self._keep(a)

    def gelu_gate(self, x: Rows, gate: Tensor, up: Tensor, *, out: str, takers: Takers) -> Rows:
        """out = gelu(x gate^T) * (x up^T), in the form that `takers` want."""
        return self._gate(x, gate, up, ops.GELU, out, takers)

    def silu_gate(self, x: Rows, gate: Tensor, up: Tensor, *, out: str, takers: Takers) -> Rows:
        """out = silu(x gate^T) * (x up^T), in the form that `takers` want."""
        return self._gate(x, gate, up, ops.SILU, out, takers)

    def _gate(self, x: Rows, gate: Tensor, up: Tensor, activation: int, out: str, takers: Takers) -> Rows:
        """Either of the two.

        Many rows take one pass where both matrices have one quantized format and so has what the result meets: then
        the products themselves exist only for a few rows.
        """
        y = self._forms(out, gate.shape[0], takers)
        at_once = gate.format == up.format and not gate.format.is_float and y.q is not None
        if at_once:
            self._gated(x, gate, up, activation, y)
        names = ("gate of few", "up of few") if at_once else ("gate", "up")
        rows = min(self.max_rows, ops.FEW_ROWS) if at_once else self.max_rows
        g, u = (self._buffer(name, weight.shape[0], rows) for name, weight in zip(names, (gate, up), strict=True))
        self._product(x, gate, g, few_only=at_once)
        self._product(x, up, u, few_only=at_once)
        kernel = Kernel("ops.elementwise", "gate")
        self._emit(
            ops.GATE,
            kernel,
            (g.name, u.name),
            y.names,
            *(g.address, u.address, activation, g.stride, g.columns, y.y.address, y.y.stride, *y.int8),
            few=kernel,
            many=ops.NOTHING if at_once else kernel,
        )
        return self._keep(y)

    def _gated(self, x: Rows, gate: Tensor, up: Tensor, activation: int, y: Forms) -> None:
        """What `_gate` does for many rows."""
        q = self._quantize(x, zero_of(gate))
        self._emit(
            ops.GATED,
            ops.NOTHING,
            (q.name,),
            y.names,
            *(self._address_of(gate), gate.row_bytes, *gate.shape, q.address, q.stride, y.y.address, y.y.stride),
            *(self._address_of(up), activation, *y.int8),
            few=ops.NOTHING,
            many=Kernel("ops.matmul", gate.format.name),
            weights=(gate, up),
        )

    def softcap(self, x: Rows, cap: float) -> Rows:
        """x = cap * tanh(x / cap)."""
        self._emit(
            ops.SOFTCAP,
            Kernel("ops.elementwise", "softcap"),
            (x.name,),
            (x.name,),
            *(x.address, x.stride, x.columns, _real(cap)),
        )
        return x

    def mask(self, x: Rows) -> Rows:
        """x = x - inf for the tokens that the step's masks forbid."""
        self._emit(ops.MASK, Kernel("ops.sampling", "mask"), (x.name,), (x.name,), x.address, x.stride, x.columns)
        return x

    def group_maxima(self, x: Rows, y: Rows) -> Rows:
        """y = the largest of each LOGIT_GROUP neighbours of x; y has `logit_groups` columns."""
        self._emit(
            ops.GROUP_MAXIMA,
            Kernel("ops.sampling", "group_maxima"),
            (x.name,),
            (y.name,),
            *(x.address, x.stride, x.columns, y.address, y.stride),
        )
        return y

    # ---- forms of a result ---------------------------------------------------------------------------------------

    def _forms(self, name: str, columns: int, takers: Takers) -> Forms:
        """Floats if somebody needs them; int8 blocks with the first zero that is wanted (others are made later)."""
        zeros = list(dict.fromkeys(zero_of(t) for t in takers if not t.format.is_float))
        floats = len(zeros) != 1 or self._observe_products or any(t.format.is_float for t in takers)
        y = self._buffer(name, columns) if floats else Rows(name, columns, 0, 0)
        return Forms(y, self._int8(name, columns, zeros[0]), zeros[0]) if zeros else Forms(y)

    def _int8(self, name: str, columns: int, zero: int) -> Rows:
        return self._allocate(f"{name} as int8, zero {zero}", columns, activation_bytes(columns))

    def _keep(self, forms: Forms) -> Rows:
        """After the operation that makes them has been recorded."""
        if forms.q:
            self._quantized[forms.y.name, forms.zero] = forms.q
        return forms.y

    # ---- the table -----------------------------------------------------------------------------------------------

    def _emit(
        self,
        operation: Operation,
        kernel: Kernel,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        *arguments: int,
        few: Kernel | None = None,
        many: Kernel | None = None,
        weights: tuple[Tensor, ...] = (),
    ) -> None:
        assert len(arguments) == len(operation.arguments), operation
        barrier = bool(self._written & {*reads, *writes} or self._read & set(writes))
        if barrier:
            self._read, self._written = set(), set()
        self._read |= set(reads)
        self._written |= set(writes)
        self._quantized = {key: q for key, q in self._quantized.items() if key[0] not in writes}
        self._observed = {name: sums for name, sums in self._observed.items() if name not in writes}
        self._rows.append([int(barrier), *arguments])
        kernels = kernel, few or many or kernel, many or kernel
        self.recorded.append(Recorded(operation, weights, writes[0], kernels))

    def _buffer(self, name: str, columns: int, rows: int | None = None) -> Rows:
        return self._allocate(name, columns, 4 * columns, rows)

    def _allocate(self, name: str, columns: int, stride: int, rows: int | None = None) -> Rows:
        """Rows an odd number of cache lines apart: were it a power of two, all would fall on the same few lines of a
        cache, and evict each other. That was 4-7% of a prompt."""
        stride = (-(-stride // ALIGNMENT) | 1) * ALIGNMENT
        return Rows(name, columns, self._room(name, stride * (rows or self.max_rows)), stride)

    def _room(self, name: str, size: int) -> int:
        """Address of the memory called `name`, of at least `size` bytes."""
        if name not in self._sizes:
            self._sizes[name] = size
            if self._allocate_memory:
                self._memory[name] = aligned_bytes(size)
        assert self._sizes[name] >= size, f"{name} was recorded smaller"
        return self._memory[name].ctypes.data if self._allocate_memory else 0


def _real(value: float) -> int:
    """The bits of a float64 as an integer word."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
