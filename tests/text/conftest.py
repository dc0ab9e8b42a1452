"""Fixtures of the tests of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.tokenizer import Tokenizer
from tests.gguf_builder import Builder
from tests.text.small_vocabulary import Load


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def tokenizer_of(builder: Builder) -> Tokenizer:
        path = tmp_path / "small.gguf"
        path.write_bytes(builder.build())
        with GgufFile.open(path) as file:
            return Tokenizer.from_gguf(file)

    return tokenizer_of
