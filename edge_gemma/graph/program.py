"""Record a forward pass as a table for the kernels. Knows operations; knows no model and runs nothing.

Each method names one operation on the rows of a step and appends it to the table; the shapes in comments use T for
the rows. Buffers are named by `out` and may be written again under the same name. What an operation reads and writes
decides where there is a barrier.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.experts import ExpertRecorder
from edge_gemma.graph.recorder import Buffer, Consumers, Forms, real, zero_of
from edge_gemma.graph.states import Rope
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import partial_bytes, whole_head
from edge_gemma.kernels.operations import Kernel, Regime
from edge_gemma.kernels.tuning.strategies import DEFAULTS, Choices


class Program(ExpertRecorder):
    """The forward pass of one model for steps of one regime.

    kv_type: of the cache's elements. choices: how decoding products ask for weights; see `tuning.tuned_choices`. With
    `observe`, the inputs of all products are observed. The rest: see `Recorder`.
    """

    def __init__(
        self,
        regime: Regime,
        chunk: int,
        address_of: Callable[[Tensor], int],
        kv_type: str,
        *,
        choices: Choices = DEFAULTS,
        allocate: bool = True,
        observe: bool = False,
    ) -> None:
        super().__init__(regime, chunk, address_of, allocate=allocate, observe=observe)
        self.kv_type = kv_type
        self._choices = choices
        self.activation_stats: dict[str, NDArray[np.float32]] = {}
        """Name of a matrix -> of each input column, the sum of squares over the last step's rows. See `observe`."""
        self.expert_activation_stats = {}
        self.ropes: list[Rope] = []
        """The rotary embeddings it uses; a step has angles for each, in this order."""
        self._observed: dict[str, NDArray[np.float32]] = {}

    # ---- operations ----------------------------------------------------------------------------------------------

    def embed(self, table: Tensor, scale: float, *, out: str) -> Buffer:
        """out = scale * table[token]."""
        y = self._buffer(out, table.shape[1])
        self._emit(
            ops.EMBED,
            Kernel("ops.elementwise", f"embed_{table.format.name}"),
            (),
            (out,),
            *(self._address_of(table), table.row_bytes, y.columns, y.address, y.stride, real(scale)),
            weights=(table,),
        )
        return y

    def rms_norm(self, x: Buffer, weight: Tensor, epsilon: float, *, out: str, consumers: Consumers) -> Buffer:
        """out = x / rms(x) * weight, in the form that the products with `consumers` take."""
        return self._norm(x, weight, epsilon, self._forms(out, x.columns, consumers))

    def add_norm(
        self, base: Buffer, x: Buffer, weight: Tensor, epsilon: float, *, factor: Tensor | None = None
    ) -> Buffer:
        """base = (base + x / rms(x) * weight) * factor; `factor` has one value."""
        return self._norm(x, weight, epsilon, Forms(base), base, factor)

    def _norm(
        self,
        x: Buffer,
        weight: Tensor,
        epsilon: float,
        out: Forms,
        base: Buffer | None = None,
        factor: Tensor | None = None,
    ) -> Buffer:
        self._emit(
            ops.NORM,
            Kernel("ops.elementwise", "norm"),
            (x.name, base.name) if base else (x.name,),
            out.names,
            *(x.address, x.stride, self._address_of(weight), x.columns, real(epsilon)),
            *((base.address, base.stride) if base else (0, 0)),
            self._address_of(factor) if factor else 0,
            *(out.y.address, out.y.stride, *out.int8),
            weights=(weight,),
        )
        return self._keep(out)

    def head_norm(
        self,
        x: Buffer,
        head_dim: int,
        epsilon: float,
        *,
        out: str,
        weight: Tensor | None = None,
        base: Buffer | None = None,
        scale: float = 1.0,
    ) -> Buffer:
        """out = (x / rms(x) * weight + base) * scale for each `head_dim` neighbours of x; weight: (head_dim,)."""
        y = self._buffer(out, x.columns)
        self._emit(
            ops.HEAD_NORM,
            Kernel("ops.heads", "head_norm"),
            (x.name, base.name) if base else (x.name,),
            (y.name,),
            *(x.address, x.stride, x.columns // head_dim, head_dim, self._address_of(weight) if weight else 0),
            *(real(epsilon), *((base.address, base.stride) if base else (0, 0)), real(scale), y.address, y.stride),
        )
        return y

    def add(self, base: Buffer, x: Buffer) -> Buffer:
        """base = base + x."""
        return self._add(base, x.address, x.stride, (x.name,), ())

    def add_bias(self, base: Buffer, bias: Tensor) -> Buffer:
        """base = base + bias, in each row."""
        return self._add(base, self._address_of(bias), 0, (), (bias,))

    def _add(self, base: Buffer, x: int, x_stride: int, reads: tuple[str, ...], weights: tuple[Tensor, ...]) -> Buffer:
        self._emit(
            ops.ADD,
            Kernel("ops.elementwise", "add"),
            (*reads, base.name),
            (base.name,),
            *(x, x_stride, base.address, base.stride, base.columns),
            weights=weights,
        )
        return base

    def matmul(self, x: Buffer, weight: Tensor, *, out: str, rows: Buffer | None = None) -> Buffer:
        """out = x weight^T. Quantized weights take x as int8 blocks, made once for each x. `rows`: where to write."""
        return self._product(x, weight, rows or self._buffer(out, weight.shape[0]))

    def _product(self, x: Buffer, weight: Tensor, y: Buffer) -> Buffer:
        if self._observe_products:
            self.observe(x, weight)
        if not weight.format.is_float:
            x = self._quantize(x, zero_of(weight))
        self._emit(
            ops.MATMUL,
            self._product_kernel(weight),
            (x.name,),
            (y.name,),
            *(self._address_of(weight), weight.row_bytes, *weight.shape, x.address, x.stride, y.address, y.stride),
            weights=(weight,),
        )
        return y

    def _product_kernel(self, weight: Tensor) -> Kernel:
        name = weight.format.name
        if weight.format.is_float:
            return Kernel("ops.matmul_float", name)
        if self.regime is Regime.MANY:
            return Kernel("ops.matmul", name)
        strategy = self._choices.for_matrix(name, weight.row_bytes)
        return Kernel("ops.matvec", name if self.regime is Regime.ONE else f"{name}_few", strategy)

    def _quantize(self, x: Buffer, zero: int) -> Buffer:
        if (x.name, zero) not in self._quantized:
            assert x.address or not self._allocate_memory, f"{x.name} was not recorded for all its consumers"
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

    def observe(self, x: Buffer, weight: Tensor) -> None:
        """Have each step write the sums of squares of x's columns, the input of `weight`, into `activation_stats`."""
        if x.name not in self._observed:
            name = f"sums of squares of {weight.name}'s input"
            address = self._room(name, 4 * x.columns)
            self._emit(
                ops.SQUARES,
                Kernel("ops.statistics", "squares"),
                (x.name,),
                (name,),
                *(x.address, x.stride, x.columns, address),
            )
            self._observed[x.name] = self._memory[name].view(np.float32)
        self.activation_stats[weight.name] = self._observed[x.name]

    def rotate(self, x: Buffer, rope: Rope, *, norm: Tensor | None, epsilon: float, scale: float) -> Buffer:
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
            Kernel("ops.heads", "rotate_neighbours" if rope.neighbours else "rotate"),
            (x.name,),
            (x.name,),
            *(x.address, x.stride, x.columns // size, size),
            *(self._address_of(norm) if norm else 0, real(epsilon), real(scale)),
            ops.STEP_ANGLES + self.ropes.index(rope),
        )
        return x

    def pad_heads(self, x: Buffer, head_dim: int) -> Buffer:
        """The heads of x, of `head_dim` dimensions, padded with zeros to what kernels take: see `whole_head`."""
        size = whole_head(head_dim)
        return x if size == head_dim else self._resize_heads(x, head_dim, size, out=f"{x.name}, heads padded")

    def _resize_heads(self, x: Buffer, head_dim: int, size: int, *, out: str) -> Buffer:
        """out = the heads of x, of `head_dim` dimensions, with so many as `size`: cut off, or zeros behind."""
        heads = x.columns // head_dim
        y = self._buffer(out, heads * size)
        self._emit(
            ops.RESIZE_HEADS,
            Kernel("ops.heads", "resize_heads"),
            (x.name,),
            (y.name,),
            *(x.address, x.stride, heads, head_dim, y.address, y.stride, size),
        )
        return y

    def append(self, cache: LayerCache, k: Buffer, v: Buffer) -> None:
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
        q: Buffer,
        *,
        window: int | None,
        softcap: float | None,
        out: str,
        consumers: Consumers,
        ahead: int = 0,
        head_dim: int | None = None,
    ) -> Buffer:
        """out = softmax(cap(q K^T)) V over the keys at distance 0..window-1, in the form that `consumers` take.

        ahead: so many keys behind its own a row sees, too, of those that its sequence has in this step.
        head_dim: the dimensions of a head that are the model's own, where there are zeros behind them.
        """
        if head_dim is not None and head_dim != cache.head_dim:
            name = f"{out}, heads padded"
            padded = self.attend(cache, q, window=window, softcap=softcap, out=name, consumers=(), ahead=ahead)
            return self._resize_heads(padded, cache.head_dim, head_dim, out=out)
        a, window = self._forms(out, q.columns, consumers), window or ops.NO_WINDOW
        if self.regime is Regime.ONE:
            self._attend_one(cache, q, a, window, softcap)
        else:
            kernel = Kernel("ops.attention", f"attend_{self.kv_type}")
            self._attend(kernel, cache, q, a, window, softcap, a.names, ahead=ahead)
        return self._keep(a)

    def _attend_one(self, cache: LayerCache, q: Buffer, a: Forms, window: int, softcap: float | None) -> None:
        """One row: the threads share its spans, whose results are merged."""
        heads, head_dim = q.columns // cache.head_dim, cache.head_dim
        spans = f"results of {cache.spans} spans of {heads} heads of {head_dim}"
        partial = self._room(spans, partial_bytes(heads, head_dim, cache.spans))
        kernel = Kernel("ops.attention", f"attend_one_{self.kv_type}")
        self._attend(kernel, cache, q, a, window, softcap, (spans,), partial=partial)
        self._emit(
            ops.MERGE,
            Kernel("ops.attention", "merge"),
            (spans,),
            a.names,
            *(a.y.address, heads, head_dim, window, partial, cache.spans, a.int8[0], a.int8[2]),
        )

    def _attend(
        self,
        kernel: Kernel,
        cache: LayerCache,
        q: Buffer,
        a: Forms,
        window: int,
        softcap: float | None,
        writes: tuple[str, ...],
        ahead: int = 0,
        partial: int = 0,
    ) -> None:
        self._emit(
            ops.ATTEND,
            kernel,
            (q.name, cache.name),
            writes,
            *(q.address, q.stride, a.y.address, a.y.stride, q.columns // cache.head_dim, cache.heads, cache.head_dim),
            *(cache.layer, cache.head_bytes, window, ahead, real(softcap or 0.0), partial, cache.spans, *a.int8),
        )

    def gelu_gate(self, x: Buffer, gate: Tensor, up: Tensor, *, out: str, consumers: Consumers) -> Buffer:
        """out = gelu(x gate^T) * (x up^T), in the form that `consumers` take."""
        return self._gate_of(x, gate, up, ops.GELU, out, consumers)

    def silu_gate(self, x: Buffer, gate: Tensor, up: Tensor, *, out: str, consumers: Consumers) -> Buffer:
        """out = silu(x gate^T) * (x up^T), in the form that `consumers` take."""
        return self._gate_of(x, gate, up, ops.SILU, out, consumers)

    def _gate_of(self, x: Buffer, gate: Tensor, up: Tensor, activation: int, out: str, consumers: Consumers) -> Buffer:
        """Either of the two.

        Many rows take one pass where both matrices have one quantized format, and consumers quantized ones: then the
        products themselves never exist.
        """
        y = self._forms(out, gate.shape[0], consumers)
        if self.regime is Regime.MANY and gate.format == up.format and not gate.format.is_float and y.q is not None:
            self._gated(x, gate, up, activation, y)
        else:
            self._gate(self.matmul(x, gate, out="gate"), self.matmul(x, up, out="up"), activation, y)
        return self._keep(y)

    def gelu_times(self, gate: Buffer, up: Buffer, *, out: str, consumers: Consumers) -> Buffer:
        """out = gelu(gate) * up, in the form that `consumers` take."""
        y = self._forms(out, gate.columns, consumers)
        self._gate(gate, up, ops.GELU, y)
        return self._keep(y)

    def _gate(self, g: Buffer, u: Buffer, activation: int, y: Forms) -> None:
        self._emit(
            ops.GATE,
            Kernel("ops.elementwise", "gate"),
            (g.name, u.name),
            y.names,
            *(g.address, g.stride, u.address, u.stride, activation, g.columns, y.y.address, y.y.stride, *y.int8),
        )

    def _gated(self, x: Buffer, gate: Tensor, up: Tensor, activation: int, y: Forms) -> None:
        """Both products and the gate in one pass."""
        if self._observe_products:
            self.observe(x, gate)
            self.observe(x, up)
        q = self._quantize(x, zero_of(gate))
        self._emit(
            ops.GATED,
            Kernel("ops.matmul", gate.format.name),
            (q.name,),
            y.names,
            *(self._address_of(gate), gate.row_bytes, *gate.shape, q.address, q.stride, y.y.address, y.y.stride),
            *(self._address_of(up), activation, *y.int8),
            weights=(gate, up),
        )

    def softcap(self, x: Buffer, cap: float) -> Buffer:
        """x = cap * tanh(x / cap)."""
        self._emit(
            ops.SOFTCAP,
            Kernel("ops.elementwise", "softcap"),
            (x.name,),
            (x.name,),
            *(x.address, x.stride, x.columns, real(cap)),
        )
        return x

    def mask(self, x: Buffer) -> Buffer:
        """x = x - inf for the tokens that the step's masks forbid."""
        self._emit(ops.MASK, Kernel("ops.sampling", "mask"), (x.name,), (x.name,), x.address, x.stride, x.columns)
        return x

    def group_maxima(self, x: Buffer, y: Buffer) -> Buffer:
        """y = the largest of each LOGIT_GROUP neighbours of x; y has `logit_groups` columns."""
        self._emit(
            ops.GROUP_MAXIMA,
            Kernel("ops.sampling", "group_maxima"),
            (x.name,),
            (y.name,),
            *(x.address, x.stride, x.columns, y.address, y.stride),
        )
        return y

    # ---- overwritten ---------------------------------------------------------------------------------------------

    def _forget(self, written: tuple[str, ...]) -> None:
        super()._forget(written)
        self._observed = {name: sums for name, sums in self._observed.items() if name not in written}
