"""A small model for the tests of commands, and what the API makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_gemma import Gemma
from tests.commands.process import PROMPT
from tests.conftest import TinyGguf


@pytest.fixture(scope="module")
def model(tiny_gguf: TinyGguf) -> Path:
    path = tiny_gguf("gemma2-2b")
    with Gemma(path):  # compiles its kernels, so that no command has to say that it does
        return path


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """The greedy continuation by the API."""
    with Gemma(model) as opened:
        return opened.generate(PROMPT, max_tokens=12, temperature=0.0).text
