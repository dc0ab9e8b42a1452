"""EG4 and EG8: the least error in the bytes of a Q4_0 or a Q8_0 file, from formats that llama.cpp reads.

Each matrix may have any format that fits its rows. The choice minimizes the sum over tensors of

    sensitivity of its role * values * relative squared error of the format

subject to the size of the file of the standard type: the best choice for a price per byte, at the price where the size
is met, narrowed tensor by tensor until it is kept. Then, where bytes are left, tensors are widened in the order of what
a byte gains. Knows no bytes inside a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_gemma.formats import FORMATS, BlockFormat
from edge_gemma.models.tensor_table import EMBEDDING, OUTPUT, PER_LAYER_EMBEDDING, layer_and_role

from .checkpoint.source import SourceTensor
from .output.writer import padded
from .recipe import MIXES, PRESETS, Model, Overrides, choose, kept

ERRORS = {
    "IQ4_NL": 5.4e-3,
    "IQ4_XS": 5.5e-3,
    "Q4_K": 4.9e-3,
    "Q5_0": 1.6e-3,
    "Q5_K": 1.2e-3,
    "Q5_1": 1.15e-3,
    "Q6_K": 2.9e-4,
    "Q8_0": 2.9e-5,
    "F16": 5e-8,
}
"""Squared error over squared values, by format, of normally distributed values."""

SENSITIVITY = {
    EMBEDDING: 0.037,
    OUTPUT: 0.037,
    "attn_q": 0.077,
    "attn_k": 0.41,
    "attn_v": 2.4,
    "attn_output": 0.3,
    "ffn_gate": 0.15,
    "ffn_up": 0.20,
    "ffn_down": 0.33,
    PER_LAYER_EMBEDDING: 0.037,
    "inp_gate": 0.15,
    "proj": 0.33,
    "ffn_gate_up_exps": 0.011,
    "ffn_gate_exps": 0.009,
    "ffn_up_exps": 0.013,
    "ffn_down_exps": 0.021,
}
"""Divergence (nats) per relative squared error and million values, by role: Gemma 3 270M with this role alone in Q4_1.

`attn_output` is an estimate between its neighbours: that model's weights lie on a grid that Q4_1 meets exactly. What
that model has not is taken for as sensitive as what is alike; an expert of Gemma 4 is used for one token in 16.
"""


@dataclass(frozen=True)
class _Option:
    format: BlockFormat
    nbytes: int
    cost: float


def assign(
    preset: str, model: Model, tensors: Sequence[SourceTensor], overrides: Overrides, *, tied: bool, spare: int
) -> list[BlockFormat]:
    """The format of each tensor. What the user says for a tensor holds; the others share the remaining bytes.

    `spare`: bytes to stay below the standard type's, for what else the file holds.
    """
    like = MIXES[PRESETS[preset].like]
    standard = [choose(like, model, t.name, t.shape, Overrides(), tied=tied, stored=t.format) for t in tensors]
    budget = sum(_nbytes(t, f) for t, f in zip(tensors, standard, strict=True)) - spare
    options = [_options(t, model, overrides, tied=tied) for t in tensors]
    found = [_widened(start, options, budget) for start in _starts(options, budget)]
    return [option.format for option in min(found, key=_cost)]


def _nbytes(tensor: SourceTensor, chosen: BlockFormat) -> int:
    return padded(tensor.rows * chosen.row_bytes(tensor.columns))


def _options(tensor: SourceTensor, model: Model, overrides: Overrides, *, tied: bool) -> list[_Option]:
    """Formats for a tensor, smallest first; one alone where there is no choice."""
    said, unchanged = (
        overrides.of(tensor.name, tied=tied),
        kept(MIXES["Q4_0"], tensor.name, tensor.shape, tensor.format),
    )
    if unchanged is not None or said is not None:
        chosen = unchanged or choose(MIXES["F32"], model, tensor.name, tensor.shape, overrides, tied=tied)
        return [_Option(chosen, _nbytes(tensor, chosen), 0.0)]
    place = layer_and_role(tensor.name)
    weight = SENSITIVITY.get(place[1] if place else tensor.name, 1.0) * tensor.rows * tensor.columns
    fitting = [FORMATS[name] for name in ERRORS if tensor.columns % FORMATS[name].block == 0]
    every = [_Option(f, _nbytes(tensor, f), weight * ERRORS[f.name]) for f in fitting]
    return sorted(every, key=lambda option: (option.nbytes, option.cost))


def _starts(options: list[list[_Option]], budget: int) -> list[list[_Option]]:
    """Two choices within the budget, from the lowest price that keeps it and the highest that does not.

    They can be far apart: a price that makes an embedding narrower may save a hundred times more than is needed.
    """
    low, high = 0.0, 1.0
    for _ in range(100):
        price = (low + high) / 2
        low, high = (low, price) if _size(_at(options, price)) <= budget else (price, high)
    return [_at(options, high), _narrowed(_at(options, low), options, budget)]


def _at(options: list[list[_Option]], price: float) -> list[_Option]:
    return [min(every, key=lambda option: option.cost + price * option.nbytes) for every in options]


def _size(chosen: Sequence[_Option]) -> int:
    return sum(option.nbytes for option in chosen)


def _cost(chosen: Sequence[_Option]) -> float:
    return sum(option.cost for option in chosen)


def _narrowed(chosen: list[_Option], options: list[list[_Option]], budget: int) -> list[_Option]:
    """Until the budget is kept, take the narrower option that costs least per byte of those that are too many."""
    while (excess := _size(chosen) - budget) > 0:
        moves = [
            ((option.cost - chosen[i].cost) / min(chosen[i].nbytes - option.nbytes, excess), i, option)
            for i, every in enumerate(options)
            for option in every
            if option.nbytes < chosen[i].nbytes
        ]
        if not moves:
            return chosen  # the budget is less than the least that can be
        _, at, option = min(moves, key=lambda move: move[:2])
        chosen[at] = option
    return chosen


def _widened(chosen: list[_Option], options: list[list[_Option]], budget: int) -> list[_Option]:
    """While any tensor's next better option fits, take the one that gains most per byte."""
    chosen, left = list(chosen), budget - _size(chosen)
    while True:
        best, at, gain = None, -1, 0.0
        for i, every in enumerate(options):
            for option in every:
                more = option.nbytes - chosen[i].nbytes
                less = chosen[i].cost - option.cost
                if 0 <= more <= left and less > 0 and less / max(more, 1) > gain:
                    best, at, gain = option, i, less / max(more, 1)
        if best is None:
            return chosen
        left -= best.nbytes - chosen[at].nbytes
        chosen[at] = best
