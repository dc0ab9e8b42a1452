"""A vocabulary so small that each of its rules can be broken, in a file of a small model."""

from __future__ import annotations

from collections.abc import Callable

from edge_gemma.text.tokenizer import Tokenizer
from tests.gguf_builder import SMALL_VOCABULARY as SMALL
from tests.gguf_builder import Builder, runnable_gemma

SPACE, A, B, AB, SPACE_A, END, TWO_SPACES, TAG, PAD = range(260, 269)
K = "tokenizer.ggml."

Load = Callable[[Builder], Tokenizer]
"""The fixture `load`: the tokenizer of a file."""


def small_gguf(entries: list[tuple[str | bytes, float, int]] = SMALL) -> Builder:
    return runnable_gemma("gemma2", entries)
