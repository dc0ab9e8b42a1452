"""`TensorSpec`: what a model's tensors are called, how large they are, and what they are made of. Knows no file."""

from __future__ import annotations

import re
from dataclasses import dataclass

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
TABLES = (EMBEDDING, PER_LAYER_EMBEDDING)
"""Those that have a row for each token and are looked up."""
HF_EMBEDDING, HF_OUTPUT = "embed_tokens.weight", "lm_head.weight"

_OF_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: matrices (experts, rows, columns), a matrix (rows, columns), or a vector (n,).

    role: what it does, in llama.cpp's words: "token_embd", "attn_q", ...
    hf_name: in checkpoints of transformers, without what wraps the text model.
    shift: is added to the checkpoint's values when they are converted.
    optional: a file without it runs.
    part: "weight", "bias", or "scale".
    values: what a converter writes where no checkpoint holds the tensor (`hf_name` is empty), its configuration does.
    paired_heads: the rows are those of so many heads, and what rotates as a pair is neighbours: rows 2i and 2i + 1 of a
        head of d rows are rows i and i + d / 2 of the checkpoint's.
    """

    role: str
    shape: tuple[int, ...]
    hf_name: str
    layer: int | None = None
    shift: float = 0.0
    optional: bool = False
    part: str = "weight"
    values: tuple[float, ...] | None = None
    paired_heads: int = 0

    @property
    def name(self) -> str:
        """GGUF's name."""
        return f"{self.role}.{self.part}" if self.layer is None else f"blk.{self.layer}.{self.role}.{self.part}"

    @property
    def key(self) -> str:
        """What a model calls it: its role, and "attn_q_bias" for another part than the weight."""
        return self.role if self.part == "weight" else f"{self.role}_{self.part}"


def layer_and_role(name: str) -> tuple[int, str] | None:
    """(3, "ffn_down") of "blk.3.ffn_down.weight"; None outside the layers."""
    match = _OF_LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else None
