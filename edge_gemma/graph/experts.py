"""Record a mixture of experts: which experts a router chooses for a row, and the sum of what they make of it.

T: rows of a step, E: experts, k: choices of a row, D: model width, F: an expert's width. Results of experts are T k
rows, grouped by expert. Knows no model and runs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.recorder import Buffer, Forms, Recorder, real, zero_of
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import group_words
from edge_gemma.kernels.operations import Kernel, Regime
from edge_gemma.kernels.tuning.strategies import Choices

CHOSEN, SHARES = "experts of rows", "shares of experts"
GROUPS, ROWS, PLACES = "groups of rows", "rows in groups", "places in groups"
WORD = 8


@dataclass(frozen=True)
class Routed:
    """A step's choices: addresses of their shares (T, k), and of the groups that `kernels.layout` draws."""

    experts: int
    choices: int
    shares: int
    groups: int
    rows: int
    places: int


@dataclass(frozen=True)
class Matrices:
    """A matrix of each expert: rows `first` to `first + rows` of what `tensor`, (E, rows, columns), has of each."""

    tensor: Tensor
    first: int
    rows: int

    @property
    def columns(self) -> int:
        """Of each matrix."""
        return self.tensor.shape[2]

    @property
    def expert_bytes(self) -> int:
        """From an expert's matrix to the next one's."""
        return self.tensor.shape[1] * self.tensor.row_bytes

    @property
    def offset(self) -> int:
        """Of expert 0's matrix in the tensor's data, bytes."""
        return self.first * self.tensor.row_bytes


@dataclass(frozen=True)
class ExpertActivationStats:
    """Of each expert: the sums of squares of its inputs' columns, float32 (E, columns), and its rows, int64 (E,)."""

    sums: NDArray[np.float32]
    rows: NDArray[np.int64]


class ExpertRecorder(Recorder, ABC):
    """The part of a `Program` that has to do with experts."""

    _choices: Choices
    expert_activation_stats: dict[str, ExpertActivationStats]
    """Name of a tensor of experts -> what went into their products in the last step, where products are observed."""

    @abstractmethod
    def _quantize(self, x: Buffer, zero: int) -> Buffer:
        """x as int8 blocks."""

    def route(self, logits: Buffer, choices: int, factor: float, scales: Tensor | None) -> Routed:
        """The `choices` largest of each row's `logits` (T, E), and their shares: a softmax of factor * logits over E,
        of which those chosen are divided by their sum, times `scales` (E,) if there are any."""
        experts, pairs = logits.columns, self.max_rows * choices
        chosen, shares = self._room(CHOSEN, WORD * pairs), self._room(SHARES, 4 * pairs)
        groups = self._room(GROUPS, WORD * group_words(experts))
        rows, places = self._room(ROWS, WORD * pairs), self._room(PLACES, WORD * pairs)
        self._emit(
            ops.ROUTE,
            Kernel("ops.router", "route"),
            (logits.name,),
            (CHOSEN, SHARES),
            *(logits.address, logits.stride, experts, choices, real(factor)),
            *(self._address_of(scales) if scales else 0, chosen, shares),
            weights=(scales,) if scales else (),
        )
        self._emit(
            ops.DISPATCH,
            Kernel("ops.router", "dispatch"),
            (CHOSEN,),
            (GROUPS, ROWS, PLACES),
            *(chosen, experts, choices, groups, rows, places),
        )
        return Routed(experts, choices, shares, groups, rows, places)

    def experts(self, x: Buffer, routed: Routed, gate_up: tuple[Tensor, ...], down: Tensor, *, out: str) -> Buffer:
        """out = the sum over a row's choices, by rank, of share * down(gelu(gate x) * up x) of the expert.

        gate_up: one tensor (E, 2 F, D), gates first, or two (E, F, D). down: (E, D, F).
        """
        F = down.shape[2]
        self._observe_experts(x, routed, gate_up, routed.rows)
        y = self._forms("gated of experts", F, (down,), routed.choices)
        gate, up = Matrices(gate_up[0], 0, F), Matrices(gate_up[-1], F if len(gate_up) == 1 else 0, F)
        one_format = gate.tensor.format == up.tensor.format and not gate.tensor.format.is_float
        if self.regime is Regime.MANY and one_format and y.q is not None:
            self._gated_of_experts(x, routed, gate, up, y)
        elif len(gate_up) == 1:
            both = self._product_of_experts(x, routed, Matrices(gate_up[0], 0, 2 * F), out="gate and up of experts")
            self._gate_of_experts(both.part(0, F), both.part(F, F), routed, y)
        else:
            g = self._product_of_experts(x, routed, gate, out="gate of experts")
            u = self._product_of_experts(x, routed, up, out="up of experts")
            self._gate_of_experts(g, u, routed, y)
        self._observe_experts(y.y, routed, (down,), 0)
        matrices = Matrices(down, 0, down.shape[1])
        results = self._product_of_experts(self._keep(y), routed, matrices, out="results of experts", grouped=True)
        return self._combine(results, routed, self._buffer(out, results.columns))

    def _input(self, x: Buffer, tensor: Tensor) -> Buffer:
        """x in the form that products with the tensor take."""
        return x if tensor.format.is_float else self._quantize(x, zero_of(tensor))

    def _product_of_experts(self, x: Buffer, routed: Routed, w: Matrices, *, out: str, grouped: bool = False) -> Buffer:
        """Each pair's product with its expert's matrix, (T k, rows). grouped: whether x has a row for each pair too."""
        y = self._buffer(out, w.rows, routed.choices)
        x = self._input(x, w.tensor)
        self._emit(
            ops.EXPERTS,
            self._kernel_of_experts(w),
            (x.name, GROUPS, ROWS),
            (y.name,),
            *self._words_of_experts(x, routed, w, y),
            *(0 if grouped else routed.rows, routed.choices),
            weights=(w.tensor,),
        )
        return y

    def _words_of_experts(self, x: Buffer, routed: Routed, w: Matrices, y: Buffer) -> tuple[int, ...]:
        """Arguments of products up to the groups."""
        weights = self._address_of(w.tensor) + w.offset
        shape = w.tensor.row_bytes, w.rows, w.columns
        return weights, *shape, x.address, x.stride, y.address, y.stride, w.expert_bytes, routed.groups

    def _kernel_of_experts(self, w: Matrices) -> Kernel:
        name = w.tensor.format.name
        if w.tensor.format.is_float:
            return Kernel("ops.experts_float", name)
        many = self.regime is Regime.MANY
        return Kernel("ops.experts", name if many else f"{name}_few", self._strategy(w))

    def _strategy(self, w: Matrices) -> str:
        return self._choices.for_matrix(w.tensor.format.name, w.tensor.row_bytes)

    def _gate_of_experts(self, g: Buffer, u: Buffer, routed: Routed, y: Forms) -> None:
        self._emit(
            ops.EXPERT_GATE,
            Kernel("ops.elementwise", "expert_gate"),
            tuple({g.name, u.name}),
            y.names,
            *(g.address, g.stride, u.address, u.stride, ops.GELU, g.columns),
            *(y.y.address, y.y.stride, *y.int8, routed.choices),
        )

    def _gated_of_experts(self, x: Buffer, routed: Routed, gate: Matrices, up: Matrices, y: Forms) -> None:
        """Both products and the gate in one pass."""
        x = self._input(x, gate.tensor)
        self._emit(
            ops.EXPERTS_GATED,
            Kernel("ops.experts_gated", gate.tensor.format.name, self._strategy(gate)),
            (x.name, GROUPS, ROWS),
            y.names,
            *self._words_of_experts(x, routed, gate, y.y),
            *(routed.rows, routed.choices, self._address_of(up.tensor) + up.offset, *y.int8),
            weights=(gate.tensor,) if up.tensor is gate.tensor else (gate.tensor, up.tensor),
        )

    def _observe_experts(self, x: Buffer, routed: Routed, tensors: tuple[Tensor, ...], sources: int) -> None:
        """Have each step write into `expert_activation_stats` what goes into these products, if they are observed."""
        if not self._observe_products:
            return
        E, name = routed.experts, f"sums of squares of {tensors[0].name}'s inputs"
        rows = f"{name}, rows"
        sums, counts = self._room(name, 4 * E * x.columns), self._room(rows, WORD * E)
        self._emit(
            ops.EXPERT_SQUARES,
            Kernel("ops.statistics", "expert_squares"),
            (x.name, GROUPS, ROWS),
            (name, rows),
            *(x.address, x.stride, x.columns, E, routed.groups, sources, sums, counts),
        )
        found = self._memory[name].view(np.float32).reshape(E, x.columns)
        stats = ExpertActivationStats(found, self._memory[rows].view(np.int64))
        self.expert_activation_stats |= {tensor.name: stats for tensor in tensors}

    def _combine(self, results: Buffer, routed: Routed, y: Buffer) -> Buffer:
        self._emit(
            ops.COMBINE,
            Kernel("ops.router", "combine"),
            (results.name, SHARES, PLACES),
            (y.name,),
            *(results.address, results.stride, routed.choices, routed.shares, routed.places),
            *(y.address, y.stride, y.columns),
        )
        return y
