"""Which tensor gets which block format. Knows no bytes and no checkpoint.

The named mixes choose as llama-quantize does for gemma to gemma4 and llama (`tests/quantize/data/recipes.json` is its
record).
`MIXES` has the formats that hold everywhere, `_exceptions` those that depend on the layer, `_FALLBACK` what replaces a
format whose block does not divide the rows, `kept` what never becomes blocks. `presets.py` has EG4 and EG8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS, BlockFormat
from edge_gemma.models.tensor_table import OUTPUT, TABLES, layer_and_role


@dataclass(frozen=True)
class Mix:
    """The formats of one file type. `roles` has those of tensors whose part of the layer differs from `matrix`."""

    file_type: int  # llama.cpp's number, written as general.file_type
    matrix: str
    embedding: str  # of a tied embedding, which is the output matrix too, and of a separate output matrix
    roles: dict[str, str] = field(default_factory=dict)


MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32", "F32"),
    "F16": Mix(1, "F16", "F16"),
    "BF16": Mix(32, "BF16", "BF16"),
    "Q8_0": Mix(7, "Q8_0", "Q8_0"),
    "Q4_0": Mix(2, "Q4_0", "Q6_K"),
    "Q4_1": Mix(3, "Q4_1", "Q6_K"),
    "Q5_0": Mix(8, "Q5_0", "Q6_K"),
    "Q5_1": Mix(9, "Q5_1", "Q6_K"),
    "Q2_K": Mix(10, "Q2_K", "Q6_K", {"attn_v": "Q3_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"}),
    "Q3_K_S": Mix(11, "Q3_K", "Q6_K"),
    "Q3_K_M": Mix(12, "Q3_K", "Q6_K", {"attn_v": "Q4_K", "attn_output": "Q4_K", "ffn_down": "Q4_K"}),
    "Q3_K_L": Mix(13, "Q3_K", "Q6_K", {"attn_v": "Q5_K", "attn_output": "Q5_K", "ffn_down": "Q5_K"}),
    "Q4_K_S": Mix(14, "Q4_K", "Q6_K"),
    "Q4_K_M": Mix(15, "Q4_K", "Q6_K"),
    "Q5_K_S": Mix(16, "Q5_K", "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", "Q6_K"),
    "Q6_K": Mix(18, "Q6_K", "Q6_K"),
    "IQ4_NL": Mix(25, "IQ4_NL", "Q6_K"),
    "IQ4_XS": Mix(30, "IQ4_XS", "Q6_K"),
}


WRITTEN = tuple(dict.fromkeys(mix.matrix for mix in MIXES.values()))
"""The formats that a tensor can be given. Others are read, and run."""


@dataclass(frozen=True)
class Preset:
    """A type whose file is no larger than one of the mix `like`; `presets.py` chooses the formats."""

    file_type: int
    like: str


PRESETS = {"EG4": Preset(15, "Q4_0"), "EG8": Preset(7, "Q8_0")}

TYPES = (*MIXES, *PRESETS)
"""What `--type` may be."""

_FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What takes the place of a format of 256-blocks where 32-blocks fit. Where nothing does, F16."""


@dataclass(frozen=True)
class Model:
    """What a choice depends on beside the tensor. `queries`: query heads per key head; `experts`: in a layer; `values`:
    the layers that have `attn_v`, None: all."""

    layers: int
    queries: int
    importance: bool = False
    architecture: str = ""
    experts: int = 0
    values: tuple[int, ...] | None = None

    @property
    def is_70b(self) -> bool:
        """What llama.cpp takes for Llama 2 or 3 of 70B."""
        return self.architecture == "llama" and self.layers == 80 and self.queries > 1

    def place(self, layer: int, role: str) -> tuple[int, int]:
        """Where the matrix of a layer stands among how many of its role."""
        if role == "attn_v" and self.values is not None and layer in self.values:
            return self.values.index(layer), len(self.values)
        return layer, self.layers


@dataclass(frozen=True)
class Overrides:
    """What the user says about single tensors. The first pattern found in a tensor's name decides; then the names."""

    patterns: Sequence[tuple[str, str]] = ()
    embedding: str | None = None
    output: str | None = None
    pure: bool = False

    def __post_init__(self) -> None:
        """Raises CheckpointError for a pattern that is no regular expression, or a type that is not written."""
        for pattern, name in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"tensor type {pattern}={name}: no regular expression: {error}") from None
            known_type(name)
        for given in (self.embedding, self.output):
            if given is not None:
                known_type(given)

    def of(self, name: str, *, tied: bool) -> str | None:
        """The format said for tensor `name`, if any."""
        for pattern, chosen in self.patterns:
            if re.search(pattern, name):
                return chosen
        if name in TABLES:
            return self.embedding or (self.output if tied else None)
        return self.output if name == OUTPUT else None


def check_patterns(overrides: Overrides, matrices: Iterable[str]) -> None:
    """Raise CheckpointError for a pattern that is found in no name of a matrix: it would do nothing."""
    names = list(matrices)
    for pattern, chosen in overrides.patterns:
        if not any(re.search(pattern, name) for name in names):
            raise CheckpointError(f"tensor type {pattern}={chosen}: no matrix of this model has such a name")


def known_type(name: str) -> str:
    """`name`, if it is a format that is written. Raises CheckpointError."""
    if name not in WRITTEN:
        raise CheckpointError(f"tensor type {name!r} is not written; one of {', '.join(WRITTEN)}")
    return name


def kept(mix: Mix, name: str, shape: tuple[int, ...], stored: BlockFormat) -> BlockFormat | None:
    """The format of a tensor that is never rounded to blocks, whatever the user says; None for others."""
    place = layer_and_role(name)
    if len(shape) == 1 or (place is not None and place[1] == "ffn_gate_inp"):
        return FORMATS["F32"]
    if name != "per_layer_model_proj.weight":
        return None
    return FORMATS[mix.matrix] if FORMATS[mix.matrix].is_float else stored


def choose(
    mix: Mix,
    model: Model,
    name: str,
    shape: tuple[int, ...],
    overrides: Overrides,
    *,
    tied: bool,
    stored: BlockFormat = FORMATS["F32"],
) -> BlockFormat:
    """The format of tensor `name` of row-major `shape`. `tied`: the embedding is the output matrix too; `stored`: the
    format in the source.

    Raises CheckpointError if the format that the user said for it does not divide its rows.
    """
    if (unchanged := kept(mix, name, shape, stored)) is not None:
        return unchanged
    said = overrides.of(name, tied=tied)
    if said is not None:
        return _as_said(FORMATS[said], name, shape[-1])
    if overrides.pure:
        return fitting(mix.matrix, shape[-1])
    if name == OUTPUT or (name in TABLES and tied):
        return fitting(mix.embedding if shape[-1] % FORMATS[mix.matrix].block == 0 else "Q8_0", shape[-1])
    return fitting(_of_layer(mix, model, name), shape[-1])


def fitting(name: str, columns: int) -> BlockFormat:
    """The format, or what replaces it for rows of `columns` values."""
    chosen = FORMATS[name]
    if columns % chosen.block and name in _FALLBACK:
        chosen = FORMATS[_FALLBACK[name]]
    return chosen if columns % chosen.block == 0 else FORMATS["F16"]


def _as_said(chosen: BlockFormat, name: str, columns: int) -> BlockFormat:
    if columns % chosen.block:
        raise CheckpointError(f"{name}: {chosen.name} needs rows of a multiple of {chosen.block} values, not {columns}")
    return chosen


def _of_layer(mix: Mix, model: Model, name: str) -> str:
    place = layer_and_role(name)
    if place is None:
        return mix.matrix
    layer, role = place
    if model.experts == 8 and (chosen := _beside_eight_experts(mix, role)) is not None:
        return chosen
    usual = (True, mix.roles.get(role.removesuffix("_exps"), mix.matrix))
    cases = (*_exceptions(mix.file_type, model, layer, role), usual)
    chosen = next(chosen for condition, chosen in cases if condition)
    return "Q5_K" if model.is_70b and role == "attn_v" and chosen in ("Q3_K", "Q4_K") else chosen


def _beside_eight_experts(mix: Mix, role: str) -> str | None:
    """Attention's formats in models like Mixtral 8x7B, beside whose experts it is small."""
    if FORMATS[mix.matrix].is_float:
        return None
    if role == "attn_output":
        narrow = mix.matrix in ("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if narrow and mix is not MIXES["Q3_K_L"] else mix.matrix
    return "Q8_0" if role in ("attn_k", "attn_v") else None


def _exceptions(file_type: int, model: Model, layer: int, role: str) -> Iterator[tuple[bool, str]]:
    """Conditions under which a tensor of a layer differs from its mix, and how; the first that holds decides."""
    (i, n), many = model.place(layer, role), model.queries >= 4
    value, down = role == "attn_v", role in ("ffn_down", "ffn_down_exps")
    match next(name for name, mix in MIXES.items() if mix.file_type == file_type):
        case "Q2_K":
            yield value and many, "Q4_K"
        case "Q3_K_M":
            yield value and i < 2, "Q5_K"
            yield down and i < n // 16, "Q5_K"
        case "Q4_K_S":
            yield value and i < 4, "Q5_K"
            yield down and i < n // 8, "Q5_K"
        case "Q4_K_M" | "Q5_K_M":
            yield (value or down) and _use_more_bits(i, n), "Q6_K"
        case "IQ4_NL" | "IQ4_XS":
            yield value and many, "Q5_K"
            yield down and i < n // 8 and not model.importance, "Q5_K"
        case "Q4_0":
            yield down and i < n // 8 and model.importance, "Q4_1"
        case "Q5_0":
            yield down and i < n // 8 and model.importance, "Q5_1"


def _use_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
