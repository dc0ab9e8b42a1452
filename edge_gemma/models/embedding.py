"""What an encoder makes of the rows of a text: one row of floats of length 1. Knows no tensors and no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DENSE = "dense"
"""The key of a config.json under which the converter puts (inputs, outputs) of the dense layers' own ones."""


@dataclass(frozen=True)
class Embedding:
    """Rows are pooled, pass through dense layers without bias, and are divided by their length.

    pooling: "mean" of all rows, or the "last" one. width: of the result. dense: (inputs, outputs) of each layer.
    prompts: what the model was trained to see before a text, by what the text is for.
    """

    pooling: str
    width: int
    dense: tuple[tuple[int, int], ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict, compare=False)
