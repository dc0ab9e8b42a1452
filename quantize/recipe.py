"""Which tensor gets which block format. Knows no bytes and no checkpoint.

| type | matrices | token_embd (and output) | vectors | general.file_type |
|---|---|---|---|---|
| F32 | F32 | F32 | F32 | 0 |
| F16 | F16 | F16 | F32 | 1 |
| BF16 | BF16 | BF16 | F32 | 32 |
| Q8_0 | Q8_0 | Q8_0 | F32 | 7 |
| Q4_0 | Q4_0 | Q8_0 | F32 | 2 |

As llama-quantize chooses, but for one cell: it gives the embedding of a Q4_0 file Q6_K, which this package does not
write yet; Q8_0 takes 30% more bytes there and loses less. New mixes go into `MIXES`, exceptions by layer into `choose`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_gemma.formats import FORMATS, BlockFormat
from edge_gemma.quantize.names import EMBEDDING, OUTPUT


@dataclass(frozen=True)
class Mix:
    """The formats of one file type."""

    file_type: int  # llama.cpp's number, written as general.file_type
    matrix: str
    embedding: str


MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32", "F32"),
    "F16": Mix(1, "F16", "F16"),
    "BF16": Mix(32, "BF16", "BF16"),
    "Q8_0": Mix(7, "Q8_0", "Q8_0"),
    "Q4_0": Mix(2, "Q4_0", "Q8_0"),
}


def choose(mix: Mix, name: str, shape: tuple[int, ...]) -> BlockFormat:
    """The format of tensor `name` of row-major `shape`.

    A matrix whose rows the block does not divide is stored as F16, as llama-quantize falls back when nothing fits.
    """
    if len(shape) == 1:
        return FORMATS["F32"]
    chosen = FORMATS[mix.embedding if name in (EMBEDDING, OUTPUT) else mix.matrix]
    return chosen if shape[-1] % chosen.block == 0 else FORMATS["F16"]
