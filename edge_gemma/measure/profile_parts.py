"""What the rows of a program are for the reader of a profile: a label, and the work they do. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.recorder import Recorded
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import SPAN


@dataclass(frozen=True)
class Part:
    """All operations of one kind in a step: `count` rows of the program's table.

    us: microseconds, median over the repetitions of each row, then summed; best_us: the same of each row's least.
    weight_bytes, kv_bytes: what has to be read of weights and of the cache, at least once, by a step of one row; of
    several rows' experts as if no two rows had one in common, as far as there are so many. macs: multiply-adds;
    formats: of the weights.
    """

    label: str
    count: int
    us: float
    best_us: float
    weight_bytes: int = 0
    kv_bytes: int = 0
    macs: int = 0
    formats: tuple[str, ...] = ()

    def __add__(self, other: Part) -> Part:
        formats = tuple(sorted({*self.formats, *other.formats}))
        sums = {name: getattr(self, name) + getattr(other, name) for name in ADDED}
        return Part(self.label, **sums, formats=formats)

    @property
    def gb_per_s(self) -> float:
        """Weights and cache, 1e9 bytes per second."""
        return (self.weight_bytes + self.kv_bytes) / self.us / 1e3 if self.us else 0.0

    @property
    def gmac_per_s(self) -> float:
        """1e9 multiply-adds per second."""
        return self.macs / self.us / 1e3 if self.us else 0.0


ADDED = ("count", "us", "best_us", "weight_bytes", "kv_bytes", "macs")
"""The fields of a Part that add up."""


def gather(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts of the same label added up, the longest first."""
    sums: dict[str, Part] = {}
    for one in parts:
        sums[one.label] = sums[one.label] + one if one.label in sums else one
    return tuple(sorted(sums.values(), key=lambda p: -p.us))


PRODUCTS = {
    "attn_q": "attn_qkv",
    "attn_k": "attn_qkv",
    "attn_v": "attn_qkv",
    "ffn_gate": "ffn_gate_up",
    "ffn_up": "ffn_gate_up",
    "ffn_gate_exps": "ffn_gate_up_exps",
    "ffn_up_exps": "ffn_gate_up_exps",
    "token_embd": "output",
}
"""The group of a matrix by the part of its name that says what it is; others are their own."""

LABELS = {
    "gated": "matmul",
    "embed": "embedding",
    "rotate": "rope + append",
    "append": "rope + append",
    "attend": "attention",
    "merge": "attention",
    "gate": "gate",
    "experts_gated": "experts",
    "expert_gate": "gate of experts",
    "route": "router",
    "dispatch": "router",
    "combine": "sum of experts",
    "softcap": "logit soft-cap",
    "group_maxima": "maxima of logits",
}
"""Labels of operations; others have their own name."""


def label_of(row: Recorded, arguments: dict[str, int]) -> str:
    """What an operation is for the reader. int8 blocks made on the way are part of it: "norm + quantize"."""
    name = LABELS.get(row.operation.name, row.operation.name)
    if _is_product(row):
        matrix = row.weights[0].name.removesuffix(".weight").rpartition(".")[2]
        return f"{name} {PRODUCTS.get(matrix, matrix)}"
    if name == "attention":
        return f"{name}, {'global' if arguments['window'] >= ops.NO_WINDOW else 'local'} layers"
    if arguments.get("base"):
        name += " + add"
    return f"{name} + quantize" if row.operation is not ops.QUANTIZE and arguments.get("q") else name


def part(row: Recorded, arguments: dict[str, int], us: float, best_us: float, rows: int, position: int) -> Part:
    """One row of the table, in a step of `rows` rows from `position` on."""
    one = Part(label_of(row, arguments), 1, us, best_us)
    if _is_product(row):
        return replace(
            one,
            weight_bytes=sum(_matrices_read(w, rows, arguments) * w.row_bytes * w.shape[-2] for w in row.weights),
            macs=rows * sum(arguments.get("choices", 1) * math.prod(w.shape[-2:]) for w in row.weights),
            formats=tuple(w.format.name for w in row.weights),
        )
    if row.operation is ops.ATTEND:
        window, head_dim = arguments["window"], arguments["head_dim"]
        key_bytes = arguments["head_bytes"] // SPAN
        keys = min(position + rows, window + rows - 1)
        seen = sum(min(p + 1, window) for p in range(position, position + rows))
        return replace(
            one, kv_bytes=2 * keys * arguments["kv_heads"] * key_bytes, macs=2 * seen * arguments["heads"] * head_dim
        )
    return one


def _matrices_read(weight: Tensor, rows: int, arguments: dict[str, int]) -> int:
    """1, or of experts' matrices as many as `rows` rows choose, if they have none in common."""
    return 1 if len(weight.shape) == 2 else min(weight.shape[0], rows * arguments["choices"])


def _is_product(row: Recorded) -> bool:
    return row.operation is not ops.EMBED and any(len(w.shape) > 1 for w in row.weights)
